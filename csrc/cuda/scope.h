// Where the kernels of an operator run: the device of its tensors, made current, and the caller's stream there.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "launch.h"

#if !defined(DENSECRF_EMULATED)
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace densecrf::cuda {

#if defined(DENSECRF_EMULATED)
class DeviceScope {
 public:
  explicit DeviceScope(const at::Tensor&) {}
  cudaStream_t stream() const { return {}; }
};
#else
class DeviceScope {
 public:
  explicit DeviceScope(const at::Tensor& tensor) : guard_(tensor.device()) {}
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }

 private:
  c10::cuda::CUDAGuard guard_;
};
#endif

// Memory from the caching allocator, safe to let go of as soon as the kernels that use it are queued.
inline at::Tensor workspace(int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

}  // namespace densecrf::cuda
