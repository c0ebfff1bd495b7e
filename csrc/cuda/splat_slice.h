// Between the pixels of images and the rows of a lattice, torch-free: the two ends of every filter.
#pragma once

#include "lattice_rows.h"

namespace densecrf::cuda {

// Values of a batch of images, [B, N, C] with these strides in elements, in the caller's order of points.
template <class E>
struct BatchView {
  E* data;
  int64_t image_stride, point_stride, channel_stride;

  HOST_DEVICE E* at(int64_t image, int64_t point) const { return data + image * image_stride + point * point_stride; }
  // The channels from `first` on.
  BatchView from(int64_t first) const {
    return {data + first * channel_stride, image_stride, point_stride, channel_stride};
  }
};

// A factor for each point, [B or 1, N]; null: one.
template <class T>
struct PointScale {
  const T* data;
  int64_t image_stride;  // 0 where images share it

  HOST_DEVICE T at(int64_t image, int64_t point) const {
    return data == nullptr ? T(1) : data[image * image_stride + point];
  }
};

// A factor for each channel: a number, or [C]; null: one.
template <class T>
struct ChannelFactor {
  const T* data;
  int step;  // 0: one number for all channels
  T sign;

  HOST_DEVICE T at(int channel) const { return data == nullptr ? sign : sign * data[channel * step]; }
  ChannelFactor from(int64_t first) const { return {data == nullptr ? data : data + first * step, step, sign}; }
};

// Partials = splat of scale · values; `channels` of them, no more than a row has.
template <class T, class S>
void splat(const RowBuffers<T, S>& rows, const BatchView<const T>& values, int channels, const PointScale<T>& scale,
           cudaStream_t stream);

// out (+)= factor · gain · scale · slice of the vertices.
template <class T, class S>
void slice(const RowBuffers<T, S>& rows, int channels, const PointScale<T>& scale, const ChannelFactor<T>& factor,
           bool accumulate, const BatchView<T>& out, cudaStream_t stream);

}  // namespace densecrf::cuda
