"""Geometry of points on the permutohedral lattice: the Python twin of csrc/lattice.h.

The lattice in d dimensions lives in the hyperplane of R^(d+1) where coordinates sum to zero (Adams, Baek & Davis,
"Fast high-dimensional filtering using the permutohedral lattice", 2010, section 3). The order of the floating-point
operations is part of the contract: every implementation finds the same simplex for the same feature.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A key coordinate of this magnitude or above is refused: three of them share a 64-bit word in the compiled operators.
KEY_LIMIT = 1 << 20
# The d + 1 corners of a simplex are kept on the stack there; beyond this the lattice is of no use to anybody.
MAX_DIMENSION = 48


class Simplex(NamedTuple):
    """The simplices that enclose points; every field is [B, d+1, N] except where said."""

    remainder: Tensor  # the vertex 0 of each simplex, whole numbers in the dtype of the features
    rank: Tensor  # int64, a permutation of 0..d for each point
    weights: Tensor  # barycentric weights: weights[:, k] belongs to vertex k


def elevation_scales(d: int, dtype: torch.dtype) -> list[float]:
    """s_i = sqrt(2/3) (d+1) / sqrt((i+1)(i+2)): makes one blur, in lattice steps, a Gaussian of unit variance."""
    # Rounded to the dtype twice, as the original code does with its `float inv_std_dev`.
    deviation = torch.tensor(math.sqrt(2.0 / 3.0) * (d + 1), dtype=dtype).item()
    return [torch.tensor(deviation / math.sqrt((i + 1) * (i + 2)), dtype=dtype).item() for i in range(d)]


def slice_gain(d: int) -> float:
    """alpha = 1 / (1 + 2^-d): the gain of splat, blur and slice that the slice takes back."""
    return 1.0 / (1.0 + 2.0**-d)


def grid_coordinates(grid: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Coordinates of the points of a grid, counted from its last axis: x, y, z, ... as [len(grid), N]."""
    axes = [torch.arange(size, device=device).to(dtype) for size in grid]
    mesh = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([axis.reshape(-1) for axis in reversed(mesh)])


def lattice_features(guide: Tensor, bandwidth: Tensor, grid: Sequence[int], coordinates: bool) -> Tensor:
    """Features of every point: f_i = (coordinate or channel)_i / bandwidth_i.

    Args:
        guide: [B, G, N] channels (uint8 or floating point), in raster order.
        bandwidth: [d] in the units of what it divides, > 0; its dtype is that of the result.
        grid: spatial shape, N = its product.
        coordinates: whether the grid's coordinates (x, y, z, ...) come before the channels.

    Returns:
        [B, d, N], differentiable with respect to guide and bandwidth.

    Example:
        >>> lattice_features(torch.zeros(1, 0, 4), torch.tensor([2.0, 1.0]), (2, 2), True)[0]
        tensor([[0.0000, 0.5000, 0.0000, 0.5000],
                [0.0000, 0.0000, 1.0000, 1.0000]])
    """
    channels = guide.to(bandwidth.dtype)
    if coordinates:
        position = grid_coordinates(grid, bandwidth.dtype, guide.device)
        channels = torch.cat([position.expand(guide.shape[0], -1, -1), channels], dim=1)
    return channels / bandwidth[:, None]


def elevate(features: Tensor) -> Tensor:
    """Map features [B, d, N] to the hyperplane, [B, d+1, N]: e_j = sum_{i>j} c_i - j c_j with c_j = s_j f_j."""
    d = features.shape[1]
    scales = elevation_scales(d, features.dtype)
    total = torch.zeros_like(features[:, 0])
    elevated = []
    for j in range(d, 0, -1):
        c = features[:, j - 1] * scales[j - 1]
        elevated.append(total - c * j)
        total = total + c
    elevated.append(total)
    return torch.stack(elevated[::-1], dim=1)


def enclose(features: Tensor) -> Simplex:
    """The simplex around every point, differentiable with respect to features through the weights alone.

    Args:
        features: [B, d, N] float32 or float64, already divided by the bandwidths.

    Example:
        >>> enclose(torch.zeros(1, 2, 1)).weights.flatten().tolist()
        [1.0, 0.0, 0.0]
    """
    elevated = elevate(features)
    steps = elevated.shape[1]  # d + 1, the distance between neighbouring remainder-0 points along one coordinate
    inverse = (torch.ones((), dtype=features.dtype) / steps).item()

    # The nearest point whose coordinates are multiples of d + 1; its coordinates sum to shift * (d + 1), not yet to 0.
    nearest = torch.round(elevated.detach() * inverse)  # ties to even
    remainder = nearest * steps
    shift = nearest.sum(1, keepdim=True).clamp(-KEY_LIMIT, KEY_LIMIT).nan_to_num().long()

    # Rank coordinates by their distance to it, largest first; ties raise the later one.
    offset = elevated.detach() - remainder
    rank = torch.zeros_like(offset, dtype=torch.int64)
    for i in range(steps - 1):
        less = offset[:, i : i + 1] < offset[:, i + 1 :]
        rank[:, i] += less.sum(1)
        rank[:, i + 1 :] += ~less

    # Walk back onto the hyperplane along the coordinates that are first or last in that order.
    rank += shift
    correction = steps * ((rank < 0).long() - (rank >= steps).long())
    rank += correction
    remainder = remainder + correction
    return Simplex(remainder, rank, barycentric_weights(elevated, remainder, rank, inverse))


def barycentric_weights(elevated: Tensor, remainder: Tensor, rank: Tensor, inverse: float) -> Tensor:
    """b_k = t_(d-k) - t_(d-k+1), b_0 = t_d + (1 - t_0), where t_r is the offset of rank r divided by d + 1."""
    offset = (elevated - remainder) * inverse
    # Clamped because the ranks of NaN and of features out of range, which are refused later, are no permutation.
    place = rank.clamp(0, rank.shape[1] - 1)
    coordinate = torch.arange(rank.shape[1], device=rank.device)[:, None].expand_as(rank)
    position = torch.zeros_like(rank).scatter_(1, place, coordinate)
    ordered = offset.gather(1, position)
    first = ordered[:, -1:] + (1 - ordered[:, :1])
    return torch.cat([first, ordered[:, :-1].flip(1) - ordered[:, 1:].flip(1)], dim=1)


def key_range_exceeded(simplex: Simplex) -> Tensor:
    """Whether a vertex of the simplex has a coordinate of magnitude >= KEY_LIMIT (or NaN): [B, N] bool."""
    remainder, rank, _ = simplex
    d = remainder.shape[1] - 1
    # Over its vertices a coordinate runs from remainder - rank to remainder + d - rank.
    inside = (remainder + (d - rank).to(remainder.dtype) < KEY_LIMIT) & (remainder - rank > -KEY_LIMIT)
    return ~inside.all(1)


def key_coordinate(remainder: Tensor, rank: Tensor, d: int) -> Tensor:
    """One coordinate of the vertices k = 0..d, from [...] to [..., d+1] int64."""
    k = torch.arange(d + 1, device=rank.device)
    return remainder.long()[..., None] + torch.where(rank[..., None] <= d - k, k, k - (d + 1))


def weights_to_features(grad_weights: Tensor, rank: Tensor) -> Tensor:
    """The transpose of the derivative of the barycentric weights, which is constant inside a simplex.

    Args:
        grad_weights: [B, d+1, N], gradient with respect to `Simplex.weights`.
        rank: [B, d+1, N] of the same simplices.

    Returns:
        [B, d, N], gradient with respect to the features.
    """
    d = rank.shape[1] - 1
    vertex = d - rank
    offset = grad_weights.gather(1, vertex) - grad_weights.gather(1, (vertex + 1) % (d + 1))
    elevated = offset / (d + 1)
    j = torch.arange(1, d + 1, device=rank.device, dtype=elevated.dtype)[:, None]
    scales = torch.tensor(elevation_scales(d, elevated.dtype), dtype=elevated.dtype, device=rank.device)[:, None]
    return scales * (elevated.cumsum(1)[:, :-1] - j * elevated[:, 1:])
