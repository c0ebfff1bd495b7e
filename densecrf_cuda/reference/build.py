"""`lattice_build`: from the features of every point to the vertices, tile lists and blur neighbours of a lattice."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from .._tiles import num_tiles, tile_order
from .geometry import MAX_DIMENSION, Simplex, enclose, key_coordinate, key_range_exceeded, lattice_features

GUIDE_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


class LatticeTensors(NamedTuple):
    """What `lattice_build` returns; B images of N points, E = N (d+1), T tiles an image, M vertices in all.

    Inside a tile the points of one simplex stand next to each other: simplices of most points first, else in order of
    their first point; points in row-major order inside a simplex.
    """

    weights: Tensor  # [B, N, d+1] barycentric weights; points are entries of their tile, in the order that follows
    local_ids: Tensor  # [B, N, d+1] int16, place of the vertex in the list of the point's tile
    point_order: Tensor  # [B, N] int16, position p in its tile of every entry; ~p where the simplex is the one before's
    tile_offsets: Tensor  # [B*T+1] int64, where the list of each tile starts in tile_vertices
    tile_vertices: Tensor  # [B*E] int32, vertex ids of each tile; a position in this array is a *partial*
    vertex_offsets: Tensor  # [capacity+1] int64, where the partials of each vertex start in vertex_partials
    vertex_partials: Tensor  # [B*E] int64, partials of each vertex, ascending
    neighbours: Tensor  # [d+1, capacity, 2] int32, one step back and forth along each axis, -1 where missing
    image_offsets: Tensor  # [B+1] int64, first vertex id of each image
    num_vertices: Tensor  # [] int64, M; on a GPU minus a fault word where the lattice cannot be built, see _status.py
    # [2, B*E] int16 on a GPU, else [2, 0]. By tile, from the place of its entries on: row 0 lists e (d+1) + k of its
    # entries e and vertices k by local_ids, ascending; row 1 says where in that list each vertex of the tile starts.
    splat_plan: Tensor


def lattice_build(
    guide: Tensor, bandwidth: Tensor, grid: Sequence[int], coordinates: bool, capacity: int
) -> LatticeTensors:
    """Build the permutohedral lattice of a batch of images.

    The kernel is k(f, g) = exp(-|f - g|^2 / 2) with f = (coordinates, channels) / bandwidth. Vertices are numbered in
    order of first touch: tiles in order, points in internal order, k = 0..d inside a point.

    Args:
        guide: [B, G, N] channels in raster order (uint8, half, bfloat16, float or double); G may be 0.
        bandwidth: [d] standard deviations, > 0, in the units of what they divide (pixels, grey levels); float32 or
            float64, which becomes the dtype of the lattice. d = (coordinates ? len(grid) : 0) + G.
        grid: spatial shape, N = its product; coordinates are counted from its last axis: (x, y, z, ...).
        coordinates: whether the coordinates of the grid are features.
        capacity: the most vertices that the lattice can hold.

    Returns:
        Eleven tensors, see `LatticeTensors`; `splat_plan` is empty.

    Raises:
        ValueError: wrong shapes, bandwidths that are not positive, NaN or infinite features, bandwidths so small
            that a key coordinate reaches 2**20, more vertices than capacity.
        TypeError: wrong dtypes.

    Adams, Baek & Davis, "Fast high-dimensional filtering using the permutohedral lattice", 2010, section 3.1.

    Example:
        >>> lattice = lattice_build(torch.zeros(1, 0, 375 * 500), torch.tensor([3.0, 3.0]), (375, 500), True, 30000)
        >>> int(lattice.num_vertices)
        24540
    """
    grid = tuple(int(size) for size in grid)
    _check_arguments(guide, bandwidth, grid, coordinates, capacity)
    features = lattice_features(guide.detach(), bandwidth.detach(), grid, coordinates)
    raster, tile = tile_order(grid, guide.device)
    simplex = enclose(features[:, :, raster])
    _check_features(features, bandwidth, simplex, raster)
    return _assemble(simplex, tile, num_tiles(grid), capacity)


def _assemble(simplex: Simplex, tile: Tensor, tiles: int, capacity: int) -> LatticeTensors:
    """Number the vertices, then list them by tile, by vertex and by neighbour."""
    batch, corners, points = simplex.rank.shape
    d, device, elements = corners - 1, tile.device, batch * points * corners
    image = torch.arange(batch, device=device)[:, None, None]

    keys = (key_coordinate(simplex.remainder[:, i], simplex.rank[:, i], d) for i in range(d))
    vertex, first = first_touch(chain([image.expand(batch, points, corners)], keys))
    vertices = first.numel()
    if vertices > capacity:
        raise ValueError(f"the lattice has {vertices} vertices, more than its capacity {capacity}")

    # A partial is one vertex in the list of one tile; tiles come in order, so partials are first touches as well.
    tile = (image * tiles + tile[None, :, None]).expand(batch, points, corners)
    partial, first_partial = first_touch([tile, vertex])
    counts = torch.bincount(tile.reshape(-1)[first_partial], minlength=batch * tiles)
    tile_offsets = _offsets(counts)
    listed = vertex.reshape(-1)[first_partial]
    used = listed.numel()

    vertex_offsets = torch.full((capacity + 1,), used, dtype=torch.int64, device=device)
    vertex_offsets[: vertices + 1] = _offsets(torch.bincount(listed, minlength=vertices))
    tile_vertices = torch.zeros(elements, dtype=torch.int32, device=device)
    tile_vertices[:used] = listed
    vertex_partials = torch.zeros(elements, dtype=torch.int64, device=device)
    vertex_partials[:used] = torch.argsort(listed, stable=True)

    # Keys of the vertices alone: their first touch tells the point and the corner.
    point, corner = first // corners, first % corners
    b, n = point // max(points, 1), point % max(points, 1)
    rows = [
        key_coordinate(simplex.remainder[b, i, n], simplex.rank[b, i, n], d).gather(1, corner[:, None])[:, 0]
        for i in range(d)
    ]
    neighbours = torch.full((corners, capacity, 2), -1, dtype=torch.int32, device=device)
    neighbours[:, :vertices] = _neighbours(b, rows)

    order, shared = _group_by_simplex(tile[..., 0], vertex)
    start = torch.searchsorted(tile[..., 0].reshape(-1), tile[..., 0].reshape(-1))
    in_tile = order - start[order]  # grouping stays inside a tile

    def grouped(table: Tensor) -> Tensor:
        return table.reshape(-1, corners)[order].reshape(batch, points, corners)

    image_offsets = _offsets(torch.bincount(b, minlength=batch))
    return LatticeTensors(
        weights=grouped(simplex.weights.detach().transpose(1, 2)),
        local_ids=grouped(partial - tile_offsets[tile]).to(torch.int16),
        point_order=torch.where(shared, ~in_tile, in_tile).reshape(batch, points).to(torch.int16),
        tile_offsets=tile_offsets,
        tile_vertices=tile_vertices,
        vertex_offsets=vertex_offsets,
        vertex_partials=vertex_partials,
        neighbours=neighbours,
        image_offsets=image_offsets,
        num_vertices=image_offsets[-1].clone(),
        splat_plan=torch.zeros((2, 0), dtype=torch.int16, device=device),
    )


def _group_by_simplex(tile: Tensor, vertex: Tensor) -> tuple[Tensor, Tensor]:
    """Bring points of one simplex in one tile together, the simplices of most points first.

    Args:
        tile: [B, N], ascending over the batch.
        vertex: [B, N, d+1], the vertices k = 0..d, which tell the simplex.

    Returns:
        [B*N], for every entry the internal position of its point, and whether its simplex is that of the entry before.
    """
    simplex, _ = first_touch([tile, *vertex.unbind(2)])
    simplex, order = simplex.reshape(-1).sort(stable=True)
    by_size = torch.bincount(simplex)[simplex].sort(stable=True, descending=True).indices
    by_tile = tile.reshape(-1)[order[by_size]].sort(stable=True).indices
    simplex, order = simplex[by_size[by_tile]], order[by_size[by_tile]]
    shared = torch.zeros_like(order, dtype=torch.bool)
    shared[1:] = simplex[1:] == simplex[:-1]
    return order, shared


def _neighbours(image: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """Ids of the vertices one step back and forth along each axis, [d+1, M, 2] int32, -1 where missing."""
    d, vertices = len(keys), image.numel()
    ids = torch.arange(vertices, device=image.device)
    result = torch.full((d + 1, vertices, 2), -1, dtype=torch.int32, device=image.device)
    for axis in range(d + 1):
        back = [key + (d if i == axis else -1) for i, key in enumerate(keys)]
        codes, _ = pack([torch.cat([image, image]), *(torch.cat(pair) for pair in zip(keys, back, strict=True))])
        order = torch.argsort(codes[:vertices])
        known, sought = codes[:vertices][order], codes[vertices:]
        place = torch.searchsorted(known, sought).clamp(max=max(vertices - 1, 0))
        found = known[place] == sought
        neighbour = torch.where(found, order[place], -1)
        result[axis, :, 0] = neighbour
        result[axis, neighbour[found], 1] = ids[found].to(torch.int32)  # the step forth undoes the step back
    return result


def first_touch(columns: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Number the distinct rows of a table in order of first appearance.

    Args:
        columns: int64 columns of the same shape, read one at a time.

    Returns:
        the number of every row (shape of a column) and, for every number, the row where it first appears, [M].

    Example:
        >>> first_touch([torch.tensor([7, 7, 3, 7]), torch.tensor([1, 0, 0, 1])])
        (tensor([0, 1, 2, 0]), tensor([0, 1, 2]))
    """
    codes, shape = pack(columns)
    _, inverse, counts = torch.unique(codes, return_inverse=True, return_counts=True)
    rows = torch.arange(codes.numel(), device=codes.device)
    first = torch.full_like(counts, codes.numel()).scatter_reduce_(0, inverse, rows, "amin")
    first, order = first.sort()
    number = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=codes.device))
    return number[inverse].reshape(shape), first


def pack(columns: Iterable[Tensor]) -> tuple[Tensor, torch.Size]:
    """One int64 code a row, equal where rows are equal; and the shape of a column."""
    rest = iter(columns)
    first = next(rest)
    code, size = first.reshape(-1), (int(first.max()) + 1 if first.numel() else 1)
    for column in rest:
        if code.numel() == 0:
            break
        low, high = (int(bound) for bound in torch.aminmax(column))
        span = high - low + 1
        if size * span >= 2**62:  # number the codes so far, which are fewer than there are rows
            unique, code = torch.unique(code, return_inverse=True)
            size = unique.numel()
        code = code * span + (column.reshape(-1) - low)
        size *= span
    return code, first.shape


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def check_device(owner: str, device: torch.device, **tensors: Tensor | Sequence[Tensor] | None) -> None:
    """Every tensor is on the device, which is that of the tensor called `owner`.

    Example:
        >>> check_device("guide", torch.device("cpu"), bandwidth=torch.ones(2, device="meta"))
        Traceback (most recent call last):
        ValueError: bandwidth must be on the device of guide, cpu, got meta
    """
    for name, given in tensors.items():
        for tensor in (given,) if isinstance(given, Tensor) else given or ():
            if tensor.device != device:
                raise ValueError(f"{name} must be on the device of {owner}, {device}, got {tensor.device}")


def _check_arguments(guide: Tensor, bandwidth: Tensor, grid: tuple[int, ...], coordinates: bool, capacity: int) -> None:
    if bandwidth.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"bandwidth must be float32 or float64, got {bandwidth.dtype}")
    if guide.dtype not in GUIDE_DTYPES:
        raise TypeError(f"guide must be uint8, half, bfloat16, float32 or float64, got {guide.dtype}")
    if guide.dim() != 3:
        raise ValueError(f"guide must be [B, G, N], got shape {tuple(guide.shape)}")
    if not grid or min(grid) < 0:
        raise ValueError(f"grid must hold at least one size, none negative, got {grid}")
    if math.prod(grid) != guide.shape[2]:
        raise ValueError(f"guide must have as many points as grid {grid}, {math.prod(grid)}, got {guide.shape[2]}")
    d = (len(grid) if coordinates else 0) + guide.shape[1]
    if not 1 <= d <= MAX_DIMENSION:
        raise ValueError(f"a lattice has 1 to {MAX_DIMENSION} feature dimensions, got {d}")
    if bandwidth.dim() != 1 or bandwidth.shape[0] != d:
        raise ValueError(f"bandwidth must be [{d}], one for each feature, got shape {tuple(bandwidth.shape)}")
    check_device("guide", guide.device, bandwidth=bandwidth)
    for i, value in enumerate(bandwidth.tolist()):
        if not 0 < value < math.inf:
            raise ValueError(f"bandwidths must be positive and finite, got {value:g} in dimension {i}")
    if capacity < 0:
        raise ValueError(f"capacity must not be negative, got {capacity}")


def _check_features(features: Tensor, bandwidth: Tensor, simplex: Simplex, raster: Tensor) -> None:
    bad = ~torch.isfinite(features)
    if bad.any():
        b, i, n = (int(index) for index in bad.nonzero()[0])
        value = features[b, i, n].item()
        raise ValueError(f"features must be finite, got {value} in dimension {i} of point {n} of image {b}")
    exceeded = key_range_exceeded(simplex)
    if exceeded.any():
        b, n = (int(index) for index in exceeded.nonzero()[0])
        point = int(raster[n])
        i = int(features[b, :, point].abs().argmax())
        feature, width = features[b, i, point].item(), bandwidth[i].item()
        raise ValueError(
            f"key coordinates must stay below 2^20 in magnitude, but feature dimension {i} is {feature * width:g} / "
            f"bandwidth {width:g} = {feature:g} at point {point} of image {b}: use a larger bandwidth"
        )
