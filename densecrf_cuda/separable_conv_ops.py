"""The operators of the separable convolution: public function, fake kernel and autograd of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _library  # noqa: F401  registers the operators
from . import separable_conv_gradients as gradients
from .reference import separable_conv as reference
from .reference.separable_checks import check_out

__all__ = ["atrous_separable_conv2d", "autocast_dtype", "lowered", "separable_conv_decompositions"]

_ops = torch.ops.densecrf_cuda


def atrous_separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = "same",
    dilation: int | Sequence[int] = 1,
    pre_activation: str = "none",
    depthwise_scale: Tensor | None = None,
    depthwise_shift: Tensor | None = None,
    depthwise_activation: str = "none",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Depthwise and pointwise convolution in one pass, with an affine map and an activation after each.

    y = activation(scale · P v + shift + residual) with
    v = depthwise_activation(depthwise_scale · D pre_activation(x) + depthwise_shift), where D is
    `F.conv2d(..., depthwise_weight, groups=C)`, which sees zeros outside of the image, and P is
    `F.conv2d(..., pointwise_weight)`. Sums are kept in float32 (float64 where the input is), and no v is stored in
    between: a gradient computes it anew from the input.

    Args:
        input: x, [B, C, H, W], float32, float64, float16 or bfloat16, contiguous or channels_last; other strides are
            copied.
        depthwise_weight: [C, 1, k, k] with k = 1, 3, 5 or 7, in the dtype of the input.
        pointwise_weight: [O, C] or [O, C, 1, 1], in the dtype of the input.
        stride: 1 or 2, or a pair of them (vertical, horizontal).
        padding: zeros around the image: a number, a pair (vertical, horizontal), four numbers (left, right, top,
            bottom), or "same" for dilation · (k - 1) / 2 on every side, whatever the stride. TensorFlow's SAME at
            stride 2 depends on the size of the image: state it as four numbers.
        dilation: distance of the taps in pixels, from 1, or a pair (vertical, horizontal); it may exceed the image.
        pre_activation: "none", "relu" or "relu6" of the input.
        depthwise_scale: [C], any floating dtype, or None for 1.
        depthwise_shift: [C], any floating dtype, or None for 0.
        depthwise_activation: as `pre_activation`, between the convolutions.
        scale: [O], any floating dtype, or None for 1.
        shift: [O], any floating dtype, or None for 0.
        activation: as `pre_activation`, of the result.
        residual: [B, O, H', W'] in the dtype of the input, added before the activation, or None for 0.
        out: where to write the result instead of into a new tensor, without gradients: [B, O, H', W'] in the dtype of
            the input, which may be a slice of the channels of a wider tensor, and shares no memory with an argument.

    Returns:
        [B, O, H', W'] in the dtype and layout of the input, or `out`, with
        H' = floor((H + top + bottom - dilation (k - 1) - 1) / stride) + 1. Differentiable, also twice, with respect to
        every tensor. Under autocast it computes in the lower precision, as `F.conv2d` does.

    Raises:
        ValueError: shapes that do not fit, numbers out of their range, tensors on several devices, an `out` that
            shares memory with an argument or where gradients are recorded.
        TypeError: dtypes other than these, settings that are not numbers.

    Chen, Zhu, Papandreou, Schroff & Adam, "Encoder-decoder with atrous separable convolution for semantic image
    segmentation", 2018, section 3.1.

    Example:
        >>> x = torch.ones(1, 2, 5, 5)
        >>> y = atrous_separable_conv2d(x, torch.ones(2, 1, 3, 3), torch.ones(1, 2), dilation=2, shift=torch.ones(1))
        >>> y[0, 0, 2]
        tensor([13., 13., 19., 13., 13.])
    """
    stride, dilation = _pair("stride", stride), _pair("dilation", dilation)
    sides = _sides(padding, dilation, depthwise_weight)
    if out is not None and torch.is_grad_enabled():
        vectors = (depthwise_scale, depthwise_shift, scale, shift)
        operands = (input, depthwise_weight, pointwise_weight, *vectors, residual, out)
        if any(tensor is not None and tensor.requires_grad for tensor in operands):
            raise ValueError("out= must not be used where gradients are recorded, got a tensor that requires them")
    dtype = autocast_dtype(input.device.type)
    if dtype is not None:
        lower = [lowered(tensor, dtype) for tensor in (input, depthwise_weight, pointwise_weight)]
        input, depthwise_weight, pointwise_weight = lower
        residual = None if residual is None else lowered(residual, dtype)
    convolutions = (input, depthwise_weight, pointwise_weight, stride, sides, dilation)
    between = (pre_activation, depthwise_scale, depthwise_shift, depthwise_activation)
    arguments = (*convolutions, *between, scale, shift, activation, residual)
    if dtype is None:
        return _call(arguments, out)
    with torch.autocast(input.device.type, enabled=False):  # of the products inside
        return _call(arguments, out)


def separable_conv_decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """The operators as standard convolutions, for programs that know no others.

    Returns:
        a table for `torch.export.ExportedProgram.run_decompositions`, after which an exporter (to ONNX, say) sees only
        operators of PyTorch.

    Example:
        >>> sorted(operator._opname for operator in separable_conv_decompositions())
        ['_depthwise_conv2d', '_depthwise_conv2d_moments', 'atrous_separable_conv2d']
    """
    return {
        _ops.atrous_separable_conv2d.default: reference.atrous_separable_conv2d,
        _ops._depthwise_conv2d.default: reference._depthwise_conv2d,
        _ops._depthwise_conv2d_moments.default: reference._depthwise_conv2d_moments,
    }


def _call(arguments: tuple[Any, ...], out: Tensor | None) -> Tensor:
    if out is None:
        return _ops.atrous_separable_conv2d(*arguments)
    if torch.compiler.is_compiling():  # which knows no `out=` that is a slice, but turns a copy into one
        result = _ops.atrous_separable_conv2d(*arguments)
        check_out(out, result.shape, arguments[0], ())
        return out.copy_(result)
    return _ops.atrous_separable_conv2d.out(*arguments, out=out)


def _numbers(name: str, value: object, lengths: tuple[int, ...], kinds: str) -> list[int]:
    """The numbers of a setting; one number stands for as many as the first length says."""
    if isinstance(value, (int, torch.SymInt)):
        return [value] * lengths[0]  # type: ignore[list-item]
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else None
    if numbers is None or not all(isinstance(number, (int, torch.SymInt)) for number in numbers):
        raise TypeError(f"{name} must be {kinds}, got {value!r}")
    if len(numbers) not in lengths:
        raise ValueError(f"{name} must be {kinds}, got {value!r}")
    return numbers


def _pair(name: str, value: int | Sequence[int]) -> list[int]:
    return _numbers(name, value, (2,), "a number or a pair of numbers (vertical, horizontal)")


def _sides(padding: int | Sequence[int] | str, dilation: Sequence[int], weight: Tensor) -> list[int]:
    """(left, right, top, bottom)."""
    if padding == "same":
        if weight.dim() != 4:
            raise ValueError(f"depthwise_weight must be [C, 1, k, k], got {list(weight.shape)}")
        vertical, horizontal = (step * (weight.shape[-1] - 1) // 2 for step in dilation)
        return [horizontal, horizontal, vertical, vertical]
    kinds = '"same", a number, a pair (vertical, horizontal) or four numbers (left, right, top, bottom)'
    sides = _numbers("padding", padding, (4, 2), kinds)
    return sides if len(sides) == 4 else [sides[1], sides[1], sides[0], sides[0]]


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The type that autocast computes convolutions in, None where it is off."""
    # torch.compile cannot trace is_autocast_available, which is false of the meta device alone
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def lowered(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """What autocast makes of an argument of a convolution: double and integers stay."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


for _name in (
    "atrous_separable_conv2d",
    "_depthwise_conv2d",
    "_depthwise_conv2d_input_gradient",
    "_depthwise_conv2d_weight_gradient",
    "_depthwise_conv2d_moments",
):
    # Shapes, layouts and errors of the reference are those of every device.
    torch.library.register_fake(f"densecrf_cuda::{_name}", getattr(reference, _name))
torch.library.register_fake("densecrf_cuda::atrous_separable_conv2d.out", reference.atrous_separable_conv2d)

for _name, _backward, _setup in (
    ("atrous_separable_conv2d", gradients.separable_backward, gradients.separable_setup),
    ("_depthwise_conv2d", gradients.depthwise_backward, gradients.depthwise_setup),
    ("_depthwise_conv2d_input_gradient", gradients.input_gradient_backward, gradients.input_gradient_setup),
    ("_depthwise_conv2d_weight_gradient", gradients.weight_gradient_backward, gradients.weight_gradient_setup),
    ("_depthwise_conv2d_moments", gradients.moments_backward, gradients.moments_setup),
):
    torch.library.register_autograd(f"densecrf_cuda::{_name}", _backward, setup_context=_setup)
