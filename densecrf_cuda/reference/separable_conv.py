"""The atrous separable convolution and its parts: `F.conv2d`s, padding and elementwise functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .separable_checks import (
    Geometry,
    check_depthwise,
    check_input_gradient,
    check_moments,
    check_out,
    check_separable,
    check_weight_gradient,
    layout_of,
)


def atrous_separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    pre_activation: str = "none",
    depthwise_scale: Tensor | None = None,
    depthwise_shift: Tensor | None = None,
    depthwise_activation: str = "none",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """y = act(scale · P v + shift + residual), v = depthwise act(depthwise scale · D pre(x) + depthwise shift).

    D is the depthwise convolution, zero outside of the image, P the pointwise one. Half types are computed in float32
    and rounded once, at the end.

    Args:
        input: x, [B, C, H, W], half, bfloat16, float32 or float64, in any layout.
        depthwise_weight: D, [C, 1, k, k] with k = 1, 3, 5 or 7, in the dtype of the input.
        pointwise_weight: P, [O, C] or [O, C, 1, 1], in the dtype of the input.
        stride: (vertical, horizontal), each 1 or 2.
        padding: (left, right, top, bottom) zeros.
        dilation: (vertical, horizontal) distance of the taps, from 1.
        pre_activation: "none", "relu" or "relu6", before the padding.
        depthwise_scale: [C], floating, or None for 1.
        depthwise_shift: [C], floating, or None for 0.
        depthwise_activation: as `pre_activation`, between the convolutions.
        scale: [O], floating, or None for 1.
        shift: [O], floating, or None for 0.
        activation: as `pre_activation`, of the result.
        residual: [B, O, H', W'], in the dtype of the input, or None for 0.
        out: a tensor of the shape and dtype of the result that receives it, sharing no memory with the arguments.

    Returns:
        [B, O, H', W'] in the dtype and layout (contiguous or channels_last) of the input; `out` where it is given.

    Raises:
        ValueError: shapes that do not fit, tensors on several devices, numbers out of their range.
        TypeError: dtypes other than these.

    Chen, Zhu, Papandreou, Schroff & Adam, "Encoder-decoder with atrous separable convolution for semantic image
    segmentation", 2018, section 3.1.

    Example:
        >>> x, ones = torch.ones(1, 2, 4, 4), torch.ones(2, 1, 3, 3)
        >>> atrous_separable_conv2d(x, ones, torch.ones(1, 2), dilation=(1, 1))
        tensor([[[[18., 18.],
                  [18., 18.]]]])
    """
    geometry = Geometry(stride, padding, dilation)
    depthwise = (pre_activation, depthwise_scale, depthwise_shift, depthwise_activation)
    shape = check_separable(
        input, depthwise_weight, pointwise_weight, geometry, *depthwise, scale, shift, activation, residual
    )
    if out is not None:
        vectors = (depthwise_scale, depthwise_shift, scale, shift)
        check_out(out, shape, input, (input, depthwise_weight, pointwise_weight, *vectors, residual))
    u = _convolve(_widen(input), depthwise_weight, geometry, pre_activation)
    v = _finish(u, depthwise_scale, depthwise_shift, None, depthwise_activation)
    weight = _widen(pointwise_weight).reshape(*pointwise_weight.shape[:2], 1, 1)
    y = _finish(F.conv2d(v, weight), scale, shift, residual, activation)
    return _as_given(y, input) if out is None else out.copy_(y)


def _depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    pre_activation: str,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> Tensor:
    """v = act(scale · D pre(x) + shift), [B, C, H', W']: the first half of `atrous_separable_conv2d`.

    Example:
        >>> x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
        >>> _depthwise_conv2d(x, weight, (2, 2), (1, 1, 1, 1), (1, 1), "none", None, None, "none")
        tensor([[[[4., 4.],
                  [4., 4.]]]])
    """
    geometry = Geometry(stride, padding, dilation)
    check_depthwise(input, weight, geometry, pre_activation, scale, shift, activation)
    u = _convolve(_widen(input), weight, geometry, pre_activation)
    return _as_given(_finish(u, scale, shift, None, activation), input)


def _depthwise_conv2d_input_gradient(
    grad: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """D transposed: the gradient of <grad, D x> by x, [B, C, H, W].

    Example:
        >>> grad, weight = torch.ones(1, 1, 1, 1), torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> _depthwise_conv2d_input_gradient(grad, weight, (2, 2), (1, 1), (1, 0, 1, 0), (1, 1))
        tensor([[[[4., 5.],
                  [7., 8.]]]])
    """
    check_input_gradient(grad, weight, input_size, Geometry(stride, padding, dilation))
    left, right, top, bottom = padding
    rows, columns = input_size
    padded = (*grad.shape[:2], rows + top + bottom, columns + left + right)
    channels = grad.shape[1]
    whole = conv2d_input(padded, _widen(weight), _widen(grad), stride=stride, dilation=dilation, groups=channels)
    return _as_given(whole[:, :, top : top + rows, left : left + columns], grad)


def _depthwise_conv2d_weight_gradient(
    grad: Tensor,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    pre_activation: str,
) -> Tensor:
    """The gradient of <grad, D pre(x)> by the weight of D, [C, 1, k, k].

    Example:
        >>> grad, x = torch.ones(1, 1, 2, 2), torch.tensor([[[[1.0, -2.0], [3.0, 4.0]]]])
        >>> _depthwise_conv2d_weight_gradient(grad, x, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), "relu")
        tensor([[[[8.]]]])
    """
    check_weight_gradient(grad, input, kernel_size, Geometry(stride, padding, dilation), pre_activation)
    channels = input.shape[1]
    padded = F.pad(activate(_widen(input), pre_activation), list(padding))
    result = conv2d_weight(
        padded, (channels, 1, *kernel_size), _widen(grad), stride=stride, dilation=dilation, groups=channels
    )
    return result.to(input.dtype, memory_format=torch.contiguous_format).contiguous()


def _depthwise_conv2d_moments(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    pre_activation: str,
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of D pre(x) over images and pixels, each [C]; float32 where the input is a half type.

    Example:
        >>> x, weight = torch.tensor([[[[1.0, 3.0]]]]), torch.ones(1, 1, 1, 1)
        >>> _depthwise_conv2d_moments(x, weight, (1, 1), (0, 0, 0, 0), (1, 1), "none")
        (tensor([2.]), tensor([1.]))
    """
    geometry = Geometry(stride, padding, dilation)
    check_moments(input, weight, geometry, pre_activation)
    u = _convolve(_widen(input), weight, geometry, pre_activation)
    variance, mean = torch.var_mean(u, dim=(0, 2, 3), correction=0)
    return mean, variance


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation of that name.

    Example:
        >>> activate(torch.tensor([-1.0, 3.0, 7.0]), "relu6")
        tensor([0., 3., 6.])
    """
    if activation == "relu":
        return F.relu(x)
    return F.relu6(x) if activation == "relu6" else x


def _widen(tensor: Tensor) -> Tensor:
    """In the dtype that sums are kept in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _convolve(input: Tensor, weight: Tensor, geometry: Geometry, pre_activation: str) -> Tensor:
    """D pre(x), in the dtype of the input."""
    stride, (left, right, top, bottom), dilation = geometry
    x = activate(input, pre_activation)
    symmetric = left == right and top == bottom
    if not symmetric:
        x = F.pad(x, [left, right, top, bottom])
    padding = (top, left) if symmetric else (0, 0)
    return F.conv2d(x, _widen(weight), None, stride, padding, dilation, groups=x.shape[1])


def _finish(x: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, activation: str) -> Tensor:
    """act(scale · x + shift + residual), in the dtype of x."""
    if scale is not None:
        x = x * scale.to(x.dtype)[:, None, None]
    if shift is not None:
        x = x + shift.to(x.dtype)[:, None, None]
    if residual is not None:
        x = x + residual.to(x.dtype)
    return activate(x, activation)


def _as_given(result: Tensor, given: Tensor) -> Tensor:
    """In the dtype and layout of the tensor given."""
    return result.to(given.dtype).contiguous(memory_format=layout_of(given))
