// Images, weights and the plainest loops of a depthwise convolution in double, for tests of the kernels. Buffers are
// exactly as large as they have to be, so that a sanitizer sees each step beyond.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/packets.cuh"

namespace densecrf {

template <class T>
double number(T x) {
  return static_cast<double>(cuda::to_accumulator(x));
}

template <class T>
T stored(double x) {
  T to;
  cuda::from_accumulator(static_cast<cuda::Accumulator<T>>(x), to);
  return to;
}

// Half the distance of neighbouring numbers, relative to them.
template <class T>
constexpr double kRounding = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
template <>
constexpr double kRounding<__half> = 0x1p-11;
template <>
constexpr double kRounding<__nv_bfloat16> = 0x1p-8;

template <class T>
std::vector<T> random_numbers(int64_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(static_cast<size_t>(size));
  for (T& value : values) value = stored<T>(normal(random));
  return values;
}

inline int64_t out_side(int64_t size, int64_t before, int64_t after, int kernel, int64_t stride, int64_t dilation) {
  return (size + before + after - dilation * (kernel - 1) - 1) / stride + 1;
}

// Padding that keeps the size at stride 1.
inline DepthwiseShape same_shape(int64_t batch, int64_t channels, Pair size, int kernel, Pair stride, Pair dilation) {
  DepthwiseShape shape{batch, channels, size, {}, kernel, stride, {}, dilation};
  shape.padding = {dilation.y * (kernel - 1) / 2, dilation.x * (kernel - 1) / 2};
  shape.out_size = {out_side(size.y, shape.padding.y, shape.padding.y, kernel, stride.y, dilation.y),
                    out_side(size.x, shape.padding.x, shape.padding.x, kernel, stride.x, dilation.x)};
  return shape;
}

// Pixels of an image in channels_last, `wide` channels apart.
template <class T>
ImageView<T> pixels_view(T* data, int64_t pixels, int64_t wide) {
  return {data, pixels * wide, wide, 1};
}

// Calls function(output pixel, tap, input pixel) for all that meet.
template <class Function>
void for_taps(const DepthwiseShape& shape, Function function) {
  for (int64_t y = 0; y < shape.out_size.y; ++y)
    for (int64_t x = 0; x < shape.out_size.x; ++x)
      for (int i = 0; i < shape.kernel; ++i)
        for (int j = 0; j < shape.kernel; ++j) {
          const int64_t from_y = y * shape.stride.y - shape.padding.y + i * shape.dilation.y;
          const int64_t from_x = x * shape.stride.x - shape.padding.x + j * shape.dilation.x;
          if (from_y >= 0 && from_y < shape.size.y && from_x >= 0 && from_x < shape.size.x)
            function(y * shape.out_size.x + x, i * shape.kernel + j, from_y * shape.size.x + from_x);
        }
}

}  // namespace densecrf
