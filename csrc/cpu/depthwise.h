// The depthwise convolution on the CPU.
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

}  // namespace densecrf
