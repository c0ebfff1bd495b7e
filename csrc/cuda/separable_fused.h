// The atrous depthwise-separable convolution in one kernel, and the end of one whose product a library has computed.
// Torch-free; T = float, double, __half, __nv_bfloat16.
#pragma once

#include "depthwise.h"

namespace densecrf::cuda {

template <class T>
struct SeparableProblem {
  DepthwiseProblem<T> depthwise;
  const T* pointwise;  // [out_channels, channels]
  int64_t out_channels;
  Affine<Accumulator<T>> affine;
  ImageView<const T> residual;  // data null: none
};

// How the pointwise product is computed: with fused multiply-adds in the type of the sums, or by tensor cores, to which
// floats are TF32. Where a GPU has none for the type (half needs compute capability 7.5, bfloat16 and float 8.0, double
// has none here) the product is exact.
enum class Multiply : int { exact, tensor };

// The input has its channels next to each other; output and residual may have any strides.
template <class T>
void separable_fused(const SeparableProblem<T>& problem, const ImageView<T>& out, Multiply multiply,
                     cudaStream_t stream);

// out = activation(scale · out + shift + residual), in place, whatever the strides.
template <class T>
void finish_pointwise(const SeparableProblem<T>& problem, const ImageView<T>& out, cudaStream_t stream);

}  // namespace densecrf::cuda
