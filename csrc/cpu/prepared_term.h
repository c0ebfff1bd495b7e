// A pairwise term as passes over tiles need it: scales in internal order, parameters padded to rows.
#pragma once

#include <algorithm>

#include "../lattice.h"
#include "mean_field_image.h"
#include "vertex_rows.h"

namespace densecrf {

// Norms by position in the tiles, so that a tile reads them next to each other.
template <class T>
Buffer<T> to_internal_order(const TileGrid& grid, const T* scale) {
  if (scale == nullptr) return Buffer<T>();
  Buffer<T> out(grid.points());
  for (int64_t t = 0; t < grid.tiles(); ++t) {
    const Tile tile = grid.tile(t);
    for_rows(grid, tile,
             [&](int64_t n, int p, int length) { std::copy_n(scale + n, length, out.data() + tile.first + p); });
  }
  return out;
}

template <class T>
struct PreparedTerm {
  PreparedTerm(const PairwiseTerm<T>& term, const TileGrid& grid, int64_t channels, int64_t stride)
      : term(term),
        splat_scale(to_internal_order(grid, term.splat_scale)),
        slice_scale(to_internal_order(grid, term.slice_scale)) {
    if (term.compatibility == Compatibility::potts) return;
    const int64_t rows = term.compatibility == Compatibility::matrix ? channels : 1;
    parameters = Buffer<T>(rows * stride);
    std::fill_n(parameters.data(), rows * stride, T(0));
    for (int64_t j = 0; j < rows; ++j)  // column j of the matrix: what label j does to every label
      for (int64_t c = 0; c < channels; ++c)
        parameters[j * stride + c] = term.parameters[rows == 1 ? c : c * channels + j];
  }

  void splat(const VertexRows<T>& vertices, int64_t t, const Tile& tile, const T* q, int64_t stride) const {
    vertices.clear_tile(t);
    kernels<T>().splat(tile_entries(term.lattice, tile), q, stride, from(splat_scale, tile), vertices.tile_partials(t));
  }

  // y = filtered rows of the points of a tile
  void filter(const VertexRows<T>& vertices, int64_t t, const Tile& tile, int64_t stride, T* y) const {
    std::fill_n(y, tile.points() * stride, T(0));
    slice(vertices, t, tile, stride, slice_gain<T>(term.lattice.d), y);
  }

  // x -= compatibility(y)
  void subtract_compatibility(int points, int64_t channels, T* x, const T* y) const {
    const int64_t stride = row_stride<T>(channels);
    if (term.compatibility == Compatibility::potts)
      for (int64_t i = 0; i < points * stride; ++i) x[i] += term.weight * y[i];
    else if (term.compatibility == Compatibility::diagonal)
      kernels<T>().subtract_diagonal(x, y, points, stride, parameters.data());
    else
      kernels<T>().subtract_matrix(x, y, points, stride, parameters.data(), channels);
  }

  // Both in one, without y where the compatibility is a factor; y is scratch.
  void subtract_energy(const VertexRows<T>& vertices, int64_t t, const Tile& tile, int64_t channels, T* x, T* y) const {
    const int64_t stride = row_stride<T>(channels);
    if (term.compatibility == Compatibility::potts)
      return slice(vertices, t, tile, stride, term.weight * slice_gain<T>(term.lattice.d), x);
    filter(vertices, t, tile, stride, y);
    subtract_compatibility(tile.points(), channels, x, y);
  }

  const PairwiseTerm<T>& term;
  Buffer<T> splat_scale, slice_scale, parameters;

 private:
  // Scales of the points of a tile, or null for one.
  static const T* from(const Buffer<T>& scale, const Tile& tile) {
    return scale.data() ? scale.data() + tile.first : nullptr;
  }

  void slice(const VertexRows<T>& vertices, int64_t t, const Tile& tile, int64_t stride, T factor, T* target) const {
    vertices.prefetch_tile(t + 1);
    kernels<T>().slice(tile_entries(term.lattice, tile), vertices.tile_vertices(t), vertices.rows(), stride,
                       from(slice_scale, tile), factor, target);
  }
};

}  // namespace densecrf
