"""What the operators of the separable convolution refuse. Nothing here reads the data of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .build import check_device
from .filter import FLOATING

ACTIVATIONS = ("none", "relu", "relu6")
KERNELS = (1, 3, 5, 7)
LIMIT = 2**31 - 1


class Geometry(NamedTuple):
    """How the taps lie on the image."""

    stride: Sequence[int]  # (vertical, horizontal)
    padding: Sequence[int]  # (left, right, top, bottom)
    dilation: Sequence[int]  # (vertical, horizontal)


def layout_of(tensor: Tensor) -> torch.memory_format:
    """The layout of results: channels_last or contiguous, whichever the strides of the image come closer to."""
    return torch._prims_common.suggest_memory_format(tensor)


def check_activation(name: str, value: str) -> None:
    if value not in ACTIVATIONS:
        raise ValueError(f"{name} must be none, relu or relu6, got {value}")


def _check_image(name: str, tensor: Tensor, shape: str) -> None:
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} must be float, double, half or bfloat16, got {tensor.dtype}")
    if tensor.dim() != 4:
        raise ValueError(f"{name} must be {shape}, got {list(tensor.shape)}")


def _check_like(name: str, tensor: Tensor, owner: str, like: Tensor) -> None:
    check_device(owner, like.device, **{name: tensor})
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of {owner}, {like.dtype}, got {tensor.dtype}")


def _check_sizes(name: str, tensor: Tensor, sizes: Sequence[int]) -> None:
    if list(tensor.shape) != list(sizes):
        raise ValueError(f"{name} must be {list(sizes)}, got {list(tensor.shape)}")


def _check_vector(name: str, vector: Tensor | None, channels: int, input: Tensor) -> None:
    if vector is None:
        return
    check_device("input", input.device, **{name: vector})
    if not vector.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype, got {vector.dtype}")
    if vector.dim() != 1 or vector.shape[0] != channels:
        raise ValueError(f"{name} must be [{channels}], got {list(vector.shape)}")


def _check_weight(name: str, weight: Tensor, owner: str, image: Tensor) -> None:
    _check_like(name, weight, owner, image)
    channels = image.shape[1]
    if weight.dim() != 4 or list(weight.shape[:2]) != [channels, 1] or weight.shape[2] != weight.shape[3]:
        raise ValueError(
            f"{name} must be [C, 1, k, k] with the C = {channels} channels of {owner}, got {list(weight.shape)}"
        )


def output_size(channels: int, size: Sequence[int], kernel: int, geometry: Geometry) -> tuple[int, int]:
    """Rows and columns of the result: floor((H + top + bottom - dilation (k - 1) - 1) / stride) + 1.

    Example:
        >>> output_size(3, (33, 33), 3, Geometry((2, 2), (1, 1, 1, 1), (1, 1)))
        (17, 17)
    """
    stride, padding, dilation = geometry
    if kernel not in KERNELS:
        raise ValueError(f"the kernel must be 1, 3, 5 or 7 wide, got {kernel}")
    if len(stride) != 2 or any(step not in (1, 2) for step in stride):
        raise ValueError(f"stride must be two numbers, each 1 or 2, got {list(stride)}")
    if len(dilation) != 2 or any(not 1 <= step <= LIMIT for step in dilation):
        raise ValueError(f"dilation must be two numbers from 1 to {LIMIT}, got {list(dilation)}")
    if len(padding) != 4:
        raise ValueError(f"padding must be (left, right, top, bottom), got {list(padding)}")
    if any(not 0 <= side <= LIMIT for side in padding):
        raise ValueError(f"padding must be from 0 to {LIMIT}, got {list(padding)}")
    left, right, top, bottom = padding
    padded = (size[0] + top + bottom, size[1] + left + right)
    spans = tuple(step * (kernel - 1) + 1 for step in dilation)
    if padded[0] < spans[0] or padded[1] < spans[1]:
        raise ValueError(
            f"the padded image must be at least as large as the dilated kernel, {spans[0]} x {spans[1]}, "
            f"got {padded[0]} x {padded[1]}"
        )
    if channels < 1:
        raise ValueError(f"the image must have at least one channel, got {channels}")
    return (padded[0] - spans[0]) // stride[0] + 1, (padded[1] - spans[1]) // stride[1] + 1


def check_depthwise(
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    pre_activation: str,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    prefix: str = "",
) -> tuple[int, int]:
    """Checks the arguments, whose names begin with the prefix; returns rows and columns of the result."""
    _check_image("input", input, "[B, C, H, W]")
    _check_weight(f"{prefix}weight", weight, "input", input)
    channels = input.shape[1]
    size = output_size(channels, input.shape[2:], weight.shape[2], geometry)
    check_activation("pre_activation", pre_activation)
    _check_vector(f"{prefix}scale", scale, channels, input)
    _check_vector(f"{prefix}shift", shift, channels, input)
    check_activation(f"{prefix}activation", activation)
    return size


def check_moments(input: Tensor, weight: Tensor, geometry: Geometry, pre_activation: str) -> None:
    check_depthwise(input, weight, geometry, pre_activation, None, None, "none")
    if input.shape[0] == 0:
        raise ValueError(f"input must have at least one image to take moments of, got {list(input.shape)}")


def check_input_gradient(grad: Tensor, weight: Tensor, input_size: Sequence[int], geometry: Geometry) -> None:
    _check_image("grad", grad, "[B, C, H', W']")
    _check_weight("weight", weight, "grad", grad)
    if len(input_size) != 2 or min(input_size) < 0:
        raise ValueError(f"input_size must be two numbers, not negative, got {list(input_size)}")
    size = output_size(grad.shape[1], input_size, weight.shape[2], geometry)
    _check_sizes("grad", grad, (*grad.shape[:2], *size))


def check_weight_gradient(
    grad: Tensor, input: Tensor, kernel_size: Sequence[int], geometry: Geometry, pre_activation: str
) -> None:
    _check_image("input", input, "[B, C, H, W]")
    _check_like("grad", grad, "input", input)
    if len(kernel_size) != 2 or kernel_size[0] != kernel_size[1]:
        raise ValueError(f"kernel_size must be two equal numbers, got {list(kernel_size)}")
    size = output_size(input.shape[1], input.shape[2:], kernel_size[0], geometry)
    _check_sizes("grad", grad, (*input.shape[:2], *size))
    check_activation("pre_activation", pre_activation)


def check_separable(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    geometry: Geometry,
    pre_activation: str,
    depthwise_scale: Tensor | None,
    depthwise_shift: Tensor | None,
    depthwise_activation: str,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> tuple[int, ...]:
    """Checks the arguments; returns the shape of the result."""
    depthwise = (pre_activation, depthwise_scale, depthwise_shift, depthwise_activation)
    size = check_depthwise(input, depthwise_weight, geometry, *depthwise, prefix="depthwise_")
    _check_like("pointwise_weight", pointwise_weight, "input", input)
    channels, shape = input.shape[1], list(pointwise_weight.shape)
    if len(shape) not in (2, 4) or shape[1] != channels or shape[2:] not in ([], [1, 1]):
        raise ValueError(
            f"pointwise_weight must be [O, C] or [O, C, 1, 1] with the C = {channels} channels of input, got {shape}"
        )
    _check_vector("scale", scale, shape[0], input)
    _check_vector("shift", shift, shape[0], input)
    check_activation("activation", activation)
    result = (input.shape[0], shape[0], *size)
    if residual is not None:
        _check_like("residual", residual, "input", input)
        _check_sizes("residual", residual, result)
    return result


def check_out(out: Tensor, shape: Sequence[int], input: Tensor, operands: Sequence[Tensor | None]) -> None:
    _check_like("out", out, "input", input)
    _check_sizes("out", out, shape)
    if any(size > 1 and stride == 0 for size, stride in zip(out.shape, out.stride(), strict=True)):
        raise ValueError(f"out must not be an expanded tensor, got strides {list(out.stride())}")
    for operand in operands:
        if operand is not None and _may_overlap(out, operand):
            raise ValueError(
                f"out must not share memory with an argument, got one of shape {list(operand.shape)} that does"
            )


def _may_overlap(a: Tensor, b: Tensor) -> bool:
    """Whether writing one tensor may change the other. Two slices of the channels of one buffer are told apart."""

    def span(tensor: Tensor) -> int:
        axes = zip(tensor.shape, tensor.stride(), strict=True)
        return (1 + sum((size - 1) * stride for size, stride in axes)) * tensor.element_size()

    if a.numel() == 0 or b.numel() == 0 or a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    shift = a.storage_offset() * a.element_size() - b.storage_offset() * b.element_size()
    if shift >= span(b) or -shift >= span(a):
        return False
    if a.dim() != 4 or a.stride() != b.stride() or a.element_size() != b.element_size():
        return True
    # Both repeat with the period of the buffer: its pixels where channels are next to each other, else its images.
    by_pixel = a.stride(1) == 1
    period = a.stride(3 if by_pixel else 0) * a.element_size()
    widths = [tensor.shape[1] * tensor.element_size() if by_pixel else span(tensor[0]) for tensor in (a, b)]
    return period == 0 or shift % period < widths[1] or shift % period + widths[0] > period
