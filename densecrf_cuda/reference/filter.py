"""`lattice_filter`: splat, blur, slice; its transpose, its normalisation and its derivative by the features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._tiles import num_tiles, tile_order
from .build import LatticeTensors, check_device
from .geometry import enclose, slice_gain, weights_to_features

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NORMALIZATIONS = ("none", "before", "after", "symmetric", "homogeneous")


class Plan(NamedTuple):
    """A lattice made ready for filtering; b images (1 where the lattice is shared), vertices of all images in a row."""

    vertex: Tensor  # [b, N, d+1] int64, in raster order
    weights: Tensor  # [b, N, d+1], in raster order
    neighbours: Tensor  # [d+1, M, 2] int64, M where missing

    @property
    def d(self) -> int:
        return self.weights.shape[2] - 1


def lattice_filter(
    values: Tensor,
    features: Tensor | None,
    splat_scale: Tensor | None,
    slice_scale: Tensor | None,
    lattice: Sequence[Tensor],
    grid: Sequence[int],
    reverse: bool,
) -> Tensor:
    """Gaussian filter on the lattice: y = slice_scale · K (splat_scale · values), K = slice blur_d ... blur_0 splat.

    splat: V_v = sum_n b_nv x_n. blur along axis j: V_v + (V_(v-) + V_(v+)) / 2, where a missing neighbour is 0.
    slice: y_n = alpha sum_v b_nv V_v with alpha = 1 / (1 + 2^-d).

    Args:
        values: [B, N, C] in raster order, of the lattice's dtype; half or bfloat16 too where that is float32.
        features: [B', d, N] divided by their bandwidths, in raster order. Where it requires grad, the weights are
            computed from it, so that autograd gives the derivative inside the simplices; otherwise it is not read.
        splat_scale: [B', N] or None for 1.
        slice_scale: [B', N] or None for 1.
        lattice: the eleven tensors of `lattice_build`; B' is 1 (shared) or B, here and above.
        grid: the spatial shape that the lattice was built with.
        reverse: the transpose of K, with axes d..0: missing neighbours keep the axes from commuting.

    Returns:
        [B, N, C] contiguous in the dtype of values, computed in the dtype of the lattice.

    Raises:
        ValueError: shapes that do not fit each other.
        TypeError: values that are neither of the lattice's dtype nor half or bfloat16 with a float32 lattice.

    Adams, Baek & Davis, "Fast high-dimensional filtering using the permutohedral lattice", 2010, section 3.

    Example:
        >>> from densecrf_cuda.reference import lattice_build
        >>> lattice = lattice_build(torch.zeros(1, 0, 3), torch.tensor([1.0]), (3,), True, 12)
        >>> impulse = torch.tensor([0.0, 1.0, 0.0]).reshape(1, 3, 1)
        >>> lattice_filter(impulse, None, None, None, lattice, (3,), False).flatten()
        tensor([0.5893, 0.9128, 0.5715])
    """
    tensors = LatticeTensors(*lattice)
    check_lattice(tensors, grid)
    check_values(values, tensors)
    check_device("the lattice", tensors.weights.device, splat_scale=splat_scale, slice_scale=slice_scale)
    for name, scale in (("splat_scale", splat_scale), ("slice_scale", slice_scale)):
        _check_scale(name, scale, values)
    if features is not None:
        check_features(features, values, tensors)
    if values.numel() == 0:
        return torch.zeros_like(values, memory_format=torch.contiguous_format)
    plan = make_plan(tensors, grid)
    if features is not None and features.requires_grad and torch.is_grad_enabled():
        weights = enclose(features.to(plan.weights.dtype)).weights.transpose(1, 2)
        plan = plan._replace(weights=weights)
    dtype = plan.weights.dtype
    x = values.to(dtype)
    if splat_scale is not None:
        x = splat_scale.to(dtype)[..., None] * x
    y = apply(plan, x, reverse)
    if slice_scale is not None:
        y = slice_scale.to(dtype)[..., None] * y
    return y.to(values.dtype)


def _lattice_feature_grad(
    values: Tensor, grad: Tensor, features: Tensor, lattice: Sequence[Tensor], grid: Sequence[int], reverse: bool
) -> Tensor:
    """Derivative of <grad, K values> by the features, exact inside the simplices (K^T where reverse).

    With V = blur(splat(values)) and W = blur^T(splat(grad)) the weight of point n at vertex v has the derivative
    alpha (<grad_n, V_v> + <values_n, W_v>); the map from weights to features is linear inside a simplex.

    Args:
        values: [B, N, C], already scaled.
        grad: [B, N, C], already scaled.
        features: [B', d, N] divided by their bandwidths; B' is 1 (summed over B) or B.
        lattice: the eleven tensors of `lattice_build`, of these features.
        grid: the spatial shape.
        reverse: as in `lattice_filter`.

    Returns:
        [B', d, N] in the dtype of features.

    Raises:
        ValueError, TypeError: as `lattice_filter`.

    Krähenbühl & Koltun, "Parameter learning and convergent inference for dense random fields", 2013, section 4.

    Example:
        >>> from densecrf_cuda.reference import lattice_build
        >>> lattice = lattice_build(torch.zeros(1, 0, 3), torch.tensor([1.5]), (3,), True, 12)
        >>> x, features = torch.tensor([[[0.0], [1.0], [0.0]]]), torch.tensor([[[0.0, 1.0, 2.0]]]) / 1.5
        >>> _lattice_feature_grad(x, x, features, lattice, (3,), False).shape
        torch.Size([1, 1, 3])
    """
    tensors = LatticeTensors(*lattice)
    check_lattice(tensors, grid)
    check_values(values, tensors)
    check_features(features, values, tensors)
    if grad.shape != values.shape:
        raise ValueError(f"grad must have the shape of values, {tuple(values.shape)}, got {tuple(grad.shape)}")
    check_device("the lattice", tensors.weights.device, grad=grad)
    if values.numel() == 0:
        return torch.zeros_like(features, memory_format=torch.contiguous_format)
    plan = make_plan(tensors, grid)
    dtype, batch = plan.weights.dtype, plan.weights.shape[0]
    # A shared lattice sees the images of the batch as more channels.
    x, g = _fold(values.to(dtype), batch), _fold(grad.to(dtype), batch)
    forward, backward = blur(plan, splat(plan, x), reverse), blur(plan, splat(plan, g), not reverse)
    by_weight = [
        (g * forward[plan.vertex[..., k]]).sum(2) + (x * backward[plan.vertex[..., k]]).sum(2)
        for k in range(plan.d + 1)
    ]
    rank = enclose(features.detach().to(dtype)).rank
    return weights_to_features(slice_gain(plan.d) * torch.stack(by_weight, dim=1), rank).to(features.dtype)


def normalization_scale(lattice: Sequence[Tensor], grid: Sequence[int], normalization: str) -> Tensor:
    """The norm n of a kernel from its row sums k = K 1: 1/sqrt(k + 1e-20) if "symmetric", else 1/(k + 1e-20).

    Args:
        lattice: the eleven tensors of `lattice_build`.
        grid: the spatial shape.
        normalization: "before" (y = K(n v)), "after" (y = n K v), "symmetric" (y = n K(n v)) or "homogeneous"
            (y = K v / K 1: "after" without the epsilon).

    Returns:
        [B, N] in the dtype of the lattice.

    Raises:
        ValueError: another normalization.

    Krähenbühl & Koltun, "Parameter learning and convergent inference for dense random fields", 2013, section 3.

    Example:
        >>> from densecrf_cuda.reference import lattice_build
        >>> lattice = lattice_build(torch.zeros(1, 0, 3), torch.tensor([1.0]), (3,), True, 12)
        >>> normalization_scale(lattice, (3,), "after").shape
        torch.Size([1, 3])
    """
    weights = lattice[0]
    ones = weights.new_ones(weights.shape[0], weights.shape[1], 1)
    return norm_of_row_sums(lattice_filter(ones, None, None, None, lattice, grid, False)[..., 0], normalization)


def norm_of_row_sums(row_sums: Tensor, normalization: str) -> Tensor:
    """n from k, see `normalization_scale`."""
    if normalization not in NORMALIZATIONS[1:]:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS[1:])}, got {normalization!r}")
    # In double, as the original adds its double constant; a float would lose nothing but the reader's time.
    k = row_sums.double() + (0.0 if normalization == "homogeneous" else 1e-20)
    return (k.rsqrt() if normalization == "symmetric" else k.reciprocal()).to(row_sums.dtype)


def make_plan(lattice: LatticeTensors, grid: Sequence[int]) -> Plan:
    """Resolve tile lists to vertex ids and bring points to raster order."""
    batch, points, corners = lattice.weights.shape
    device = lattice.weights.device
    raster, tile = tile_order(grid, device)
    image = torch.arange(batch, device=device)[:, None]
    list_start = lattice.tile_offsets[image * num_tiles(grid) + tile]
    vertex = lattice.tile_vertices[list_start[..., None] + lattice.local_ids.long()].long()
    in_tile = lattice.point_order.long()
    point = raster[torch.searchsorted(tile, tile) + torch.where(in_tile < 0, ~in_tile, in_tile)]
    entry = torch.empty_like(point).scatter_(1, point, torch.arange(points, device=device).expand_as(point))
    entry = entry[..., None].expand(-1, -1, corners)
    vertices = int(lattice.num_vertices)
    neighbours = lattice.neighbours[:, :vertices].long()
    neighbours = torch.where(neighbours < 0, vertices, neighbours)
    return Plan(vertex.gather(1, entry), lattice.weights.gather(1, entry), neighbours)


def apply(plan: Plan, values: Tensor, reverse: bool) -> Tensor:
    """K values (K^T values where reverse), [B, N, C] contiguous, all in the dtype of the lattice."""
    batch, points, channels = values.shape
    x = _fold(values, plan.weights.shape[0])
    lattice_values = blur(plan, splat(plan, x), reverse)
    y = torch.zeros_like(x)
    for k in range(plan.d + 1):
        y = y + plan.weights[..., k, None] * lattice_values[plan.vertex[..., k]]
    y = y * slice_gain(plan.d)
    if y.shape[0] != batch:
        y = y.reshape(points, batch, channels).transpose(0, 1)
    return y.contiguous()


def splat(plan: Plan, values: Tensor) -> Tensor:
    """V_v = sum_n b_nv x_n: from [b, N, C] to [M, C]."""
    lattice_values = values.new_zeros(plan.neighbours.shape[1], values.shape[2])
    for k in range(plan.d + 1):
        share = plan.weights[..., k, None] * values
        lattice_values = lattice_values.index_add(0, plan.vertex[..., k].reshape(-1), share.flatten(0, 1))
    return lattice_values


def blur(plan: Plan, lattice_values: Tensor, reverse: bool) -> Tensor:
    """V_v + (V_(v-) + V_(v+)) / 2 along one axis after the other: from [M, C] to [M, C]."""
    axes = plan.neighbours.flip(0) if reverse else plan.neighbours
    missing = lattice_values.new_zeros(1, lattice_values.shape[1])
    for back, forth in (axis.unbind(1) for axis in axes):
        padded = torch.cat([lattice_values, missing])
        lattice_values = lattice_values + 0.5 * (padded[back] + padded[forth])
    return lattice_values


def _fold(values: Tensor, lattice_batch: int) -> Tensor:
    """[B, N, C] as [1, N, B*C] where B images share one lattice."""
    if values.shape[0] == lattice_batch:
        return values
    return values.transpose(0, 1).reshape(1, values.shape[1], -1)


def check_lattice(lattice: LatticeTensors, grid: Sequence[int]) -> None:
    """The points of the lattice are those of the grid, and its tensors are on one device."""
    check_device(
        "lattice weights", lattice.weights.device, **{f"lattice tensor {k}": t for k, t in lattice._asdict().items()}
    )
    points = 1
    for size in grid:
        points *= int(size)
    if lattice.weights.dim() != 3 or lattice.weights.shape[1] != points:
        raise ValueError(
            f"grid must have as many points as the lattice, got {tuple(grid)} for weights of shape "
            f"{tuple(lattice.weights.shape)}"
        )


def check_values(values: Tensor, lattice: LatticeTensors) -> None:
    """Values that the lattice can filter."""
    expected = lattice.weights.dtype
    if values.dtype not in FLOATING or torch.promote_types(values.dtype, torch.float32) != expected:
        raise TypeError(
            f"values must have the dtype of the lattice, {expected}, or be half or bfloat16 on a float32 lattice, "
            f"got {values.dtype}"
        )
    batch, points = lattice.weights.shape[:2]
    if values.dim() != 3 or values.shape[1] != points or (batch != 1 and values.shape[0] != batch):
        raise ValueError(
            f"values must be [B, {points}, C]{f' with B = {batch}' if batch != 1 else ''}, got {tuple(values.shape)}"
        )
    check_device("the lattice", lattice.weights.device, values=values)


def check_features(features: Tensor, values: Tensor, lattice: LatticeTensors) -> None:
    """Features of the lattice's own shape."""
    batch, points, corners = lattice.weights.shape
    if features.shape != (batch, corners - 1, points):
        raise ValueError(f"features must be [{batch}, {corners - 1}, {points}], got shape {tuple(features.shape)}")
    check_device("the lattice", lattice.weights.device, features=features)


def _check_scale(name: str, scale: Tensor | None, values: Tensor) -> None:
    if scale is None:
        return
    batch, points, _ = values.shape
    if scale.dim() != 2 or scale.shape[0] not in (1, batch) or scale.shape[1] != points:
        raise ValueError(f"{name} must be [1 or {batch}, {points}], got shape {tuple(scale.shape)}")
