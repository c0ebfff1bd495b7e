"""The order of points, against loops that say what it is."""

from itertools import product

import pytest
import torch

from densecrf_cuda import _tiles

GRIDS = [(5,), (256,), (600,), (1, 600), (16, 16), (17, 33), (40, 1), (3, 20, 40), (0,), (0, 4), (2, 0)]


@pytest.mark.parametrize("grid", GRIDS)
def test_points_of_a_tile_follow_each_other(grid: tuple[int, ...]) -> None:
    rows, cols = _tiles.rows_and_cols(grid)
    high, wide = _tiles.tile_shape(grid)
    raster, tile = [], []
    corners = list(product(range(0, rows, high), range(0, cols, wide)))
    for index, (top, left) in enumerate(corners):
        for row, col in product(range(top, min(top + high, rows)), range(left, min(left + wide, cols))):
            raster.append(row * cols + col)
            tile.append(index)
    got_raster, got_tile = _tiles.tile_order(grid)
    assert got_raster.tolist() == raster
    assert got_tile.tolist() == tile
    assert _tiles.num_tiles(grid) == len(corners)


def test_local_ids_fit_in_16_bits() -> None:
    from densecrf_cuda.reference.geometry import MAX_DIMENSION

    # lattice_build numbers the vertices of a tile in int16; at worst every point touches d + 1 of its own.
    assert torch.iinfo(torch.int16).max >= _tiles.TILE_POINTS * (MAX_DIMENSION + 1)
