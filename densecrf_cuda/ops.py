"""The operators of the lattice: public function, fake kernel and autograd of each. Schemas are in schemas.def."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._library import has_splat_plan  # which registers the operators
from ._tiles import num_tiles
from .reference.build import LatticeTensors, check_device

__all__ = ["LatticeTensors", "lattice_build", "lattice_filter"]

_ops = torch.ops.densecrf_cuda


def lattice_build(
    guide: Tensor, bandwidth: Tensor, grid: Sequence[int], coordinates: bool, capacity: int
) -> LatticeTensors:
    """Build the permutohedral lattice of a batch of images.

    Feature i of point n is f_i = (coordinate or channel)_i / bandwidth_i, and the lattice approximates the kernel
    k(n, m) = exp(-|f_n - f_m|² / 2).

    Args:
        guide: [B, G, N] channels, uint8 or floating, in row-major order of the grid; G may be 0.
        bandwidth: [d] standard deviations, > 0, in the units of what they divide; float32 or float64, which becomes
            the dtype of the lattice. d = (coordinates ? len(grid) : 0) + G, at most 48.
        grid: spatial shape; N is its product.
        coordinates: whether the grid's coordinates, from its last axis on (x, y, z, ...), come before the channels.
        capacity: the most vertices that the lattice can hold; N (d + 1) per image is always enough.

    Returns:
        eleven tensors, see `LatticeTensors`.

    Raises:
        ValueError: shapes that do not fit, tensors on several devices; on the CPU also bandwidths that are not
            positive, NaN or infinite features, a bandwidth so small that a key coordinate reaches 2**20, more vertices
            than capacity. A GPU, which nothing waits for, reports these in `num_vertices` instead.
        TypeError: wrong dtypes.

    Adams, Baek & Davis, "Fast high-dimensional filtering using the permutohedral lattice", 2010, section 3.1.

    Example:
        >>> lattice = lattice_build(torch.zeros(1, 0, 375 * 500), torch.tensor([3.0, 3.0]), [375, 500], True, 30000)
        >>> int(lattice.num_vertices)
        24540
    """
    return LatticeTensors(*_ops.lattice_build(guide, bandwidth, grid, coordinates, capacity))


def lattice_filter(
    values: Tensor,
    lattice: Sequence[Tensor],
    grid: Sequence[int],
    *,
    features: Tensor | None = None,
    splat_scale: Tensor | None = None,
    slice_scale: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """Filter values with the lattice: y = slice_scale · K (splat_scale · values), K = slice blur_d … blur_0 splat.

    Args:
        values: [B, N, C] in row-major order of the grid, any strides, in the lattice's dtype; half and bfloat16 are
            computed in float32.
        lattice: what `lattice_build` returned; its batch B' is 1 (shared) or B.
        grid: the spatial shape it was built with.
        features: [B', d, N], the features divided by their bandwidths: named only to receive gradients, which are
            exact inside a simplex and ignore that a vertex may appear or vanish across its faces.
        splat_scale: [B', N] or None for 1.
        slice_scale: [B', N] or None for 1.
        reverse: K transposed, which blurs along the axes in the opposite order.

    Returns:
        [B, N, C], contiguous. Differentiable with respect to values, scales and features; twice in values and scales.

    Raises:
        ValueError: shapes that do not fit, tensors on several devices.
        TypeError: values of another dtype than the lattice.

    Adams, Baek & Davis 2010, section 3; the gradient with respect to features is that of Krähenbühl & Koltun,
    "Parameter learning and convergent inference for dense random fields", 2013.

    Example:
        >>> lattice = lattice_build(torch.zeros(1, 0, 3), torch.tensor([1.0]), [3], True, 6)
        >>> lattice_filter(torch.tensor([[[0.0], [1.0], [0.0]]]), lattice, [3]).flatten()
        tensor([0.5893, 0.9128, 0.5715])
    """
    return _ops.lattice_filter(values, features, splat_scale, slice_scale, list(lattice), grid, reverse)


@torch.library.register_fake("densecrf_cuda::lattice_build")
def _(guide: Tensor, bandwidth: Tensor, grid: Sequence[int], coordinates: bool, capacity: int) -> tuple[Tensor, ...]:
    check_device("guide", guide.device, bandwidth=bandwidth)
    batch, points, corners = guide.shape[0], math.prod(grid), bandwidth.shape[0] + 1
    entries, tiles = batch * points * corners, batch * num_tiles(grid)

    def integers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return bandwidth.new_empty(shape, dtype=dtype)

    return (
        bandwidth.new_empty(batch, points, corners),
        integers(batch, points, corners, dtype=torch.int16),
        integers(batch, points, dtype=torch.int16),
        integers(tiles + 1),
        integers(entries, dtype=torch.int32),
        integers(capacity + 1),
        integers(entries),
        integers(corners, capacity, 2, dtype=torch.int32),
        integers(batch + 1),
        integers(),
        integers(2, entries if has_splat_plan(bandwidth.device) else 0, dtype=torch.int16),
    )


def _check_devices(lattice: Sequence[Tensor], **operands: Tensor | None) -> None:
    check_device("lattice weights", lattice[0].device, **{"lattice tensors": lattice})
    check_device("the lattice", lattice[0].device, **operands)


@torch.library.register_fake("densecrf_cuda::lattice_filter")
def _(
    values: Tensor,
    features: Tensor | None,
    splat_scale: Tensor | None,
    slice_scale: Tensor | None,
    lattice: Sequence[Tensor],
    *_: Any,
) -> Tensor:
    _check_devices(lattice, values=values, features=features, splat_scale=splat_scale, slice_scale=slice_scale)
    return torch.empty_like(values, memory_format=torch.contiguous_format)


@torch.library.register_fake("densecrf_cuda::_lattice_feature_grad")
def _(values: Tensor, grad: Tensor, features: Tensor, lattice: Sequence[Tensor], *_: Any) -> Tensor:
    _check_devices(lattice, values=values, grad=grad, features=features)
    return torch.empty_like(features, memory_format=torch.contiguous_format)


@torch.library.register_fake("densecrf_cuda::_lattice_splat")
def _(values: Tensor, splat_scale: Tensor | None, lattice: Sequence[Tensor], *_: Any) -> Tensor:
    _check_devices(lattice, values=values, splat_scale=splat_scale)
    return values.new_empty(lattice[7].shape[1], values.shape[2])


@torch.library.register_fake("densecrf_cuda::_lattice_slice")
def _(rows: Tensor, slice_scale: Tensor | None, lattice: Sequence[Tensor], *_: Any) -> Tensor:
    _check_devices(lattice, rows=rows, slice_scale=slice_scale)
    return rows.new_empty(*lattice[0].shape[:2], rows.shape[1])


@torch.library.register_fake("densecrf_cuda::_lattice_keys")
def _(guide: Tensor, bandwidth: Tensor, lattice: Sequence[Tensor], *_: Any) -> Tensor:
    _check_devices(lattice, guide=guide, bandwidth=bandwidth)
    words = -(-bandwidth.shape[0] // 3)
    return bandwidth.new_empty((lattice[7].shape[1], words), dtype=torch.int64)


def _filter_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, features, splat_scale, slice_scale, lattice, grid, reverse = inputs
    needs_values = any(ctx.needs_input_grad[1:4])
    ctx.save_for_backward(values if needs_values else None, features, splat_scale, slice_scale, *lattice)
    ctx.grid, ctx.reverse = grid, reverse


def _filter_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    values, features, splat_scale, slice_scale, *lattice = ctx.saved_tensors
    needs_values, needs_features, needs_splat, needs_slice = ctx.needs_input_grad[:4]
    settings = {"lattice": lattice, "grid": ctx.grid, "features": features}
    grad_values = grad_features = grad_splat = grad_slice = None
    if needs_splat:
        # The gradient of the scaled values serves both the values and their scale.
        scaled = lattice_filter(grad, splat_scale=slice_scale, reverse=not ctx.reverse, **settings)
        grad_values = scaled * splat_scale[..., None].to(scaled.dtype)
        grad_splat = _sum_to_scale(values, scaled, splat_scale)
    elif needs_values:
        grad_values = lattice_filter(
            grad, splat_scale=slice_scale, slice_scale=splat_scale, reverse=not ctx.reverse, **settings
        )
    if needs_slice:
        unscaled = lattice_filter(values, splat_scale=splat_scale, reverse=ctx.reverse, **settings)
        grad_slice = _sum_to_scale(grad, unscaled, slice_scale)
    if needs_features:
        splatted = values if splat_scale is None else values * splat_scale[..., None].to(values.dtype)
        sliced = grad if slice_scale is None else grad * slice_scale[..., None].to(grad.dtype)
        grad_features = _ops._lattice_feature_grad(splatted, sliced, features, lattice, ctx.grid, ctx.reverse)
    return grad_values, grad_features, grad_splat, grad_slice, [None] * len(lattice), None, None


def _sum_to_scale(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """<a, b> over channels, and over the images that share the scale."""
    products = (a.to(scale.dtype) * b.to(scale.dtype)).sum(2)
    return products.sum(0, keepdim=True) if scale.shape[0] == 1 else products


torch.library.register_autograd("densecrf_cuda::lattice_filter", _filter_backward, setup_context=_filter_setup)
