// The fused backward update: one block takes one tile from the vertices of all lattices, blurred backwards, to the
// gradient of the logits, and on to the partials of the iteration before.
#pragma once

#include "update_kernel.cuh"

namespace densecrf::cuda {

// Sums over the block of y ∘ q by channel; `sums` is shared memory for R · kVector numbers of each warp. The whole
// block calls it; the order of the sum is fixed.
template <int R>
__device__ __forceinline__ void sum_products(PixelRow<R>& products, int channels, float* sums, float* out) {
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
#pragma unroll
  for (int c = 0; c < R * kVector; ++c) {
    float sum = products.at(c);
    for (int step = kWarpThreads / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (lane == 0) sums[warp * R * kVector + c] = sum;
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < channels) {
    float sum = 0.0f;
    for (int w = 0; w < kBlockThreads / kWarpThreads; ++w) sum += sums[w * R * kVector + threadIdx.x];
    out[threadIdx.x] = sum;
  }
}

template <int R, bool HasMatrix>
__global__ void __launch_bounds__(kBlockThreads, kUpdateBlocks<R, HasMatrix>)
    gradient_kernel(MeanFieldGradient problem, FusedTerms<float> terms, int iteration) {
  DENSECRF_DYNAMIC_SHARED(char, memory);
  __shared__ float sums[kBlockThreads / kWarpThreads * R * kVector];
  constexpr int stride = tile_stride(R);
  auto* tile_x = reinterpret_cast<Vector<float, kVector>*>(memory);  // [points][stride]: gradients of Q, then of logits
  auto* matrix = tile_x + kTilePoints * stride;
  const int p = threadIdx.x, channels = problem.channels;
  const int64_t image = blockIdx.x / problem.grid.tiles(), points = problem.grid.points();
  const Tile tile = problem.grid.tile(blockIdx.x % problem.grid.tiles());
  const bool inside = p < tile.points(), first = iteration == problem.iterations;
  const int64_t point = raster_of(problem.grid, tile, p);
  const BatchView<const float> q_of = first
                                          ? problem.result
                                          : BatchView<const float>{problem.history + iteration * points * channels,
                                                                   problem.iterations * points * channels, channels, 1};

  // 1. The gradient of Q: that of the result, or what all terms hand back.
  if (inside) {
    const float* grad = problem.grad.at(image, point);
#pragma unroll 8
    for (int c = 0; c < R * kVector; ++c)
      tile_x[p * stride + c / kVector].of[c % kVector] =
          first && c < channels ? grad[c * problem.grad.channel_stride] : 0.0f;
  }
  __syncthreads();
  for (int t = 0; t < terms.rows.count && !first; ++t) {
    const RowBuffers<float, float>& rows = terms.rows.of[t];
    const Term<float>& term = terms.of[t];
    const bool failed = rows.lattice.failed();
    if (HasMatrix && term.compatibility == Compatibility::matrix) {
      load_matrix<R>(term.compat, channels, true, reinterpret_cast<float*>(matrix));
      __syncthreads();
    }
    PixelRow<R> y{};
    if (inside) {
      const TilePlace place(rows.lattice, blockIdx.x);
      const int at = place.position(rows.lattice, p);
      const int64_t own = raster_of(problem.grid, tile, at);
      const float factor = failed ? not_a_number<float>() : term.gain * term.slice_scale.at(image, own);
      if (!failed) y = slice_entry<R>(rows, place, p);
      subtract_energy<R, HasMatrix>(term, matrix, channels, factor, y, tile_x + at * stride);
      const float* q = q_of.at(image, own);
#pragma unroll
      for (int c = 0; c < R * kVector; ++c)
        if (problem.products && c < channels) y.at(c) *= factor * q[c];
    }
    if (problem.products)
      sum_products<R>(y, channels, sums,
                      problem.products + (static_cast<int64_t>(blockIdx.x) * terms.rows.count + t) * channels);
    __syncthreads();
  }

  // 2. Through the softmax, in registers.
  if (inside) {
    PixelRow<R> g, q{};
    const float* from = q_of.at(image, point);
    const bool logarithm = first && problem.logarithm;
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < R * kVector; ++c) {
      g.at(c) = tile_x[p * stride + c / kVector].of[c % kVector];
      if (c < channels) q.at(c) = from[c * q_of.channel_stride];
      if (logarithm && c < channels) q.at(c) = expf(q.at(c));
      sum = logarithm ? sum + g.at(c) : multiply_add(q.at(c), g.at(c), sum);
    }
    float* total = problem.grad_unary + image * channels * points + point;
#pragma unroll
    for (int c = 0; c < R * kVector; ++c) {
      g.at(c) = logarithm ? g.at(c) - q.at(c) * sum : q.at(c) * (g.at(c) - sum);
      tile_x[p * stride + c / kVector].of[c % kVector] = g.at(c);
    }
#pragma unroll 4
    for (int c = 0; c < channels; ++c)
      total[c * points] = (first ? 0.0f : total[c * points]) - tile_x[p * stride + c / kVector].of[c % kVector];
  }
  if (iteration == 0) return;
  __syncthreads();
  splat_terms(terms, inside, image, point, tile_x);
}

}  // namespace densecrf::cuda
