// The depthwise convolution on the CPU. Where channels are last its loops run over channels, otherwise over pixels, row
// ends or not; the border is in what is read and not in what is tested, so that a dilation costs nothing.
#pragma once

#include "../separable_conv.h"
#include "parallel.h"

namespace densecrf {

template <class T>
struct DepthwiseProblem {
  DepthwiseShape shape;
  ImageView<const T> input;
  const T* weight;  // [channels, kernel²]
  Activation pre;
  Affine<T> affine;
};

// out = activation(scale · (D pre(input)) + shift)
template <class T>
void depthwise_forward(const DepthwiseProblem<T>& problem, const ImageView<T>& out, const Pool& pool);

}  // namespace densecrf
