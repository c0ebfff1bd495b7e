// What a depthwise-separable convolution is, for kernels of any device:
//
//   y = activation(scale · (P v) + shift + residual),  v = middle activation(scale' · (D pre(x)) + shift')
//
// with D the depthwise convolution, zero outside of the image after `pre`, and P the pointwise one.
#pragma once

#include "common.h"

namespace densecrf {

enum class Activation : int { none, relu, relu6 };

// NaN stays NaN: every comparison with it is false.
template <class T>
HOST_DEVICE T activate(T x, Activation activation) {
  if (activation == Activation::none) return x;
  if (x < T(0)) return T(0);
  return activation == Activation::relu6 && x > T(6) ? T(6) : x;
}

struct Pair {
  int64_t y, x;
};

// The depthwise convolution: input [batch, channels, size.y, size.x], weight [channels, kernel, kernel].
// Output pixel (y, x) reads input pixels (y · stride.y - padding.y + i · dilation.y, ...) for taps i of 0 … kernel - 1.
struct DepthwiseShape {
  int64_t batch, channels;
  Pair size, out_size;
  int kernel;    // 1, 3, 5 or 7
  Pair stride;   // 1 or 2
  Pair padding;  // before the first row and column
  Pair dilation;

  int taps() const { return kernel * kernel; }
  int64_t pixels() const { return size.y * size.x; }
  int64_t out_pixels() const { return out_size.y * out_size.x; }
};

// Either vector, of one number a channel, may be null.
template <class A>
struct Affine {
  const A* scale = nullptr;
  const A* shift = nullptr;
  Activation activation = Activation::none;
};

// An image in either layout: rows have no gaps, so pixel p = y · width + x of channel c of image b is
// data[b · batch_stride + p · pixel_stride + c · channel_stride], and one of the two inner strides is 1. A slice of the
// channels of a wider tensor is such a view too.
template <class T>
struct ImageView {
  T* data;
  int64_t batch_stride, pixel_stride, channel_stride;
};

// The layout of a call. An image of one pixel looks like either layout, so that all images of the call are asked.
template <class... Views>
bool channels_last(const Views&... views) {
  return ((views.channel_stride == 1) && ...);
}

}  // namespace densecrf
