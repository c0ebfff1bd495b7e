// How kernels are started and what they may use: nvcc compiles them for a GPU, or g++ for the emulator in
// tests/emulator, whose cuda_runtime.h then stands in for that of the toolkit. Torch-free.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../common.h"

// Dynamic shared memory as `type* name`.
#if defined(DENSECRF_EMULATED)
#define DENSECRF_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::emulator::dynamic_shared())
#else
#define DENSECRF_DYNAMIC_SHARED(type, name)                     \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  type* name = reinterpret_cast<type*>(name##_bytes)
#endif

namespace densecrf::cuda {

constexpr int kBlockThreads = 256;
constexpr int kWarpThreads = 32;
constexpr int64_t kMaxGridRows = 65535;  // of blockIdx.y

struct Grid {
  int64_t blocks;      // blockIdx.x
  int64_t rows = 1;    // blockIdx.y
  int64_t shared = 0;  // bytes of dynamic shared memory
  int threads = kBlockThreads;
};

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

#if defined(__CUDACC__) || defined(DENSECRF_EMULATED)  // the glue includes this header without a compiler of kernels
// Starts a kernel on the stream; the device is the current one. An empty grid starts nothing.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), const Grid& grid, cudaStream_t stream, const Args&... args) {
  if (grid.blocks <= 0 || grid.rows <= 0) return;
#if defined(DENSECRF_EMULATED)
  (void)stream;
  ::emulator::launch(grid.blocks, grid.rows, grid.threads, grid.shared, [&] { kernel(Params(args)...); });
#else
  constexpr int64_t ordinary = 48 * 1024;
  if (grid.shared > ordinary)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared)),
               "shared memory of a kernel");
  const dim3 blocks(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.rows));
  kernel<<<blocks, grid.threads, grid.shared, stream>>>(Params(args)...);
  check_cuda(cudaGetLastError(), "start of a kernel");
#endif
}
#endif

inline int multiprocessors() {
#if defined(DENSECRF_EMULATED)
  return 2;
#else
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "current device");
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "number of multiprocessors");
  return count;
#endif
}

// 10 · major + minor of the current device.
inline int compute_capability() {
#if defined(DENSECRF_EMULATED)
  return 80;
#else
  int device = 0, major = 0, minor = 0;
  check_cuda(cudaGetDevice(&device), "current device");
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
  return 10 * major + minor;
#endif
}

// Blocks for `count` threads' worth of work where each thread strides on until the work is done: enough to fill the
// device, because how much work there is may be known to the device alone.
inline int64_t striding_blocks(int64_t count) {
  return min_of(ceil_div(count, kBlockThreads), static_cast<int64_t>(multiprocessors()) * 8);
}

}  // namespace densecrf::cuda
