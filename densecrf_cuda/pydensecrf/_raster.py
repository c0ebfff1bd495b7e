"""The points of a problem as a grid: how pydensecrf fills it up, and how wide a picture is that nobody described."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._tiles import tile_order, tile_shape
from ..ops import LatticeTensors

__all__ = ["Raster", "forget_padding", "guess_width"]

_SIMD_WIDTH = 4


class Raster(NamedTuple):
    """A grid of N points, and the grid that computes it.

    pydensecrf takes points four at a time. Where N is no multiple of four, the points that are missing have features
    of zero: they carry no value, but their simplex has its vertices, which the blur then reaches. Here one more row of
    points (one more point, where there are no rows) stands for them, so that a picture keeps its tiles.
    """

    shape: tuple[int, ...]

    @property
    def points(self) -> int:
        """N."""
        return math.prod(self.shape)

    @property
    def is_padded(self) -> bool:
        """Whether there are points more than N."""
        return self.points % _SIMD_WIDTH != 0

    @property
    def computed(self) -> tuple[int, ...]:
        """The grid with its padding, of rows at its end."""
        return (self.shape[0] + 1, *self.shape[1:]) if self.is_padded else self.shape

    def padded(self, values: Tensor) -> Tensor:
        """[rows, N] with zeros for the points of the padding."""
        return pad(values, (0, math.prod(self.computed) - self.points)) if self.is_padded else values

    def coordinates(self) -> Tensor:
        """[axes, N], float32, the last axis (x) first."""
        axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in self.shape), indexing="ij")
        return torch.stack(axes[::-1]).flatten(1)


def forget_padding(lattice: LatticeTensors, raster: Raster) -> None:
    """Take the points of the padding out of the lattice of the computed grid, and leave their vertices in it.

    Points of weight zero give nothing to the splat, and the slice gives them nothing.
    """
    rows = math.prod(raster.computed[:-1])
    cols = raster.computed[-1]
    tile_rows, _ = tile_shape(raster.computed)
    # The padding lies in the last row of tiles; entries of a tile are listed by `point_order`, not in raster order.
    # Tiles of a picture have more lines than one there: with a multiple of 16 before it nothing would be padded.
    first_row = (rows - 1) // tile_rows * tile_rows
    band = (rows - first_row, cols) if rows > 1 else (cols,)
    index, tile = tile_order(band, lattice.weights.device)
    start = torch.searchsorted(tile, tile)
    order = lattice.point_order[0, first_row * cols :].long()
    position = torch.where(order < 0, ~order, order) + start
    is_padding = first_row * cols + index[position] >= raster.points
    lattice.weights[0, first_row * cols :].masked_fill_(is_padding[:, None], 0)


def guess_width(features: Tensor) -> int | None:
    """The width of the picture that features come from: the period of a coordinate, None where none is seen.

    The result does not depend on it, but neighbouring pixels are found in tiles, which is twice as fast.

    Args:
        features: [d, N] on the CPU.

    Example:
        >>> y, x = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
        >>> guess_width(torch.stack([y, x]).flatten(1))
        4
    """
    found = []
    for row in features:
        falls = row[1:] < row[:-1]
        width = int(falls.byte().argmax()) + 1 if len(falls) else 1
        if 1 < width < len(row) and len(row) % width == 0:
            lines = row.reshape(-1, width)
            if bool(falls[width - 1]) and torch.equal(lines, lines[:1].expand_as(lines)):
                found.append(width)
    return min(found, default=None)
