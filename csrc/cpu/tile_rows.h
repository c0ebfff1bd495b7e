// Between the caller's tensors and the padded rows of one tile.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace densecrf {

// Calls function(raster position, position in the tile, length) for each row of the tile.
template <class Function>
void for_rows(const TileGrid& grid, const Tile& tile, Function function) {
  for (int r = 0; r < tile.rows; ++r) function(grid.raster(tile, r), r * tile.cols, tile.cols);
}

// Copies whole units by themselves, so that the loop over the rest is short and no call is made for a row.
template <class T>
void copy_row(const T* from, int64_t channels, T* to) {
  constexpr int64_t unit = kRowUnit / sizeof(T);
  int64_t c = 0;
  for (; c + unit <= channels; c += unit) std::memcpy(to + c, from + c, kRowUnit);
  for (; c < channels; ++c) to[c] = from[c];
}

// From rows [N, C] in the caller's order, and back.
template <class T>
void load_rows(const TileGrid& grid, const Tile& tile, const T* rows, int64_t channels, int64_t stride, T* x) {
  for_rows(grid, tile, [&](int64_t n, int p, int length) {
    for (int i = 0; i < length; ++i) {
      T* row = x + (p + i) * stride;
      copy_row(rows + (n + i) * channels, channels, row);
      for (int64_t c = channels; c < stride; ++c) row[c] = T(0);
    }
  });
}

template <class T>
void store_rows(const TileGrid& grid, const Tile& tile, const T* x, int64_t channels, int64_t stride, T* rows) {
  for_rows(grid, tile, [&](int64_t n, int p, int length) {
    for (int i = 0; i < length; ++i) copy_row(x + (p + i) * stride, channels, rows + (n + i) * channels);
  });
}

// From channels [C, N] with any strides, and back to contiguous ones.
template <class T>
void load_channels(const TileGrid& grid, const Tile& tile, const T* from, int64_t channel_stride, int64_t point_stride,
                   int64_t channels, int64_t stride, T padding, T* x) {
  for_rows(grid, tile, [&](int64_t n, int p, int length) {
    T* rows = x + p * stride;
    for (int64_t c = 0; c < stride; ++c)
      for (int i = 0; i < length; ++i)
        rows[i * stride + c] = c < channels ? from[c * channel_stride + (n + i) * point_stride] : padding;
  });
}

template <class T>
void store_channels(const TileGrid& grid, const Tile& tile, const T* x, int64_t channels, int64_t stride, T factor,
                    T* to) {
  for_rows(grid, tile, [&](int64_t n, int p, int length) {
    const T* rows = x + p * stride;
    for (int64_t c = 0; c < channels; ++c)
      for (int i = 0; i < length; ++i) to[c * grid.points() + n + i] = factor * rows[i * stride + c];
  });
}

}  // namespace densecrf
