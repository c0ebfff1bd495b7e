// The fused update: one block takes one tile from the blurred vertices of all lattices to Q, and on to the partials of
// the next iteration. Logits and Q of the tile stay in shared memory.
#pragma once

#include <type_traits>

#include "mean_field.h"
#include "pixel_update.cuh"
#include "tile_points.cuh"

namespace densecrf::cuda {

// y of one entry: its corners' vertices, weighted.
template <int R, class S>
__device__ __forceinline__ PixelRow<R> slice_entry(const RowBuffers<float, S>& rows, const TilePlace& place, int e) {
  const LatticeView<float>& lattice = rows.lattice;
  const int64_t entry = (place.first_point + e) * lattice.corners();
  const int32_t* tile_vertices = lattice.tile_vertices + lattice.tile_offsets[place.index];
  const S* vertices = rows.vertices(place.image);
  PixelRow<R> y{};
  for (int k = 0; k < lattice.corners(); ++k) {
    const S* row = vertices + static_cast<int64_t>(tile_vertices[lattice.local_ids[entry + k]]) * (R * kVector);
    const float weight = lattice.weights[entry + k];
#pragma unroll
    for (int i = 0; i < R; ++i) add_scaled(y.of[i], weight, load_row<float, kVector>(row + i * kVector));
  }
  return y;
}

// x -= compatibility(factor · y). `matrix` holds the columns of a matrix, padded, in shared memory; kernels for terms
// without one keep the registers that it would take.
template <int R, bool HasMatrix>
__device__ __forceinline__ void subtract_energy(const Term<float>& term, const Vector<float, kVector>* matrix,
                                                int channels, float factor, PixelRow<R>& y, Vector<float, kVector>* x) {
  if (term.compatibility == Compatibility::potts) {
    const float weight = *term.compat * factor;
#pragma unroll
    for (int i = 0; i < R; ++i) add_scaled(x[i], weight, y.of[i]);
  } else if (term.compatibility == Compatibility::diagonal) {
#pragma unroll
    for (int c = 0; c < R * kVector; ++c)
      if (c < channels) x[c / kVector].of[c % kVector] -= term.compat[c] * (factor * y.at(c));
  } else if constexpr (HasMatrix) {
    PixelRow<R> sum{};
#pragma unroll
    for (int j = 0; j < R * kVector; ++j) {
      const float scaled = factor * y.at(j);
#pragma unroll
      for (int i = 0; i < R; ++i) add_scaled(sum.of[i], scaled, matrix[j * R + i]);
    }
#pragma unroll
    for (int i = 0; i < R; ++i) add_scaled(x[i], -1.0f, sum.of[i]);
  }
}

// Column j of the matrix, or of its transpose, is row j here: what label j does to every label is read in vectors.
template <int R>
__device__ __forceinline__ void load_matrix(const float* compat, int channels, bool transposed, float* matrix) {
  for (int i = threadIdx.x; i < R * kVector * R * kVector; i += kBlockThreads) {
    const int j = i / (R * kVector), c = i % (R * kVector);
    const bool exists = j < channels && c < channels;
    matrix[i] = exists ? compat[transposed ? j * channels + c : c * channels + j] : 0.0f;
  }
}

// Partials of the block's tile for all lattices, from the rows of its points; each thread names its own point, where it
// has one. The whole block calls it.
template <class S>
__device__ __forceinline__ void splat_terms(const FusedTerms<S>& terms, bool inside, int64_t image, int64_t point,
                                            const Vector<float, kVector>* tile_x) {
  __shared__ float scales[kTilePoints];
  __shared__ int16_t positions[kTilePoints];
  const int p = threadIdx.x;
  for (int t = 0; t < terms.rows.count; ++t) {
    const RowBuffers<float, S>& rows = terms.rows.of[t];
    if (rows.lattice.failed()) continue;
    const TilePlace place(rows.lattice, blockIdx.x);
    if (inside) {
      scales[p] = terms.of[t].splat_scale.at(image, point);
      positions[p] = static_cast<int16_t>(place.position(rows.lattice, p));
    }
    __syncthreads();
    splat_tile<float, S, kVector>(rows, place, tile_x, positions, scales);
    __syncthreads();
  }
}

// Bytes of shared memory of one tile, and of a matrix where there is one.
template <int R>
constexpr int64_t update_memory(bool matrix) {
  return static_cast<int64_t>(sizeof(float)) * kVector *
         (kTilePoints * tile_stride(R) + (matrix ? R * kVector * R : 0));
}

// Calls function(vectors of a pixel's row) with a constant.
template <class Function>
void with_vectors(int channels, Function function) {
  switch (ceil_div(channels, kVector)) {
    case 1:
      return function(std::integral_constant<int, 1>{});
    case 2:
      return function(std::integral_constant<int, 2>{});
    case 3:
      return function(std::integral_constant<int, 3>{});
    case 4:
      return function(std::integral_constant<int, 4>{});
    case 5:
      return function(std::integral_constant<int, 5>{});
    case 6:
      return function(std::integral_constant<int, 6>{});
    case 7:
      return function(std::integral_constant<int, 7>{});
    case 8:
      return function(std::integral_constant<int, 8>{});
    default:
      throw std::invalid_argument("the fused way takes 1 to 32 labels");
  }
}

// As many blocks to a multiprocessor as leave each thread the registers it needs.
template <int R, bool HasMatrix>
constexpr int kUpdateBlocks = HasMatrix && R > 3   ? 1
                              : HasMatrix || R > 1 ? 2
                                                   : 3;

template <int R, bool HasMatrix, class S>
__global__ void __launch_bounds__(kBlockThreads, kUpdateBlocks<R, HasMatrix>)
    update_kernel(MeanFieldProblem<float> problem, FusedTerms<S> terms, int iteration) {
  DENSECRF_DYNAMIC_SHARED(char, memory);
  constexpr int stride = tile_stride(R);
  auto* tile_x = reinterpret_cast<Vector<float, kVector>*>(memory);  // [points][stride]: logits, then Q
  auto* matrix = tile_x + kTilePoints * stride;                      // [R · kVector][R], where a term has one
  const int p = threadIdx.x, channels = problem.channels;
  const int64_t image = blockIdx.x / problem.grid.tiles();
  if (has_stopped(problem, image, iteration)) return;
  const Tile tile = problem.grid.tile(blockIdx.x % problem.grid.tiles());
  const bool inside = p < tile.points();
  const int64_t point = raster_of(problem.grid, tile, p);

  // 1. Logits: the unary, then the energies of all terms. Entries of a lattice have an order of their own.
  if (inside) {
    const float* unary = problem.unary.at(image, point);
#pragma unroll 8
    for (int c = 0; c < R * kVector; ++c)
      tile_x[p * stride + c / kVector].of[c % kVector] =
          c < channels ? -unary[c * problem.unary.channel_stride] : -INFINITY;
  }
  __syncthreads();
  for (int t = 0; t < terms.rows.count && iteration > 0; ++t) {
    const RowBuffers<float, S>& rows = terms.rows.of[t];
    const Term<float>& term = terms.of[t];
    if (rows.lattice.failed()) continue;  // the result will be no number
    if (HasMatrix && term.compatibility == Compatibility::matrix) {
      load_matrix<R>(term.compat, channels, false, reinterpret_cast<float*>(matrix));
      __syncthreads();
    }
    if (inside) {
      const TilePlace place(rows.lattice, blockIdx.x);
      const int at = place.position(rows.lattice, p);
      const int64_t own = raster_of(problem.grid, tile, at);
      const float factor = term.gain * term.slice_scale.at(image, own);
      PixelRow<R> y = slice_entry<R>(rows, place, p);
      subtract_energy<R, HasMatrix>(term, matrix, channels, factor, y, tile_x + at * stride);
    }
    __syncthreads();
  }

  // 2. Q of the pixel, in registers.
  float changed = 0.0f;
  if (inside) changed = update_pixel<R>(problem, image, point, iteration, tile_x + p * stride);
  if (problem.change) report_change(problem, image, iteration, changed);
  if (iteration == problem.iterations) return;
  __syncthreads();

  // 3. What the next iteration starts from.
  if (problem.history) {
    float* history = problem.history + (image * problem.iterations + iteration) * problem.points() * channels;
    const auto* q = reinterpret_cast<const float*>(tile_x);
    for (int i = p; i < tile.points() * channels; i += kBlockThreads) {
      const int at = i / channels, c = i % channels;
      const int64_t n = raster_of(problem.grid, tile, at);
      history[n * channels + c] = q[at * stride * kVector + c];
    }
  }
  splat_terms(terms, inside, image, point, tile_x);
}

}  // namespace densecrf::cuda
