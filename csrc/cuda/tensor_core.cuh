// The instructions of a warp around tensor cores, by their PTX: asynchronous copies, matrices from shared memory to
// registers, and the product of fragments. The emulator has a twin of each.
#pragma once

#include <cstdint>

#include "conv_types.h"
#include "launch.h"

namespace densecrf::cuda {

// Half types multiply 16 x 16 by 16 x 8, TF32 16 x 8 by 8 x 8: either way, a row of the left factor is 32 bytes.
#if defined(DENSECRF_EMULATED)

__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  ::emulator::copy_async(to, from, bytes);
}
__device__ __forceinline__ void wait_for_copies() { ::emulator::wait_for_copies(); }
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const void* row) {
  ::emulator::load_matrices(words, row);
}
__device__ __forceinline__ float round_to_tf32(float x) { return ::emulator::round_to_tf32(x); }
template <class T>
__device__ __forceinline__ void multiply_fragments(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  ::emulator::multiply_fragments<T>(sums, a, b0, b1);
}

#else

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// 16 bytes to shared memory, of which the first `bytes` come from global memory and the others are zero; the thread may
// go on before they have arrived.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
#else
  *static_cast<uint4*>(to) = bytes > 0 ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
#endif
}

// Every copy that this thread has begun has arrived, for this thread to see.
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Four matrices of 8 rows of 16 bytes in shared memory: lane l names row l % 8 of matrix l / 8, and receives of each
// matrix word l % 4 of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// To the nearest number of 10 bits behind the point, ties away from zero.
__device__ __forceinline__ float round_to_tf32(float x) {
#if __CUDA_ARCH__ >= 800
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return __uint_as_float(rounded);
#else
  return x;
#endif
}

// sums += A B for the fragments that each lane holds, those of mma.sync.m16n8k16 (half types) and m16n8k8 (TF32).
template <class T>
__device__ __forceinline__ void multiply_fragments(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#define DENSECRF_MMA(shape_and_types)                                       \
  asm volatile("mma.sync.aligned." shape_and_types                          \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "            \
               "{%0, %1, %2, %3};"                                          \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>)
    DENSECRF_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    DENSECRF_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  else
    DENSECRF_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#else
  if constexpr (std::is_same_v<T, __half>) {  // the two halves of m16n8k16
    const uint32_t b[2] = {b0, b1};
#pragma unroll
    for (int half = 0; half < 2; ++half)
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
          "{%0, %1, %2, %3};"
          : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
          : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  } else {
    __trap();  // the host never starts this one here
  }
#endif
#undef DENSECRF_MMA
}

#endif

}  // namespace densecrf::cuda
