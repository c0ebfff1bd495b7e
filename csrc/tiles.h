// The order in which points are stored and processed. Neighbouring pixels share simplices, so points are grouped in
// square tiles (or in runs where the grid is a line): what one tile touches fits in the first cache of a CPU core or
// in the shared memory of a GPU block.
#pragma once

#include "common.h"

namespace densecrf {

constexpr int kTileSide = 16;
constexpr int kTilePoints = kTileSide * kTileSide;
static_assert(kTilePoints * (kMaxDimension + 1) <= INT16_MAX, "places in a tile's list of vertices are int16");

// One tile: the rectangle of pixels it covers and where its points begin in the internal order.
struct Tile {
  int64_t row, col;  // of its first pixel
  int rows, cols;    // smaller than kTileSide at the lower and right border
  int64_t first;     // internal position of its first point

  HOST_DEVICE int points() const { return rows * cols; }
};

// A grid of `rows` × `cols` points, cut into tiles in row-major order; inside a tile points are row-major too.
struct TileGrid {
  int64_t rows, cols;

  HOST_DEVICE int64_t points() const { return rows * cols; }
  HOST_DEVICE int tile_rows() const { return rows == 1 ? 1 : kTileSide; }
  HOST_DEVICE int tile_cols() const { return rows == 1 ? kTilePoints : kTileSide; }
  HOST_DEVICE int64_t tiles_across() const { return ceil_div(cols, tile_cols()); }
  HOST_DEVICE int64_t tiles() const { return ceil_div(rows, tile_rows()) * tiles_across(); }

  HOST_DEVICE Tile tile(int64_t index) const {
    const int64_t row = index / tiles_across() * tile_rows();
    const int64_t col = index % tiles_across() * tile_cols();
    const int64_t high = min_of(tile_rows(), rows - row);
    return {row, col, static_cast<int>(high), static_cast<int>(min_of(tile_cols(), cols - col)),
            row * cols + col * high};
  }

  // Position in the caller's row-major order of the first point of row `r` of the tile.
  HOST_DEVICE int64_t raster(const Tile& tile, int r) const { return (tile.row + r) * cols + tile.col; }
};

}  // namespace densecrf
