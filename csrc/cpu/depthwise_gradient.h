// Gradients of the depthwise convolution D of ../separable_conv.h, and the moments of its output. Where channels are
// last the loops run over channels, otherwise over columns; a dilation costs nothing, for borders cut ranges and are
// never tested. Results have the same bits for any number of threads.
#pragma once

#include "../separable_conv.h"
#include "depthwise.h"
#include "parallel.h"

namespace densecrf {

// grad_input = D transposed · grad
template <class T>
void depthwise_input_gradient(const DepthwiseShape& shape, const ImageView<const T>& grad, const T* weight,
                              const ImageView<T>& grad_input, const Pool& pool);

// grad_weight [channels, kernel²]: the derivative of <grad, D pre(input)> with respect to the weight
template <class T>
void depthwise_weight_gradient(const DepthwiseShape& shape, const ImageView<const T>& grad,
                               const ImageView<const T>& input, Activation pre, T* grad_weight, const Pool& pool);

// Mean and variance (divided by the number of pixels) of each channel of D pre(input), without storing it: blocks of
// rows have their own mean, around which squares are summed, so a large mean does not cancel the digits of the
// variance.
template <class T>
void depthwise_moments(const DepthwiseProblem<T>& problem, T* mean, T* variance, const Pool& pool);

}  // namespace densecrf
