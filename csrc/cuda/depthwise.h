// The depthwise convolution of images in channels_last layout, its two gradients and its moments. Torch-free.
// T is float, double, __half or __nv_bfloat16; every view's channel_stride is 1.
#pragma once

#include "../separable_conv.h"
#include "conv_types.h"
#include "launch.h"

namespace densecrf::cuda {

// The longest side of an image, and the most numbers in a row of pixels that is read: places fit in 32 bits.
constexpr int64_t kMaxSide = int64_t{1} << 24, kMaxRow = INT32_MAX;

// out = activation(scale · (weight * pre(input)) + shift)
template <class T>
struct DepthwiseProblem {
  DepthwiseShape shape;
  ImageView<const T> input;
  const T* weight;  // [C, kernel · kernel]
  Activation pre = Activation::none;
  Affine<Accumulator<T>> affine;
};

template <class T>
void depthwise_forward(const DepthwiseProblem<T>& problem, const ImageView<T>& out, cudaStream_t stream);

// The adjoint of the convolution of that shape, applied to grad: each pixel of the input gathers what it went to.
template <class T>
void depthwise_input_gradient(const DepthwiseShape& shape, const ImageView<const T>& grad, const T* weight,
                              const ImageView<T>& grad_input, cudaStream_t stream);

// How many numbers of Accumulator<T> the sums of the two below need for what each block has summed.
template <class T>
int64_t weight_gradient_workspace(const DepthwiseShape& shape);
template <class T>
int64_t moments_workspace(const DepthwiseShape& shape);

// grad_weight [C, kernel · kernel]: sums over images and pixels, in an order that the shape alone decides.
template <class T>
void depthwise_weight_gradient(const DepthwiseShape& shape, const ImageView<const T>& grad,
                               const ImageView<const T>& input, Activation pre, T* grad_weight,
                               Accumulator<T>* workspace, cudaStream_t stream);

// Mean and variance [C] of weight * pre(input) over images and pixels; the affine part of the problem does not count.
template <class T>
void depthwise_moments(const DepthwiseProblem<T>& problem, Accumulator<T>* mean, Accumulator<T>* variance,
                       Accumulator<T>* workspace, cudaStream_t stream);

}  // namespace densecrf::cuda
