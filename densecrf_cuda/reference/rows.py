"""The two ends of `lattice_filter` by themselves, and the keys by which the vertices of several lattices meet."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .build import LatticeTensors, check_device
from .filter import check_lattice, check_values, make_plan, splat
from .geometry import KEY_LIMIT, enclose, key_coordinate, lattice_features, slice_gain

FIELD_BITS, FIELDS_PER_WORD = 21, 3


def _lattice_splat(
    values: Tensor, splat_scale: Tensor | None, lattice: Sequence[Tensor], grid: Sequence[int]
) -> Tensor:
    """V_v = sum_n b_nv scale_n x_n: what `lattice_filter` blurs.

    Args:
        values: [B, N, C] in raster order, of the lattice's dtype; half or bfloat16 too where that is float32.
        splat_scale: [B or 1, N] or None for 1.
        lattice: the eleven tensors of `lattice_build`, of the same batch.
        grid: the spatial shape that it was built with.

    Returns:
        [capacity, C], zero beyond the vertices that there are.

    Raises:
        ValueError, TypeError: as `lattice_filter`.

    Example:
        >>> from densecrf_cuda.reference import lattice_build
        >>> lattice = lattice_build(torch.zeros(1, 0, 3), torch.tensor([1.0]), (3,), True, 6)
        >>> round(float(_lattice_splat(torch.ones(1, 3, 1), None, lattice, (3,)).sum()), 6)  # weights sum to 1
        3.0
    """
    tensors = LatticeTensors(*lattice)
    check_lattice(tensors, grid)
    check_values(values, tensors)
    if values.shape[0] != tensors.weights.shape[0]:
        raise ValueError(
            f"values must have the batch of the lattice, {tensors.weights.shape[0]}, got {tuple(values.shape)}"
        )
    dtype = tensors.weights.dtype
    rows = values.new_zeros(tensors.neighbours.shape[1], values.shape[2], dtype=dtype)
    if values.numel() > 0:
        x = values.to(dtype)
        if splat_scale is not None:
            check_device("the lattice", tensors.weights.device, splat_scale=splat_scale)
            x = splat_scale.to(dtype)[..., None] * x
        rows[: int(tensors.num_vertices)] = splat(make_plan(tensors, grid), x)
    return rows.to(values.dtype)


def _lattice_slice(rows: Tensor, slice_scale: Tensor | None, lattice: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """y_n = scale_n alpha sum_v b_nv V_v with alpha = 1 / (1 + 2^-d): the end of `lattice_filter`.

    Args:
        rows: [capacity, C], of the lattice's dtype; half or bfloat16 too where that is float32.
        slice_scale: [B or 1, N] or None for 1.
        lattice: the eleven tensors of `lattice_build`.
        grid: the spatial shape that it was built with.

    Returns:
        [B, N, C] in raster order, contiguous.

    Raises:
        ValueError, TypeError: as `lattice_filter`.

    Example:
        >>> from densecrf_cuda.reference import lattice_build
        >>> lattice = lattice_build(torch.zeros(1, 0, 3), torch.tensor([1.0]), (3,), True, 6)
        >>> _lattice_slice(torch.ones(6, 1), None, lattice, (3,)).flatten()  # 2/3 in one dimension
        tensor([0.6667, 0.6667, 0.6667])
    """
    tensors = LatticeTensors(*lattice)
    check_lattice(tensors, grid)
    capacity = tensors.neighbours.shape[1]
    if rows.dim() != 2 or rows.shape[0] != capacity:
        raise ValueError(f"rows must be [{capacity}, C], got {tuple(rows.shape)}")
    check_device("the lattice", tensors.weights.device, rows=rows, slice_scale=slice_scale)
    batch, points, corners = tensors.weights.shape
    dtype = tensors.weights.dtype
    y = rows.new_zeros(batch, points, rows.shape[1], dtype=dtype)
    if y.numel() > 0:
        plan = make_plan(tensors, grid)
        for k in range(corners):
            y = y + plan.weights[..., k, None] * rows.to(dtype)[plan.vertex[..., k]]
        y = slice_gain(plan.d) * y
        if slice_scale is not None:
            y = slice_scale.to(dtype)[..., None] * y
    return y.to(rows.dtype)


def _lattice_keys(
    guide: Tensor, bandwidth: Tensor, lattice: Sequence[Tensor], grid: Sequence[int], coordinates: bool
) -> Tensor:
    """The keys of all vertices: equal keys are the same vertex, also in the lattice of another part of the picture.

    Args:
        guide, bandwidth, grid, coordinates: what the lattice was built from, see `lattice_build`.
        lattice: its eleven tensors.

    Returns:
        [capacity, ceil(d / 3)] int64: the first d coordinates, 2**20 added to each, 21 bits each from the lowest on;
        zero beyond the vertices that there are.

    Raises:
        ValueError: shapes that do not fit each other.

    Adams, Baek & Davis 2010, section 3.1.

    Example:
        >>> from densecrf_cuda.reference import lattice_build
        >>> problem = (torch.zeros(1, 0, 2), torch.tensor([1.0]))
        >>> lattice = lattice_build(*problem, (2,), True, 4)
        >>> (_lattice_keys(*problem, lattice, (2,), True)[: int(lattice.num_vertices), 0] - 2**20).tolist()
        [0, 1, 2]
    """
    tensors = LatticeTensors(*lattice)
    check_lattice(tensors, grid)
    check_device("the lattice", tensors.weights.device, guide=guide, bandwidth=bandwidth)
    batch, _, corners = tensors.weights.shape
    d = corners - 1
    if guide.shape[0] != batch or bandwidth.shape != (d,):
        raise ValueError(
            f"guide and bandwidth must be those of the lattice, with {batch} images and {d} dimensions, got "
            f"{tuple(guide.shape)} and {tuple(bandwidth.shape)}"
        )
    words = -(-d // FIELDS_PER_WORD)
    keys = torch.zeros(tensors.neighbours.shape[1], words, dtype=torch.int64, device=guide.device)
    if tensors.weights.numel() == 0:
        return keys
    vertex = make_plan(tensors, grid).vertex
    simplex = enclose(lattice_features(guide, bandwidth, grid, coordinates))
    for i in range(d):
        coordinate = key_coordinate(simplex.remainder[:, i], simplex.rank[:, i], d) + KEY_LIMIT
        column = torch.zeros(len(keys), dtype=torch.int64, device=guide.device)
        column[vertex.reshape(-1)] = coordinate.reshape(-1)  # the same from every point of a vertex
        keys[:, i // FIELDS_PER_WORD] |= column << (FIELD_BITS * (i % FIELDS_PER_WORD))
    return keys
