// What follows the pointwise product: affine, residual and activation of neighbouring outputs of a pixel.
#pragma once

#include "separable_fused_multiply.cuh"

namespace densecrf::cuda {

// Where the tile's pixels go, when their taps are no longer read.
template <class T, class Tile>
__device__ __forceinline__ void place_outputs(const FusedProblem<T>& problem, int64_t first_pixel,
                                              PixelOffsets* offsets) {
  const ImageView<const T>& residual = problem.separable.residual;
  for (int p = threadIdx.x; p < Tile::pixels; p += kBlockThreads) {
    PixelOffsets at{-1, 0};
    if (first_pixel + p < problem.pixels) {
      const PixelPlace place(first_pixel + p, problem.y, problem.x);
      const int64_t pixel = static_cast<int64_t>(place.y) * problem.x.outputs + place.x;
      at.out = place.image * problem.out.batch_stride + pixel * problem.out.pixel_stride;
      at.residual = place.image * residual.batch_stride + pixel * residual.pixel_stride;
    }
    offsets[p] = at;
  }
}

// Lane q of four gets of every lane word q.
__device__ __forceinline__ void transpose_quad(unsigned (&words)[4]) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int step = 1; step < 4; step *= 2)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const bool upper = (lane & step) != 0;
      const unsigned other = __shfl_xor_sync(0xFFFFFFFFu, upper ? words[i] : words[i + step], step);
      (upper ? words[i] : words[i + step]) = other;
    }
}

// The epilogue of a warp, by groups of four fragments: a lane has two neighbouring outputs of each.
template <class T, class Tile>
__device__ __forceinline__ void write_sums(const FusedProblem<T>& problem, const PixelOffsets* offsets,
                                           int first_output, int row, int column, Sums<T, Tile>& sums) {
  using A = Accumulator<T>;
  constexpr int group = 4;
  const SeparableProblem<T>& separable = problem.separable;
  const Affine<A>& affine = separable.affine;
  const int lane = threadIdx.x % kWarpThreads, outputs = static_cast<int>(separable.out_channels);
#pragma unroll
  for (int c = 0; c < Tile::column_fragments; c += group) {
    const int first = first_output + column + 8 * c, own = first + 2 * (lane % 4);
    A scale[2 * group], shift[2 * group];
#pragma unroll
    for (int i = 0; i < 2 * group; ++i) {
      const int output = own + 8 * (i / 2) + i % 2;
      const bool exists = output < outputs;
      scale[i] = affine.scale && exists ? affine.scale[output] : A(1);
      shift[i] = affine.shift && exists ? affine.shift[output] : A(0);
    }
#pragma unroll
    for (int r = 0; r < 2 * Tile::row_fragments; ++r) {
      const PixelOffsets at = offsets[row + 8 * r + lane / 4];
      Packet<T, 2> pairs[group];
#pragma unroll
      for (int i = 0; i < 2 * group; ++i) {
        const int output = own + 8 * (i / 2) + i % 2;
        A y = multiply_add(scale[i], sums.of[r / 2][c + i / 2][2 * (r % 2) + i % 2], shift[i]);
        if (separable.residual.data && at.out >= 0 && output < outputs)
          y += to_accumulator(separable.residual.data[at.residual + output * separable.residual.channel_stride]);
        pairs[i / 2].set(i % 2, activate(y, affine.activation));
      }
      T* to = problem.out.data + at.out;
      if (!problem.packed_out) {
#pragma unroll
        for (int i = 0; i < 2 * group; ++i) {
          const int output = own + 8 * (i / 2) + i % 2;
          if (at.out >= 0 && output < outputs)
            from_accumulator(pairs[i / 2].at(i % 2), to[output * problem.out.channel_stride]);
        }
      } else if constexpr (sizeof(T) == 2) {
        unsigned words[group];
#pragma unroll
        for (int i = 0; i < group; ++i) words[i] = pairs[i].words[0];
        transpose_quad(words);
        const int output = first + 8 * (lane % 4);
        if (at.out >= 0 && output < outputs)
          *reinterpret_cast<uint4*>(to + output) = uint4{words[0], words[1], words[2], words[3]};
      } else {
#pragma unroll
        for (int i = 0; i < group; ++i)
          if (at.out >= 0 && own + 8 * i < outputs) pairs[i].store(to + own + 8 * i);
      }
    }
  }
}

}  // namespace densecrf::cuda
