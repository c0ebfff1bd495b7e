// What every other header needs: the mark of a function that both compilers build, and integer helpers.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace densecrf {

HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

HOST_DEVICE constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Bounded so that the vertices of a tile can be counted in 16 bits; with far fewer dimensions almost every point
// already has a simplex of its own.
constexpr int kMaxDimension = 48;

// A key coordinate of this magnitude or above is refused: three of them share a 64-bit word.
constexpr int32_t kKeyLimit = 1 << 20;

}  // namespace densecrf
