// The product of the fused kernel: a warp multiplies a chunk of its part of the tile. Both ways read the same factors
// in shared memory and leave the sums in the same places: element (r, c) of a fragment of 16 pixels by 8 outputs
// belongs to lane 4 · (r mod 8) + c / 2, as number 2 · (r / 8) + c mod 2.
#pragma once

#include "separable_fused_tile.cuh"
#include "tensor_core.cuh"

namespace densecrf::cuda {

template <class T, class Tile>
struct Sums {
  Accumulator<T> of[Tile::row_fragments][Tile::column_fragments][4];
};

// Fused multiply-adds in the type of the sums, in the order of the channels.
template <class T>
struct ExactProduct {
  static __device__ __forceinline__ Accumulator<T> operand(Accumulator<T> x) { return x; }

  template <class Tile>
  static __device__ __forceinline__ void add(const char* inputs, const char* factors, int row, int column,
                                             Sums<T, Tile>& sums) {
    constexpr int V = kPacketChannels<T>, rows = 2 * Tile::row_fragments;
    const int lane = threadIdx.x % kWarpThreads, first_row = row + lane / 4, first_column = column + 2 * (lane % 4);
#pragma unroll 1
    for (int segment = 0; segment < kSegments; ++segment) {
      Packet<T, V> a[rows];
#pragma unroll
      for (int r = 0; r < rows; ++r)
        a[r] = *reinterpret_cast<const Packet<T, V>*>(inputs + segment_offset(first_row + 8 * r, segment));
#pragma unroll
      for (int c = 0; c < 2 * Tile::column_fragments; ++c) {
        const int from = first_column + 8 * (c / 2) + c % 2;
        const auto b = *reinterpret_cast<const Packet<T, V>*>(factors + segment_offset(from, segment));
#pragma unroll
        for (int v = 0; v < V; ++v)
#pragma unroll
          for (int r = 0; r < rows; ++r) {
            Accumulator<T>& sum = sums.of[r / 2][c / 2][2 * (r % 2) + c % 2];
            sum = multiply_add(a[r].at(v), b.at(v), sum);
          }
      }
    }
  }
};

// Tensor cores: products of half types are exact in float, floats are rounded to TF32 first.
template <class T>
struct TensorProduct {
  static __device__ __forceinline__ float operand(float x) { return std::is_same_v<T, float> ? round_to_tf32(x) : x; }

  template <class Tile>
  static __device__ __forceinline__ void add(const char* inputs, const char* factors, int row, int column,
                                             Sums<T, Tile>& sums) {
    const int lane = threadIdx.x % kWarpThreads;
    // A fragment of the inputs is four matrices of 8 rows by 16 bytes, and so are two neighbouring ones of the factors.
    const int input_row = row + lane % 16, input_segment = lane / 16;
    const int factor_row = column + lane % 8 + lane / 16 * 8, factor_segment = lane / 8 % 2;
#pragma unroll
    for (int segment = 0; segment < kSegments; segment += 2) {
      uint32_t a[Tile::row_fragments][4];
#pragma unroll
      for (int r = 0; r < Tile::row_fragments; ++r)
        load_matrices(a[r], inputs + segment_offset(input_row + 16 * r, segment + input_segment));
#pragma unroll
      for (int c = 0; c < Tile::column_fragments; c += 2) {
        uint32_t b[4];
        load_matrices(b, factors + segment_offset(factor_row + 8 * c, segment + factor_segment));
        if constexpr (std::is_same_v<T, float>)
#pragma unroll
          for (int i = 0; i < 4; ++i) b[i] = __float_as_uint(round_to_tf32(__uint_as_float(b[i])));
#pragma unroll
        for (int r = 0; r < Tile::row_fragments; ++r) {
          multiply_fragments<T>(sums.of[r][c], a[r], b[0], b[1]);
          multiply_fragments<T>(sums.of[r][c + 1], a[r], b[2], b[3]);
        }
      }
    }
  }
};

}  // namespace densecrf::cuda
