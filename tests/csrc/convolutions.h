// What the tests of convolutions on the CPU share: images as views, shapes, and threads.
#pragma once

#include <algorithm>
#include <vector>

#include "separable_conv.h"
#include "threads.h"

namespace densecrf {

// Images in one layout inside of a tensor with `spare` channels more, which must stay as they are.
template <class T>
struct Images {
  Images(int64_t batch, int64_t channels, Pair size, bool channels_last, int64_t spare = 3)
      : batch(batch), channels(channels), size(size), channels_last(channels_last), wide(channels + spare) {
    data.assign(batch * wide * size.y * size.x, T(-77));
  }
  ImageView<T> view() {
    const int64_t pixels = size.y * size.x;
    if (channels_last) return {data.data(), wide * pixels, wide, 1};
    return {data.data(), wide * pixels, 1, pixels};
  }
  ImageView<const T> view() const {
    const ImageView<T> v = const_cast<Images*>(this)->view();
    return {v.data, v.batch_stride, v.pixel_stride, v.channel_stride};
  }
  T& at(int64_t b, int64_t c, int64_t y, int64_t x) {
    const ImageView<T> v = view();
    return v.data[b * v.batch_stride + c * v.channel_stride + (y * size.x + x) * v.pixel_stride];
  }
  T at(int64_t b, int64_t c, int64_t y, int64_t x) const { return const_cast<Images*>(this)->at(b, c, y, x); }
  template <class Function>
  void each(Function function) {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t y = 0; y < size.y; ++y)
          for (int64_t x = 0; x < size.x; ++x) function(at(b, c, y, x), b, c, y, x);
  }
  bool spare_is_untouched() const {
    const int64_t pixels = size.y * size.x;
    for (size_t i = 0; i < data.size(); ++i) {
      const int64_t channel = channels_last ? i % wide : i / pixels % wide;
      if (channel >= channels && data[i] != T(-77)) return false;
    }
    return true;
  }

  int64_t batch, channels;
  Pair size;
  bool channels_last;
  int64_t wide;
  std::vector<T> data;
};

inline DepthwiseShape make_shape(int64_t batch, int64_t channels, Pair size, int kernel, Pair stride, Pair padding,
                                 Pair dilation) {
  const auto out = [kernel](int64_t n, int64_t s, int64_t p, int64_t d) {
    return (n + 2 * p - d * (kernel - 1) - 1) / s + 1;
  };
  const Pair out_size{out(size.y, stride.y, padding.y, dilation.y), out(size.x, stride.x, padding.x, dilation.x)};
  return {batch, channels, size, out_size, kernel, stride, padding, dilation};
}

}  // namespace densecrf
