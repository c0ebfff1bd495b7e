"""AtrousSeparableConv2d: depthwise and pointwise convolution with their norms and activations, as one module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import Affine, batch_affine, folds, frozen_affine, normalizes_batch, track_statistics
from .reference.separable_checks import Geometry, output_size
from .separable_conv_ops import atrous_separable_conv2d
from .separable_conv_parts import (
    Norm,
    Padding,
    activate,
    activation_name,
    autocast,
    check_parts,
    conv_geometry,
    conv_padding,
    folded_norm,
    is_plain,
    make_norm,
    write_to,
)
from .settings import whole_number

__all__ = ["AtrousSeparableConv2d"]

_ops = torch.ops.densecrf_cuda


class AtrousSeparableConv2d(nn.Module):
    """A depthwise convolution, a pointwise one, and a norm and an activation after each.

    With D the depthwise convolution, P the pointwise one and N', N the norms

        y = activation(N(P v) + residual),    v = depthwise_activation(N'(D pre_activation(x)))

    computed by one operator wherever the norms are a scale and a shift per channel: BatchNorm in evaluation, or frozen
    by `eval()` on it alone, where its weight and bias may still be trained. A BatchNorm between the convolutions that
    is in training costs one more pass, which computes D x for its statistics and stores none of it. Other norms,
    SyncBatchNorm in training on several processes, and modules with hooks run part by part, with the same results.

    Keys of the state dict, where present: `depthwise.weight` [C, 1, k, k], `depthwise.bias`, `depthwise_bn.*`,
    `pointwise.weight` [O, C, 1, 1], `pointwise.bias`, `bn.*`. `depthwise` and `pointwise` are `nn.Conv2d`, and stride,
    dilation and padding are read from `depthwise` at every call.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: k of the depthwise convolution: 1, 3, 5 or 7.
        stride: 1 or 2, or a pair (vertical, horizontal).
        padding: of zeros, which `pre_activation` does not see. "same" is dilation · (k - 1) / 2 on every side, whatever
            the stride; else pixels: one number, (vertical, horizontal) or (left, right, top, bottom).
        dilation: ≥ 1, or a pair; also wider than the image.
        bias: of the pointwise convolution; None: where no norm follows it.
        depthwise_bias: the same for the depthwise convolution.
        pre_activation: of the input: "none", "relu" or "relu6".
        depthwise_norm: N': True for `nn.BatchNorm2d(C)`, False for none, or a function from C to a module, for
            instance `functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=3e-4)`.
        norm: N, the same with O.
        depthwise_activation: "none", "relu" or "relu6".
        activation: the same at the end.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError, TypeError: an argument out of its range or of the wrong type.

    Chen, Zhu, Papandreou, Schroff & Adam, "Encoder-decoder with atrous separable convolution for semantic image
    segmentation", 2018, section 3.1 and figure 3.

    Example:
        >>> conv = AtrousSeparableConv2d(2048, 256, dilation=12).eval()
        >>> conv(torch.zeros(1, 2048, 9, 9)).shape
        torch.Size([1, 256, 9, 9])
        >>> [name for name, _ in conv.named_parameters()][:3]
        ['depthwise.weight', 'depthwise_bn.weight', 'depthwise_bn.bias']
    """

    depthwise: nn.Conv2d
    depthwise_bn: nn.Module | None
    pointwise: nn.Conv2d
    bn: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = "same",
        dilation: int | Sequence[int] = 1,
        bias: bool | None = None,
        depthwise_bias: bool | None = None,
        pre_activation: str = "none",
        depthwise_norm: Norm = True,
        norm: Norm = True,
        depthwise_activation: str = "relu",
        activation: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        channels = whole_number("in_channels", in_channels, 1)
        out_channels = whole_number("out_channels", out_channels, 1)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        geometry, extra_padding = conv_geometry(kernel_size, stride, padding, dilation)
        self._assemble(
            nn.Conv2d(
                channels,
                channels,
                groups=channels,
                bias=depthwise_norm is False if depthwise_bias is None else depthwise_bias,
                **geometry,
                **factory,
            ),
            make_norm("depthwise_norm", depthwise_norm, channels, **factory),
            nn.Conv2d(channels, out_channels, 1, bias=norm is False if bias is None else bias, **factory),
            make_norm("norm", norm, out_channels, **factory),
            (pre_activation, depthwise_activation, activation),
            extra_padding,
        )

    @classmethod
    def from_modules(
        cls,
        depthwise: nn.Conv2d,
        depthwise_bn: nn.Module | None,
        depthwise_activation: nn.Module | str | None,
        pointwise: nn.Conv2d,
        bn: nn.Module | None = None,
        activation: nn.Module | str | None = None,
        *,
        pre_activation: nn.Module | str | None = None,
    ) -> AtrousSeparableConv2d:
        """The same computation as the modules one after another, sharing them: nothing is copied.

        Args:
            depthwise: a convolution with groups = in_channels = out_channels, padded with zeros.
            depthwise_bn: any norm, or None.
            depthwise_activation: `nn.ReLU`, `nn.ReLU6`, `nn.Identity`, a name, or None.
            pointwise: a 1×1 convolution with groups = 1 and stride 1, without padding.
            bn: any norm, or None.
            activation: as `depthwise_activation`.
            pre_activation: the same, of the input; an in-place module becomes one that leaves the input as it is.

        Raises:
            ValueError: modules that are no such convolutions or do not fit each other, or another activation.
            TypeError: what is no module of its kind.

        Example:
            >>> depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False)
            >>> conv = AtrousSeparableConv2d.from_modules(
            ...     depthwise, nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 1)
            ... )
            >>> conv.depthwise is depthwise, conv.depthwise_activation, conv.bn
            (True, 'relu6', None)
        """
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        activations = (pre_activation, depthwise_activation, activation)
        module._assemble(depthwise, depthwise_bn, pointwise, bn, activations, (0, 0, 0, 0))
        module.training = depthwise.training
        return module

    def _assemble(
        self,
        depthwise: nn.Conv2d,
        depthwise_bn: nn.Module | None,
        pointwise: nn.Conv2d,
        bn: nn.Module | None,
        activations: Iterable[nn.Module | str | None],
        extra_padding: Padding,
    ) -> None:
        check_parts(depthwise, depthwise_bn, pointwise, bn)
        self.depthwise = depthwise
        self.depthwise_bn = depthwise_bn
        self.pointwise = pointwise
        self.bn = bn
        names = ("pre_activation", "depthwise_activation", "activation")
        self.pre_activation, self.depthwise_activation, self.activation = map(activation_name, names, activations)
        self.extra_padding = extra_padding

    def forward(self, input: Tensor, *, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            input: [B, C, H, W] in the dtype of the weights, contiguous or channels_last.
            residual: [B, O, H', W'], added before the last activation.
            out: [B, O, H', W'] to write to, for instance a slice of the channels of a wider tensor; for inference only.

        Returns:
            [B, O, H', W'] in the layout of input, H' = ⌊(H + top + bottom - dilation · (k - 1) - 1) / stride⌋ + 1; or
            out.

        Raises:
            ValueError: shapes or devices that do not fit, an image smaller than the kernel, one value per channel for a
                BatchNorm in training, out while gradients are recorded.
            TypeError: operands of another dtype than the weights.
        """
        if not self._runs_fused(input):
            return write_to(out, self._part_by_part(input, residual))
        input, residual, weight, pointwise = autocast(input, residual, self.depthwise.weight, self.pointwise.weight)
        middle = self._depthwise_affine(input, weight)
        stride, padding, dilation = self._geometry()
        settings: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "pre_activation": self.pre_activation,
            "depthwise_scale": middle.scale,
            "depthwise_shift": middle.shift,
            "depthwise_activation": self.depthwise_activation,
        }
        if self.bn is None or (folds(self.bn) and not normalizes_batch(self.bn)):
            scale, shift = frozen_affine(self.bn, self.pointwise.bias)
            settings |= {"scale": scale, "shift": shift, "activation": self.activation, "residual": residual}
            return atrous_separable_conv2d(input, weight, pointwise, **settings, out=out)
        output = atrous_separable_conv2d(input, weight, pointwise, **settings, shift=self.pointwise.bias)
        return write_to(out, self._finish(output, residual))

    def _runs_fused(self, input: Tensor) -> bool:
        norm = self.depthwise_bn
        if norm is not None and (not folds(norm) or (normalizes_batch(norm) and input.shape[0] == 0)):
            return False
        return is_plain(self.depthwise) and is_plain(self.pointwise)

    def _geometry(self) -> tuple[tuple[int, ...], Padding, tuple[int, ...]]:
        left, right, top, bottom = map(sum, zip(conv_padding(self.depthwise), self.extra_padding))
        return self.depthwise.stride, (left, right, top, bottom), self.depthwise.dilation

    def _depthwise_affine(self, input: Tensor, weight: Tensor) -> Affine:
        """What bias and norm do to the depthwise convolution; in training, from statistics of its output."""
        norm, bias = self.depthwise_bn, self.depthwise.bias
        if norm is None or not normalizes_batch(norm):
            return frozen_affine(norm, bias)
        geometry = self._geometry()
        mean, variance = _ops._depthwise_conv2d_moments(input, weight, *geometry, self.pre_activation)
        rows, columns = output_size(weight.shape[0], input.shape[2:], weight.shape[2], Geometry(*geometry))
        shape = (*input.shape[:2], rows, columns)
        count = shape[0] * rows * columns
        if count == 1:
            raise ValueError(f"BatchNorm in training needs more than 1 value per channel, got a map {shape}")
        track_statistics(norm, mean, variance, count, bias)
        return batch_affine(norm, mean, variance, bias)

    def _finish(self, output: Tensor, residual: Tensor | None) -> Tensor:
        """Norm, residual and activation after the pointwise convolution, one after another."""
        if self.bn is not None:
            output = self.bn(output)
        return activate(output if residual is None else output + residual, self.activation)

    def _part_by_part(self, input: Tensor, residual: Tensor | None) -> Tensor:
        """Every module by itself: norms that need the whole map, hooks, modules that took the place of ours."""
        if is_plain(self.depthwise):
            input, weight = autocast(input, self.depthwise.weight)
            affine = frozen_affine(None, self.depthwise.bias)
            output = _ops._depthwise_conv2d(input, weight, *self._geometry(), self.pre_activation, *affine, "none")
        else:
            output = self.depthwise(F.pad(activate(input, self.pre_activation), self.extra_padding))
        if self.depthwise_bn is not None:
            output = self.depthwise_bn(output)
        return self._finish(self.pointwise(activate(output, self.depthwise_activation)), residual)

    def folded(self) -> AtrousSeparableConv2d:
        """The same computation for inference, with the running statistics of its norms made scales and shifts for good.

        It shares the convolutions. Every call of a module in evaluation computes scale and shift of its norms anew, in
        a few kernels of C or O numbers each, so that they always follow its parameters; this one does not.

        Returns:
            a module whose `depthwise_bn` and `bn` hold buffers `scale` and `shift` instead of a norm. Norms that do not
            fold or take statistics of the batch, as in training, are kept as they are.

        Example:
            >>> conv = AtrousSeparableConv2d(8, 4).eval()
            >>> image = torch.ones(1, 8, 5, 5)
            >>> torch.equal(conv.folded()(image), conv(image))
            True
        """
        module = type(self).__new__(type(self))
        nn.Module.__init__(module)
        norms = (folded_norm(norm) for norm in (self.depthwise_bn, self.bn))
        module._assemble(
            self.depthwise,
            next(norms),
            self.pointwise,
            next(norms),
            (self.pre_activation, self.depthwise_activation, self.activation),
            self.extra_padding,
        )
        module.training = self.training
        return module

    @property
    def in_channels(self) -> int:
        """C."""
        return self.depthwise.in_channels

    @property
    def out_channels(self) -> int:
        """O."""
        return self.pointwise.out_channels

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Of the depthwise convolution: (k, k)."""
        return self.depthwise.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        """(vertical, horizontal)."""
        return self.depthwise.stride

    @property
    def dilation(self) -> tuple[int, ...]:
        """(vertical, horizontal)."""
        return self.depthwise.dilation

    @property
    def padding(self) -> Padding:
        """Pixels (left, right, top, bottom)."""
        return self._geometry()[1]

    def extra_repr(self) -> str:
        names = ("pre_activation", "depthwise_activation", "activation")
        settings = [f"{name}={getattr(self, name)!r}" for name in names]
        if any(self.extra_padding):
            settings.append(f"padding={self.padding}")
        return ", ".join(settings)
