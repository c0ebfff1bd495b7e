"""The tiles in which the lattice stores points: the Python twin of csrc/tiles.h.

Neighbouring pixels share simplices, so points are grouped in square tiles, or in runs where the grid is a line. Tiles
are in row-major order, and so are the points inside a tile; tiles at the lower and right border are smaller.
*Internal position* means the place of a point in that order, *raster index* its place in the caller's row-major order.
(The tables of a lattice reorder the points inside a tile once more, see `point_order` there.)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TILE_SIDE = 16
TILE_POINTS = TILE_SIDE * TILE_SIDE


def rows_and_cols(grid: Sequence[int]) -> tuple[int, int]:
    """The grid as a matrix: all axes but the last are its rows."""
    return math.prod(grid[:-1]), grid[-1]


def tile_shape(grid: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of one full tile."""
    rows, _ = rows_and_cols(grid)
    return (1, TILE_POINTS) if rows == 1 else (TILE_SIDE, TILE_SIDE)


def num_tiles(grid: Sequence[int]) -> int:
    """Number of tiles that cover the grid."""
    rows, cols = rows_and_cols(grid)
    tile_rows, tile_cols = tile_shape(grid)
    return math.ceil(rows / tile_rows) * math.ceil(cols / tile_cols)


def tile_order(grid: Sequence[int], device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Raster index and tile of every internal position.

    Args:
        grid: spatial shape with N points.
        device: where the results are made.

    Returns:
        raster index [N] and tile index [N], int64, both listed by internal position.

    Example:
        >>> raster, tile = tile_order((2, TILE_SIDE + 2))  # the second tile has two columns
        >>> (raster[[TILE_SIDE, 2 * TILE_SIDE]] - TILE_SIDE).tolist(), tile[[0, -1]].tolist()
        ([2, 0], [0, 1])
    """
    rows, cols = rows_and_cols(grid)
    tile_rows, tile_cols = tile_shape(grid)
    position = torch.arange(rows * cols, device=device)
    if rows * cols == 0:
        return position, position.clone()
    # A band is one row of tiles; all bands but the last are tile_rows high, all tiles but the last tile_cols wide.
    band = position // (tile_rows * cols)
    in_band = position - band * (tile_rows * cols)
    height = (rows - band * tile_rows).clamp(max=tile_rows)
    tile_col = in_band // (height * tile_cols)
    in_tile = in_band - tile_col * (height * tile_cols)
    width = (cols - tile_col * tile_cols).clamp(max=tile_cols)
    row = band * tile_rows + in_tile // width
    col = tile_col * tile_cols + in_tile % width
    return row * cols + col, band * math.ceil(cols / tile_cols) + tile_col
