// The separable convolution on the CPU: the depthwise convolution of a tile of pixels goes into a buffer that stays in
// the second cache, from which blocks of registers multiply it with the pointwise weights. Results have the same bits
// for any number of threads.
#pragma once

#include "depthwise.h"

namespace densecrf {

template <class T>
struct SeparableProblem {
  DepthwiseProblem<T> depthwise;
  const T* pointwise;  // [out_channels, channels]
  int64_t out_channels;
  Affine<T> affine;
  ImageView<const T> residual;  // no residual where data is null
};

template <class T>
void separable_forward(const SeparableProblem<T>& problem, const ImageView<T>& out, const Pool& pool);

// Whether the depthwise convolution, a product of a library and finish_pointwise are faster than separable_forward; by
// the shape alone.
bool library_gemm_wins(const DepthwiseShape& shape, int64_t out_channels, bool channels_last);

// out = activation(scale · out + shift + residual), where `out` is P v already.
template <class T>
void finish_pointwise(const SeparableProblem<T>& problem, const ImageView<T>& out, const Pool& pool);

}  // namespace densecrf
