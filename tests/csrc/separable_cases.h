// Separable convolutions for the tests of the emulated CUDA kernels: random problems, the same in double precision by
// the definition, and how far from it the arithmetic of a type may come.
#pragma once

#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/packets.cuh"
#include "cuda/separable_fused.h"

namespace densecrf {

struct SeparableCase {
  const char* name;
  int64_t batch, channels, out_channels;
  Pair size;
  int kernel = 3;
  Pair stride{1, 1}, dilation{1, 1};
  int64_t left = 1, right = 1, top = 1, bottom = 1;
  Activation pre = Activation::none, middle = Activation::none, last = Activation::none;
  bool affine = true, residual = false;
  int64_t extra_in = 0, extra_out = 0;  // channels of the wider tensors that input and output are slices of
  bool planar_out = false;              // pixels next to each other instead of channels
};

// What the type rounds by: when it is stored, and as a factor of the product.
template <class T>
double unit() {
  if (std::is_same_v<T, __half>) return std::ldexp(1, -11);
  if (std::is_same_v<T, __nv_bfloat16>) return std::ldexp(1, -8);
  return std::is_same_v<T, float> ? std::ldexp(1, -24) : std::ldexp(1, -53);
}

// How far storing a number moves it; halves below 2^-14 have no more than a fixed number of bits.
template <class T>
double stored(double x) {
  return std::fmax(unit<T>() * std::fabs(x), std::is_same_v<T, __half> ? std::ldexp(1, -25) : 0);
}

struct Expected {
  double value;
  double magnitude;  // of what was summed: the error of sums and of rounded factors is a fraction of it
  double tolerance = 0;
};

template <class T>
struct SeparableData {
  using A = cuda::Accumulator<T>;
  SeparableCase c;
  Pair out_size;
  int64_t in_stride, out_stride;  // from a pixel to the next one, or for planar outputs from a channel to the next
  std::vector<T> input, depthwise, pointwise, residual, background;
  std::vector<A> scale[2], shift[2];

  explicit SeparableData(const SeparableCase& of) : c(of) {
    const auto out = [&](int64_t size, int64_t padding, int64_t dilation, int64_t stride) {
      return (size + padding - dilation * (c.kernel - 1) - 1) / stride + 1;
    };
    out_size = {out(c.size.y, c.top + c.bottom, c.dilation.y, c.stride.y),
                out(c.size.x, c.left + c.right, c.dilation.x, c.stride.x)};
    in_stride = c.channels + c.extra_in;
    out_stride = c.planar_out ? out_size.y * out_size.x : c.out_channels + c.extra_out;
    std::mt19937 random(11);
    const int64_t outputs = c.batch * out_size.y * out_size.x;
    fill(input, c.batch * c.size.y * c.size.x * in_stride, random, 1);
    fill(depthwise, c.channels * c.kernel * c.kernel, random, 1);
    fill(pointwise, c.out_channels * c.channels, random, 1);
    fill(residual, outputs * (c.out_channels + c.extra_out), random, 1);
    fill(background, c.planar_out ? outputs * c.out_channels : outputs * out_stride, random, 1);
    for (int i = 0; i < 2; ++i) {
      fill(scale[i], i ? c.out_channels : c.channels, random, 1);
      fill(shift[i], i ? c.out_channels : c.channels, random, 1);
    }
  }

  template <class V>
  static void fill(std::vector<V>& values, int64_t size, std::mt19937& random, double deviation) {
    std::normal_distribution<double> normal(0, deviation);
    values.resize(size);
    for (V& value : values) value = rounded<V>(normal(random));
  }
  template <class V>
  static V rounded(double x) {
    V value;
    cuda::from_accumulator(static_cast<cuda::Accumulator<V>>(x), value);
    return value;
  }

  DepthwiseShape shape() const {
    return {c.batch, c.channels, c.size, out_size, c.kernel, c.stride, {c.top, c.left}, c.dilation};
  }
  int64_t image_pixels() const { return out_size.y * out_size.x; }
  // Index of an output in its tensor.
  int64_t index(int64_t image, int64_t pixel, int64_t output) const {
    if (c.planar_out) return (image * c.out_channels + output) * image_pixels() + pixel;
    return (image * image_pixels() + pixel) * out_stride + output;
  }
  ImageView<T> view(std::vector<T>& out) const {
    if (c.planar_out) return {out.data(), c.out_channels * image_pixels(), 1, image_pixels()};
    return {out.data(), image_pixels() * out_stride, out_stride, 1};
  }

  cuda::SeparableProblem<T> problem() const {
    cuda::SeparableProblem<T> problem{};
    problem.depthwise.shape = shape();
    problem.depthwise.input = {input.data(), c.size.y * c.size.x * in_stride, in_stride, 1};
    problem.depthwise.weight = depthwise.data();
    problem.depthwise.pre = c.pre;
    problem.depthwise.affine.activation = c.middle;
    problem.pointwise = pointwise.data();
    problem.out_channels = c.out_channels;
    problem.affine.activation = c.last;
    if (c.affine) {
      problem.depthwise.affine.scale = scale[0].data();
      problem.depthwise.affine.shift = shift[0].data();
      problem.affine.scale = scale[1].data();
      problem.affine.shift = shift[1].data();
    }
    if (c.residual) problem.residual = {residual.data(), image_pixels() * residual_stride(), residual_stride(), 1};
    return problem;
  }
  int64_t residual_stride() const { return c.out_channels + c.extra_out; }

  // What follows the pointwise product.
  Expected finished(double product, int64_t image, int64_t pixel, int64_t output) const {
    const double factor = c.affine ? scale[1][output] : 1, offset = c.affine ? shift[1][output] : 0;
    const int64_t at = (image * image_pixels() + pixel) * residual_stride() + output;
    const double added = c.residual ? double(cuda::to_accumulator(residual[at])) : 0;
    return {activate(factor * product + offset + added, c.last),
            std::fabs(factor * product) + std::fabs(offset) + std::fabs(added)};
  }
};

// The depthwise part of one channel at one pixel, by the definition.
template <class T>
Expected depthwise_at(const SeparableData<T>& data, int64_t image, Pair at, int64_t channel) {
  const SeparableCase& c = data.c;
  double sum = 0, magnitude = 0;
  for (int i = 0; i < c.kernel; ++i)
    for (int j = 0; j < c.kernel; ++j) {
      const int64_t y = at.y * c.stride.y - c.top + i * c.dilation.y, x = at.x * c.stride.x - c.left + j * c.dilation.x;
      if (y < 0 || y >= c.size.y || x < 0 || x >= c.size.x) continue;
      const T input = data.input[((image * c.size.y + y) * c.size.x + x) * data.in_stride + channel];
      const double weight = cuda::to_accumulator(data.depthwise[(channel * c.kernel + i) * c.kernel + j]);
      const double product = weight * activate<double>(cuda::to_accumulator(input), c.pre);
      sum += product;
      magnitude += std::fabs(product);
    }
  const double scale = c.affine ? data.scale[0][channel] : 1, shift = c.affine ? data.shift[0][channel] : 0;
  return {activate(scale * sum + shift, c.middle), std::fabs(scale) * magnitude + std::fabs(shift)};
}

// Every output. A factor made of `taps` products carries (taps + 2) roundings of the sums' type and one of its own,
// the sum over channels as many as there are channels, affine and residual three, and storing it one.
template <class T>
std::vector<Expected> expected_outputs(const SeparableData<T>& data, double factor_unit) {
  const SeparableCase& c = data.c;
  const double sum_unit = std::is_same_v<T, double> ? std::ldexp(1, -53) : std::ldexp(1, -24);
  const double roundings = static_cast<double>(c.kernel * c.kernel + 2 + c.channels + 3);
  std::vector<Expected> all;
  std::vector<Expected> factors(c.channels);
  for (int64_t image = 0; image < c.batch; ++image)
    for (int64_t pixel = 0; pixel < data.image_pixels(); ++pixel) {
      for (int64_t channel = 0; channel < c.channels; ++channel)
        factors[channel] = depthwise_at(data, image, {pixel / data.out_size.x, pixel % data.out_size.x}, channel);
      for (int64_t output = 0; output < c.out_channels; ++output) {
        double sum = 0, error = 0, magnitude = 0;
        for (int64_t channel = 0; channel < c.channels; ++channel) {
          const double weight = cuda::to_accumulator(data.pointwise[output * c.channels + channel]);
          sum += weight * factors[channel].value;
          magnitude += std::fabs(weight) * factors[channel].magnitude;
          error += std::fabs(weight * factors[channel].value) * factor_unit;
        }
        Expected y = data.finished(sum, image, pixel, output);
        const double scale = c.affine ? std::fabs(double(data.scale[1][output])) : 1;
        y.magnitude += scale * magnitude;
        y.tolerance = scale * error + roundings * sum_unit * y.magnitude + stored<T>(y.value);
        all.push_back(y);
      }
    }
  return all;
}

}  // namespace densecrf
