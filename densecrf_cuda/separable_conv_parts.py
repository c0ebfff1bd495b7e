"""What an atrous separable convolution may be made of, and the parts of it that are no operator of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .folding import ChannelAffine, folds, frozen_affine, has_hooks, normalizes_batch
from .separable_conv_ops import autocast_dtype, lowered
from .settings import check_choice, whole_number

__all__ = [
    "ACTIVATIONS",
    "Norm",
    "Padding",
    "activate",
    "activation_name",
    "autocast",
    "check_parts",
    "conv_geometry",
    "conv_padding",
    "folded_norm",
    "is_plain",
    "make_norm",
    "write_to",
]

ACTIVATIONS = ("none", "relu", "relu6")
KERNEL_SIZES = (1, 3, 5, 7)

Norm = bool | Callable[[int], nn.Module]
Padding = tuple[int, int, int, int]


def activate(input: Tensor, name: str) -> Tensor:
    """One of ACTIVATIONS; NaN stays NaN."""
    if name == "none":
        return input
    return F.relu(input) if name == "relu" else F.relu6(input)


def activation_name(argument: str, activation: nn.Module | str | None) -> str:
    """The name of an activation that is given as a module, as a name or as None."""
    if isinstance(activation, str):
        return check_choice(argument, activation, ACTIVATIONS)
    if activation is None:
        return "none"
    if not isinstance(activation, nn.Module):
        raise TypeError(f"{argument} must be a module, a name or None, got {activation!r}")
    # Subclasses may compute something else, but ReLU6 is a Hardtanh by name only.
    kind = type(activation)
    if kind in (nn.Identity, nn.ReLU):
        return "relu" if kind is nn.ReLU else "none"
    if kind in (nn.ReLU6, nn.Hardtanh) and activation.min_val == 0 and activation.max_val == 6:
        return "relu6"
    raise ValueError(f"{argument} must be ReLU, ReLU6 or Identity, got {activation}")


def _pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    values = (value,) * 2 if not isinstance(value, (tuple, list)) else tuple(value)
    if len(values) != 2:
        raise ValueError(f"{name} must be one number or two, got {value!r}")
    vertical, horizontal = (whole_number(name, number, least) for number in values)
    return vertical, horizontal


def _same(kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, int]:
    vertical, horizontal = (d * (k - 1) // 2 for d, k in zip(dilation, kernel_size))
    return vertical, horizontal


def conv_geometry(
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
) -> tuple[dict[str, Any], Padding]:
    """Arguments of an `nn.Conv2d`, and the padding (left, right, top, bottom) that it cannot express."""
    kernel_size, dilation = _pair("kernel_size", kernel_size, 1), _pair("dilation", dilation, 1)
    geometry: dict[str, Any] = {
        "kernel_size": kernel_size,
        "stride": _pair("stride", stride, 1),
        "dilation": dilation,
        "padding": 0,
    }
    if isinstance(padding, (tuple, list)) and len(padding) == 4:
        left, right, top, bottom = (whole_number("padding", number, 0) for number in padding)
        return geometry, (left, right, top, bottom)
    if isinstance(padding, str):
        if padding != "same":
            raise ValueError(f"padding must be 'same' or numbers of pixels, got {padding!r}")
        geometry["padding"] = _same(kernel_size, dilation)
    elif isinstance(padding, (tuple, list)) and len(padding) != 2:
        raise ValueError(f"padding must be one number, two or four, got {padding!r}")
    else:
        geometry["padding"] = _pair("padding", padding, 0)
    return geometry, (0, 0, 0, 0)


def conv_padding(conv: nn.Conv2d) -> Padding:
    """What a convolution pads: (left, right, top, bottom)."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    padding = _same(conv.kernel_size, conv.dilation) if isinstance(conv.padding, str) else conv.padding
    vertical, horizontal = padding
    return horizontal, horizontal, vertical, vertical


def make_norm(name: str, norm: Norm, channels: int, **factory: Any) -> nn.Module | None:
    """A norm of so many channels, or None."""
    if isinstance(norm, bool):
        return nn.BatchNorm2d(channels, **factory) if norm else None
    if not callable(norm):
        raise TypeError(f"{name} must be a bool or a function from the number of channels to a module, got {norm!r}")
    made = norm(channels)
    return made.to(**factory) if isinstance(made, nn.Module) else made


def is_plain(conv: nn.Module) -> bool:
    """Whether a convolution computes what its weight, bias and settings say, and nothing else."""
    if not isinstance(conv, nn.Conv2d) or has_hooks(conv):
        return False
    return type(conv).forward is nn.Conv2d.forward and type(conv)._conv_forward is nn.Conv2d._conv_forward


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Operands of a convolution in the type that autocast gives them."""
    dtype = autocast_dtype(next(tensor for tensor in tensors if tensor is not None).device.type)
    return tensors if dtype is None else tuple(t if t is None else lowered(t, dtype) for t in tensors)


def check_parts(
    depthwise: nn.Conv2d, depthwise_norm: nn.Module | None, pointwise: nn.Conv2d, norm: nn.Module | None
) -> None:
    """Raise ValueError or TypeError where modules are no depthwise-separable convolution."""
    for name, conv in (("depthwise", depthwise), ("pointwise", pointwise)):
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"{name} must be an nn.Conv2d, got {conv!r}")
        if conv.padding_mode != "zeros":
            raise ValueError(f"{name} must be padded with zeros, got padding_mode {conv.padding_mode!r}")
    for rule, value in _broken_rules(depthwise, pointwise):
        raise ValueError(f"{rule}, got {value}")
    for name, part, channels in (
        ("depthwise_bn", depthwise_norm, depthwise.out_channels),
        ("bn", norm, pointwise.out_channels),
    ):
        if part is not None and not isinstance(part, nn.Module):
            raise TypeError(f"{name} must be a module or None, got {part!r}")
        features = len(part.scale) if isinstance(part, ChannelAffine) else getattr(part, "num_features", None)
        if features not in (None, channels):
            raise ValueError(f"{name} must have {channels} channels as the convolution before it, got {features}")


def _broken_rules(depthwise: nn.Conv2d, pointwise: nn.Conv2d) -> Iterator[tuple[str, Any]]:
    channels, kernel = depthwise.in_channels, depthwise.kernel_size
    if not channels == depthwise.out_channels == depthwise.groups:
        found = f"{channels}, {depthwise.out_channels} and {depthwise.groups}"
        yield "the depthwise convolution must have as many output channels and groups as input channels", found
    if kernel[0] != kernel[1] or kernel[0] not in KERNEL_SIZES:
        yield "the depthwise kernel_size must be 1, 3, 5 or 7 both ways", kernel
    if max(depthwise.stride) > 2:
        yield "the depthwise stride must be 1 or 2", depthwise.stride
    if pointwise.kernel_size != (1, 1):
        yield "the pointwise kernel_size must be 1", pointwise.kernel_size
    if pointwise.in_channels != channels:
        yield f"the pointwise convolution must have {channels} input channels as the depthwise", pointwise.in_channels
    if pointwise.groups != 1:
        yield "the pointwise convolution must have 1 group", pointwise.groups
    if pointwise.stride != (1, 1):
        yield "the pointwise stride must be 1", pointwise.stride
    if pointwise.padding not in ("same", "valid", (0, 0)):
        yield "the pointwise convolution must have no padding", pointwise.padding
    tensors = (depthwise.weight, pointwise.weight)
    if tensors[0].dtype != tensors[1].dtype or tensors[0].device != tensors[1].device:
        found = " and ".join(f"{tensor.dtype} on {tensor.device}" for tensor in tensors)
        yield "both weights must have one dtype and device", found


def folded_norm(norm: nn.Module | None) -> nn.Module | None:
    """A norm with its running statistics made a scale and a shift, or itself where it has none."""
    if norm is None or not folds(norm) or normalizes_batch(norm):
        return norm
    scale, shift = frozen_affine(norm, None)
    assert scale is not None and shift is not None  # a norm has both
    return ChannelAffine(scale.detach().clone(), shift.detach().clone())


def write_to(out: Tensor | None, result: Tensor) -> Tensor:
    """The result, in `out` where that is given, as the operator writes it."""
    if out is None:
        return result
    if result.requires_grad:
        raise ValueError("out is for inference only, got operands that require gradients; use torch.no_grad()")
    if out.shape != result.shape:
        raise ValueError(f"out must be {tuple(result.shape)}, got {tuple(out.shape)}")
    if out.dtype != result.dtype:
        raise TypeError(f"out must be {result.dtype}, got {out.dtype}")
    return out.copy_(result)
