#include "depthwise_gradient.h"

#include <algorithm>

#include "depthwise_panels.h"

namespace densecrf {
namespace {

// grad_input = D transposed · grad, with the channels of a pixel next to each other.
template <class T>
void input_gradient_of_channels(const DepthwiseShape& shape, const ImageView<const T>& grad, const T* weight,
                                const ImageView<T>& grad_input, const Pool& pool) {
  const Panels panels(runs_of_input(shape), pixel_raster(shape.size.x, grad_input.pixel_stride),
                      pixel_raster(shape.out_size.x, grad.pixel_stride), true, shape.kernel, shape.channels);
  const Buffer<T> weights = weights_by_tap(weight, shape.channels, shape.taps());
  pool.parallel_for(shape.batch * shape.size.y, 1, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t image = begin / shape.size.y, first = begin - image * shape.size.y;
      const int64_t last = std::min(shape.size.y, first + end - begin);
      const T* source = grad.data + image * grad.batch_stride;
      T* out = grad_input.data + image * grad_input.batch_stride;
      panels.each_row(first, last, [&](const Panel* row, int64_t number, int64_t out_at, int64_t source_at) {
        gradient_kernels<T>().gather_channels(row, number, shape.channels, weights.data(), source + source_at,
                                              out + out_at, Activation::none);
      });
      begin += last - first;
    }
  });
}

// The same with the columns of a row next to each other. With a stride, the result is made in parts of equal remainder.
template <class T>
void input_gradient_of_columns(const DepthwiseShape& shape, const ImageView<const T>& grad, const T* weight,
                               const ImageView<T>& grad_input, const Pool& pool) {
  const Phases phases(shape.size.x, shape.stride.x);
  const Panels panels(runs_of_input(shape), column_raster(phases), pixel_raster(shape.out_size.x, 1), false,
                      shape.kernel, 1);
  const auto number = static_cast<int64_t>(panels.all().size());
  pool.parallel_for(shape.batch * shape.channels, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> parts(shape.stride.x > 1 ? shape.size.y * phases.row() : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / shape.channels, channel = task - image * shape.channels;
      const T* source = grad.data + image * grad.batch_stride + channel * grad.channel_stride;
      T* result = grad_input.data + image * grad_input.batch_stride + channel * grad_input.channel_stride;
      T* out = shape.stride.x > 1 ? parts.data() : result;
      gradient_kernels<T>().gather_columns(panels.all().data(), number, weight + channel * shape.taps(), source, out,
                                           Activation::none);
      if (shape.stride.x > 1) phases.join(out, shape.size.y, result);
    }
  });
}

// Sums [block, taps, channels] over each block of rows, with the channels of a pixel next to each other.
template <class T>
void weight_sums_of_channels(const DepthwiseShape& shape, const RowBlocks& blocks, const ImageView<const T>& grad,
                             const ImageView<const T>& input, Activation pre, T* sums, const Pool& pool) {
  const Panels panels(runs_of_output(shape), pixel_raster(shape.out_size.x, grad.pixel_stride),
                      pixel_raster(shape.size.x, input.pixel_stride), true, shape.kernel, shape.channels);
  const int64_t groups = ceil_div(shape.channels, kBlockChannels);
  pool.parallel_for(blocks.count * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / groups, channel = (task - block * groups) * kBlockChannels;
      const int64_t channels = std::min(kBlockChannels, shape.channels - channel);
      T* total = sums + block * shape.taps() * shape.channels + channel;
      for (int t = 0; t < shape.taps(); ++t) std::fill_n(total + t * shape.channels, channels, T(0));
      blocks.each_image(block, [&](int64_t image, int64_t first, int64_t last) {
        const T* given = grad.data + image * grad.batch_stride + channel;
        const T* source = input.data + image * input.batch_stride + channel;
        panels.each_row(first, last, [&](const Panel* row, int64_t number, int64_t grad_at, int64_t source_at) {
          gradient_kernels<T>().correlate_channels(row, number, channels, given + grad_at, source + source_at, total,
                                                   pre);
        });
      });
    }
  });
}

// Sums [block, channels, taps] with the columns of a row next to each other. With a stride, the input is taken apart.
template <class T>
void weight_sums_of_columns(const DepthwiseShape& shape, const RowBlocks& blocks, const ImageView<const T>& grad,
                            const ImageView<const T>& input, Activation pre, T* sums, const Pool& pool) {
  const Phases phases(shape.size.x, shape.stride.x);
  const Panels panels(runs_of_output(shape), pixel_raster(shape.out_size.x, 1), column_raster(phases), false,
                      shape.kernel, 1);
  const int64_t groups = ceil_div(shape.channels, kBlockPlanes);
  pool.parallel_for(blocks.count * groups, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> parts(shape.stride.x > 1 ? shape.size.y * phases.row() : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / groups, channel = (task - block * groups) * kBlockPlanes;
      const int64_t channels = std::min(kBlockPlanes, shape.channels - channel);
      T* total = sums + (block * shape.channels + channel) * shape.taps();
      std::fill_n(total, channels * shape.taps(), T(0));
      blocks.each_image(block, [&](int64_t image, int64_t first, int64_t last) {
        const std::vector<Panel> cut = panels.of_rows(first, last);
        for (int64_t c = 0; c < channels; ++c) {
          const T* given = grad.data + image * grad.batch_stride + (channel + c) * grad.channel_stride;
          const T* source = input.data + image * input.batch_stride + (channel + c) * input.channel_stride;
          if (shape.stride.x > 1) {
            phases.split(source, shape.size.y, parts.data());
            source = parts.data();
          }
          gradient_kernels<T>().correlate_columns(cut.data(), static_cast<int64_t>(cut.size()), given, source,
                                                  total + c * shape.taps(), shape.taps(), pre);
        }
      });
    }
  });
}

}  // namespace

template <class T>
void depthwise_input_gradient(const DepthwiseShape& shape, const ImageView<const T>& grad, const T* weight,
                              const ImageView<T>& grad_input, const Pool& pool) {
  if (channels_last(grad) && channels_last(grad_input))
    input_gradient_of_channels(shape, grad, weight, grad_input, pool);
  else
    input_gradient_of_columns(shape, grad, weight, grad_input, pool);
}

template <class T>
void depthwise_weight_gradient(const DepthwiseShape& shape, const ImageView<const T>& grad,
                               const ImageView<const T>& input, Activation pre, T* grad_weight, const Pool& pool) {
  const RowBlocks blocks(shape);
  const int taps = shape.taps();
  const Buffer<T> sums(blocks.count * taps * shape.channels);
  const bool last = channels_last(grad) && channels_last(input);
  if (last)
    weight_sums_of_channels(shape, blocks, grad, input, pre, sums.data(), pool);
  else
    weight_sums_of_columns(shape, blocks, grad, input, pre, sums.data(), pool);
  for (int64_t c = 0; c < shape.channels; ++c)
    for (int t = 0; t < taps; ++t) {
      double sum = 0;
      for (int64_t block = 0; block < blocks.count; ++block)
        sum += sums[block * taps * shape.channels + (last ? t * shape.channels + c : c * taps + t)];
      grad_weight[c * taps + t] = static_cast<T>(sum);
    }
}

#define DENSECRF_INSTANTIATE(T)                                                                         \
  template void depthwise_input_gradient<T>(const DepthwiseShape&, const ImageView<const T>&, const T*, \
                                            const ImageView<T>&, const Pool&);                          \
  template void depthwise_weight_gradient<T>(const DepthwiseShape&, const ImageView<const T>&,          \
                                             const ImageView<const T>&, Activation, T*, const Pool&);
DENSECRF_INSTANTIATE(float)
DENSECRF_INSTANTIATE(double)
#undef DENSECRF_INSTANTIATE

}  // namespace densecrf
