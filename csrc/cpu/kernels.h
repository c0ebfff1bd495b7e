// The loops over rows of channels that one tile or one range of vertices needs, as a table of functions: compiled once
// per instruction set (isa_*.cpp), chosen once at run time. A row is the channels of one pixel or vertex, padded.
#pragma once

#include <cstdint>

#include "lattice_view.h"

namespace densecrf {

// Bytes of the smallest vector that long rows are padded to; the same for every instruction set.
constexpr int kRowUnit = 32;

// Elements of a padded row: 1, 2, 4, ... below one unit, else a multiple of the unit.
template <class T>
int64_t row_stride(int64_t channels) {
  constexpr int64_t unit = kRowUnit / sizeof(T);
  for (int64_t small = 1; small < unit; small *= 2)
    if (channels <= small) return small;
  return ceil_div(channels, unit) * unit;
}

// Elements of a buffer with a row for each point of a tile; the slack lets short rows be processed several at a time.
constexpr int64_t tile_rows_size(int64_t stride) { return kTilePoints * stride + 64; }

// Geometry of the points of one tile, one array per coordinate with kTilePoints entries each.
template <class T>
struct TileSimplices {
  T weight[(kMaxDimension + 1) * kTilePoints];
  int32_t remainder[(kMaxDimension + 1) * kTilePoints];
  int32_t rank[(kMaxDimension + 1) * kTilePoints];
  uint32_t hash[kTilePoints];  // of remainders and ranks: equal for equal simplices

  bool same(int p, int q, int d) const {
    for (int i = 0; i <= d; ++i)
      if (remainder[i * kTilePoints + p] != remainder[i * kTilePoints + q] ||
          rank[i * kTilePoints + p] != rank[i * kTilePoints + q])
        return false;
    return true;
  }
};

template <class T>
struct Kernels {
  // features: [d][kTilePoints]. Returns false where a key leaves its range or a feature is not finite.
  bool (*enclose)(const T* features, const T* scale, int d, int points, TileSimplices<T>* out);

  // Rows `in` and `out` of a tile stand in the order of its positions; p = position(order[e]) below.
  // out[p] += factor · scale[p] · sum_k weight[e, k] · rows[vertices[local_id[e, k]]]; scale may be null.
  void (*slice)(const TileEntries<T>& entries, const int32_t* vertices, const T* rows, int64_t stride, const T* scale,
                T factor, T* out);

  // out[e, k] += factor · <in[p], rows[vertices[local_id[e, k]]]>
  void (*pair)(const TileEntries<T>& entries, const int32_t* vertices, const T* rows, int64_t stride, const T* in,
               T factor, T* out);

  // partials[local_id[e, k]] += weight[e, k] · scale[p] · in[p]
  void (*splat)(const TileEntries<T>& entries, const T* in, int64_t stride, const T* scale, T* partials);

  // rows[v] = sum of partials[index] over the vertex's list, for v in [begin, end); `first` is subtracted from indices.
  void (*gather)(int64_t begin, int64_t end, const int64_t* offsets, const int64_t* indices, int64_t first,
                 const T* partials, int64_t stride, T* rows);

  // out[v] = in[v] + (in[minus] + in[plus]) / 2; ids count from `first`, and row -1 of `in` must be zero.
  void (*blur)(int64_t begin, int64_t end, const int32_t* neighbours, int64_t first, const T* in, int64_t stride,
               T* out);

  // x[p] = softmax(x[p]) or log softmax(x[p]) over the row; padding must be -infinity and becomes 0 (or -infinity).
  void (*softmax)(T* x, int points, int64_t stride, bool logarithm);

  // g[p] = q[p] ∘ (g[p] - <q[p], g[p]>): from the gradient of a softmax to that of its argument.
  void (*softmax_gradient)(const T* q, T* g, int points, int64_t stride);

  // sums += sum over p of a[p] ∘ b[p]
  void (*add_products)(const T* a, const T* b, int points, int64_t stride, T* sums);

  // x[p] -= diagonal ∘ y[p]
  void (*subtract_diagonal)(T* x, const T* y, int points, int64_t stride, const T* diagonal);

  // x[p] -= sum_j y[p, j] · columns[j], with `columns` [channels, stride] the padded transpose of the matrix.
  void (*subtract_matrix)(T* x, const T* y, int points, int64_t stride, const T* columns, int64_t channels);
};

// The best table for this processor; DENSECRF_CPU_CAPABILITY=baseline|avx2|avx512 lowers it.
template <class T>
const Kernels<T>& kernels();

}  // namespace densecrf
