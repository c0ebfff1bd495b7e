// The types that the kernels of separable convolutions store images in, and the type they compute in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace densecrf::cuda {

template <class T>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<double> {
  using Type = double;
};

// double for double, float for float and both half types.
template <class T>
using Accumulator = typename AccumulatorOf<T>::Type;

}  // namespace densecrf::cuda
