"""Derivatives of the separable convolution, composed of its own operators, so that they have derivatives too.

With u = D pre(x), v = act'(s' u + t'), y = act(s P v + t + r) a gradient passes from right to left. An activation is
differentiated from its result, so that only the input and the output of an operator are kept; v is computed anew. The
depthwise convolution, its transpose and the gradient of its weight are linear in each argument, and each other's
derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reference.separable_checks import Geometry, layout_of, output_size

_ops = torch.ops.densecrf_cuda
_aten = torch.ops.aten


class _DepthwiseNeeds(NamedTuple):
    """Which gradients of a depthwise convolution are asked for."""

    input: bool
    weight: bool
    scale: bool
    shift: bool


def _needs(ctx: Any, *positions: int) -> tuple[bool, ...]:
    """Whether the arguments there need gradients; a call may leave out the last ones, which have defaults."""
    given = ctx.needs_input_grad
    return tuple(position < len(given) and given[position] for position in positions)


def _activation_gradient(grad: Tensor, x: Tensor | None, activation: str) -> Tensor:
    """Gradient at the argument of an activation, where x is the argument or the result: their signs agree."""
    if activation == "relu":
        return _aten.threshold_backward(grad, x, 0)
    if activation == "relu6":
        return _aten.hardtanh_backward(grad, x, 0, 6)
    return grad


def _widen(tensor: Tensor) -> Tensor:
    """In the dtype that sums are kept in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _sum_pixels(grad: Tensor, like: Tensor) -> Tensor:
    """[B, C, H, W] -> [C] in the dtype of the vector."""
    return grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32)).to(like.dtype)


def _scale_rows(weight: Tensor, scale: Tensor | None) -> Tensor:
    """scale_c · weight_c..., in the dtype of the weight."""
    if scale is None:
        return weight
    wide = _widen(weight)
    return (wide * scale.to(wide.dtype).reshape(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)


def _sum_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """<a_c, b_c> for every first index c, in the dtype of the vector."""
    return (_widen(a) * _widen(b)).flatten(1).sum(1).to(like.dtype)


def _pixel_rows(image: Tensor) -> Tensor:
    """[B, C, H, W] -> [B H W, C], a view where the image is channels_last."""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


def _multiply_pixels(a: Tensor, b: Tensor, layout: torch.memory_format) -> Tensor:
    """Sum over pixels of a_o b_c: [O, C]."""
    if layout == torch.channels_last:
        return torch.matmul(_pixel_rows(a).T, _pixel_rows(b))
    return torch.matmul(a.flatten(2), b.flatten(2).transpose(1, 2)).sum(0)


def _mix_channels(image: Tensor, matrix: Tensor, layout: torch.memory_format) -> Tensor:
    """Sum over channels o of image_o matrix_oc: [B, C, H, W] in the layout."""
    batch, _, height, width = image.shape
    if layout == torch.channels_last:
        mixed = torch.matmul(_pixel_rows(image), matrix)
        return mixed.reshape(batch, height, width, matrix.shape[1]).permute(0, 3, 1, 2)
    return torch.matmul(matrix.T[None], image.flatten(2)).reshape(batch, matrix.shape[1], height, width)


def _depthwise_gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    pre_activation: str,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    output: Tensor | None,
    needs: _DepthwiseNeeds,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by input, weight, scale and shift, as they are needed; the output only where there is an activation."""
    by_input: Tensor | None = None
    by_weight = by_scale = by_shift = None
    grad = _activation_gradient(grad, output, activation).contiguous(memory_format=layout_of(input))
    if needs.shift and shift is not None:
        by_shift = _sum_pixels(grad, shift)
    if needs.weight or needs.scale:
        unscaled = _ops._depthwise_conv2d_weight_gradient(grad, input, weight.shape[2:], *geometry, pre_activation)
        by_weight = _scale_rows(unscaled, scale) if needs.weight else None
        if needs.scale and scale is not None:
            by_scale = _sum_products(weight, unscaled, scale)
    if needs.input:
        scaled = _scale_rows(weight, scale)
        by_activated = _ops._depthwise_conv2d_input_gradient(grad, scaled, input.shape[2:], *geometry)
        by_input = _activation_gradient(by_activated, input, pre_activation)
    return by_input, by_weight, by_scale, by_shift


def separable_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, depthwise, pointwise, *geometry, pre, inner_scale, inner_shift, inner, scale, shift, activation, _ = inputs
    # Gradients of shift and residual need nothing but the result.
    reads_input = any(_needs(ctx, 0, 1, 2, 7, 8, 10))
    ctx.save_for_backward(
        input if reads_input else None,
        output if activation != "none" else None,
        *(depthwise, pointwise, inner_scale, inner_shift, scale, shift),
    )
    ctx.geometry, ctx.activations = Geometry(*geometry), (pre, inner, activation)


def separable_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, output, depthwise, pointwise, inner_scale, inner_shift, scale, shift = ctx.saved_tensors
    pre, inner, activation = ctx.activations
    needs_pointwise, needs_scale, needs_shift, needs_residual = _needs(ctx, 2, 10, 11, 13)
    inner_needs = _DepthwiseNeeds(*_needs(ctx, 0, 1, 7, 8))
    by_pointwise = by_scale = None
    by_depthwise: Sequence[Tensor | None] = (None, None, None, None)
    with torch.autocast(grad.device.type, enabled=False):
        grad = _activation_gradient(grad, output, activation)
        by_shift = _sum_pixels(grad, shift) if needs_shift else None
        by_residual = grad if needs_residual else None
        if input is not None:
            layout = layout_of(input)
            grad = grad.contiguous(memory_format=layout)
            matrix = pointwise.flatten(1)
            settings = (ctx.geometry, pre, inner_scale, inner_shift, inner)
            middle: Tensor | None = None
            if needs_pointwise or needs_scale or inner != "none":
                middle = _ops._depthwise_conv2d(input, depthwise, *ctx.geometry, pre, inner_scale, inner_shift, inner)
            if middle is not None and (needs_pointwise or needs_scale):
                unscaled = _multiply_pixels(grad, middle, layout)
                by_pointwise = _scale_rows(unscaled, scale).reshape(pointwise.shape) if needs_pointwise else None
                by_scale = _sum_products(matrix, unscaled, scale) if needs_scale else None
            if any(inner_needs):
                by_middle = _mix_channels(grad, _scale_rows(matrix, scale), layout)
                by_depthwise = _depthwise_gradients(by_middle, input, depthwise, *settings, middle, inner_needs)
    by_input, by_weight, by_inner_scale, by_inner_shift = by_depthwise
    return (
        *(by_input, by_weight, by_pointwise, None, None, None),
        *(None, by_inner_scale, by_inner_shift, None, by_scale, by_shift, None, by_residual),
    )


def depthwise_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, *geometry, pre, scale, shift, activation = inputs
    reads_input = any(_needs(ctx, 0, 1, 6))
    ctx.save_for_backward(
        input if reads_input else None, output if activation != "none" else None, weight, scale, shift
    )
    ctx.geometry, ctx.activations = Geometry(*geometry), (pre, activation)


def depthwise_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, output, weight, scale, shift = ctx.saved_tensors
    pre, activation = ctx.activations
    if input is None:  # shift alone
        return (*[None] * 7, _sum_pixels(_activation_gradient(grad, output, activation), shift), None)
    by_input, by_weight, by_scale, by_shift = _depthwise_gradients(
        grad,
        input,
        weight,
        *(ctx.geometry, pre, scale, shift, activation, output),
        _DepthwiseNeeds(*_needs(ctx, 0, 1, 6, 7)),
    )
    return by_input, by_weight, None, None, None, None, by_scale, by_shift, None


def input_gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, _, *geometry = inputs
    needs_grad, needs_weight = _needs(ctx, 0, 1)
    ctx.save_for_backward(grad if needs_weight else None, weight if needs_grad else None)
    ctx.geometry, ctx.kernel_size = Geometry(*geometry), weight.shape[2:]


def input_gradient_backward(ctx: Any, by_result: Tensor) -> tuple[Any, ...]:
    grad, weight = ctx.saved_tensors
    by_grad = by_weight = None
    if weight is not None:
        by_grad = _ops._depthwise_conv2d(by_result, weight, *ctx.geometry, "none", None, None, "none")
    if grad is not None:
        by_weight = _ops._depthwise_conv2d_weight_gradient(grad, by_result, ctx.kernel_size, *ctx.geometry, "none")
    return by_grad, by_weight, None, None, None, None


def weight_gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, input, _, *geometry, pre = inputs
    needs_grad, needs_input = _needs(ctx, 0, 1)
    reads_input = needs_grad or (needs_input and pre != "none")
    ctx.save_for_backward(grad if needs_input else None, input if reads_input else None)
    ctx.geometry, ctx.pre, ctx.size = Geometry(*geometry), pre, input.shape[2:]


def weight_gradient_backward(ctx: Any, by_weight: Tensor) -> tuple[Any, ...]:
    grad, input = ctx.saved_tensors
    needs_grad, needs_input = _needs(ctx, 0, 1)
    by_grad = by_input = None
    if needs_grad:
        by_grad = _ops._depthwise_conv2d(input, by_weight, *ctx.geometry, ctx.pre, None, None, "none")
    if needs_input:
        by_input = _ops._depthwise_conv2d_input_gradient(grad, by_weight, ctx.size, *ctx.geometry)
        by_input = _activation_gradient(by_input, input, ctx.pre)
    return by_grad, by_input, None, None, None, None, None


def moments_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, *geometry, pre = inputs
    ctx.save_for_backward(input, weight, output[0])
    ctx.geometry, ctx.pre = Geometry(*geometry), pre


def moments_backward(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> tuple[Any, ...]:
    """With u = D pre(x) of n numbers a channel: its gradient is by_mean / n + 2 by_variance (u - mean) / n."""
    input, weight, mean = ctx.saved_tensors
    rows, columns = output_size(weight.shape[0], input.shape[2:], weight.shape[2], ctx.geometry)
    count = input.shape[0] * rows * columns
    slope = 2 * by_variance / count
    offset = by_mean / count - slope * mean
    grad = _ops._depthwise_conv2d(input, weight, *ctx.geometry, ctx.pre, slope, offset, "none")
    needs_input, needs_weight = _needs(ctx, 0, 1)
    needs = _DepthwiseNeeds(needs_input, needs_weight, scale=False, shift=False)
    settings = (ctx.geometry, ctx.pre, None, None, "none")
    by_input, by_weight, *_ = _depthwise_gradients(grad, input, weight, *settings, None, needs)
    return by_input, by_weight, None, None, None, None
