#include "depthwise_gradient.h"

#include <algorithm>

#include "depthwise_panels.h"

namespace densecrf {
namespace {

// grad_input = D transposed · grad, with the channels of a pixel next to each other.
template <class T>
void input_gradient_of_channels(const DepthwiseShape& shape, const ImageView<const T>& grad, const T* weight,
                                const ImageView<T>& grad_input, const Pool& pool) {
  const TapRuns runs = runs_of_input(shape);
  const Buffer<T> weights = weights_by_tap(weight, shape.channels, shape.taps());
  struct Row {
    const TapRun* run;
    int64_t skipped;
  };
  std::vector<Row> rows(shape.size.y);
  for (const TapRun& run : runs.y.runs)
    for (int64_t q = 0; q < run.count; ++q) rows[run.first + q * runs.y.step] = {&run, q};
  pool.parallel_for(shape.batch * shape.size.y, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / shape.size.y, y = task - image * shape.size.y;
      const TapRun& row = *rows[y].run;
      const T* source = grad.data + image * grad.batch_stride;
      T* out = grad_input.data + image * grad_input.batch_stride + y * shape.size.x * grad_input.pixel_stride;
      for (const TapRun& column : runs.x.runs) {
        GatherTap<T> taps[kMaxTaps];
        int live = 0;
        for (int i = 0; i < row.live; ++i)
          for (int j = 0; j < column.live; ++j)
            taps[live++] = {
                weights.data() + (row.tap[i] * shape.kernel + column.tap[j]) * shape.channels,
                source + ((row.source[i] + rows[y].skipped) * shape.out_size.x + column.source[j]) * grad.pixel_stride};
        const GatherPanel<T> panel{column.count, shape.channels, grad.pixel_stride,
                                   runs.x.step * grad_input.pixel_stride, out + column.first * grad_input.pixel_stride};
        gradient_kernels<T>().gather_channels(taps, live, panel, Activation::none);
      }
    }
  });
}

// The same with the columns of a row next to each other. With a stride, the result is made in parts of equal remainder.
template <class T>
void input_gradient_of_columns(const DepthwiseShape& shape, const ImageView<const T>& grad, const T* weight,
                               const ImageView<T>& grad_input, const Pool& pool) {
  const TapRuns runs = runs_of_input(shape);
  const Phases phases(shape.size.x, shape.stride.x);
  pool.parallel_for(shape.batch * shape.channels, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> parts(shape.stride.x > 1 ? shape.size.y * phases.row() : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / shape.channels, channel = task - image * shape.channels;
      const T* source = grad.data + image * grad.batch_stride + channel * grad.channel_stride;
      T* result = grad_input.data + image * grad_input.batch_stride + channel * grad_input.channel_stride;
      T* out = shape.stride.x > 1 ? parts.data() : result;
      for (const TapRun& row : runs.y.runs)
        for (const TapRun& column : runs.x.runs) {
          GatherTap<T> taps[kMaxTaps];
          int live = 0;
          for (int i = 0; i < row.live; ++i)
            for (int j = 0; j < column.live; ++j)
              taps[live++] = {weight + channel * shape.taps() + row.tap[i] * shape.kernel + column.tap[j],
                              source + row.source[i] * shape.out_size.x + column.source[j]};
          const GatherPanel<T> panel{row.count, column.count, shape.out_size.x, runs.y.step * phases.row(),
                                     out + row.first * phases.row() + phases.at(column.first)};
          gradient_kernels<T>().gather_columns(taps, live, panel, Activation::none);
        }
      if (shape.stride.x > 1) phases.join(out, shape.size.y, result);
    }
  });
}

// Sums [block, taps, channels] over each block of rows, with the channels of a pixel next to each other.
template <class T>
void weight_sums_of_channels(const DepthwiseShape& shape, const RowBlocks& blocks, const ImageView<const T>& grad,
                             const ImageView<const T>& input, Activation pre, T* sums, const Pool& pool) {
  const TapRuns runs = runs_of_output(shape);
  const int64_t groups = ceil_div(shape.channels, kBlockChannels);
  pool.parallel_for(blocks.count * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / groups, channel = (task - block * groups) * kBlockChannels;
      const int64_t channels = std::min(kBlockChannels, shape.channels - channel);
      T* total = sums + block * shape.taps() * shape.channels + channel;
      for (int t = 0; t < shape.taps(); ++t) std::fill_n(total + t * shape.channels, channels, T(0));
      blocks.each_image(block, [&](int64_t image, int64_t first, int64_t last) {
        const T* source = input.data + image * input.batch_stride + channel;
        const T* given = grad.data + image * grad.batch_stride + channel;
        for_runs(runs.y, first, last, [&](const TapRun& row, int64_t skipped, int64_t count) {
          for (int64_t q = skipped; q < skipped + count; ++q)
            for (const TapRun& column : runs.x.runs) {
              CorrelateTap<T> taps[kMaxTaps];
              int live = 0;
              for (int i = 0; i < row.live; ++i)
                for (int j = 0; j < column.live; ++j)
                  taps[live++] = {source + ((row.source[i] + q * shape.stride.y) * shape.size.x + column.source[j]) *
                                               input.pixel_stride,
                                  total + (row.tap[i] * shape.kernel + column.tap[j]) * shape.channels};
              const CorrelatePanel<T> panel{
                  column.count, channels, grad.pixel_stride, shape.stride.x * input.pixel_stride,
                  given + ((row.first + q) * shape.out_size.x + column.first) * grad.pixel_stride};
              gradient_kernels<T>().correlate_channels(taps, live, panel, pre);
            }
        });
      });
    }
  });
}

// The same sums with the columns of a row next to each other. With a stride, rows of the input are taken apart.
template <class T>
void weight_sums_of_columns(const DepthwiseShape& shape, const RowBlocks& blocks, const ImageView<const T>& grad,
                            const ImageView<const T>& input, Activation pre, T* sums, const Pool& pool) {
  const TapRuns runs = runs_of_output(shape);
  const Phases phases(shape.size.x, shape.stride.x);
  pool.parallel_for(blocks.count * shape.channels, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> parts(shape.stride.x > 1 ? shape.size.y * phases.row() : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / shape.channels, channel = task - block * shape.channels;
      T* total = sums + block * shape.taps() * shape.channels + channel;
      for (int t = 0; t < shape.taps(); ++t) total[t * shape.channels] = T(0);
      blocks.each_image(block, [&](int64_t image, int64_t first, int64_t last) {
        const T* source = input.data + image * input.batch_stride + channel * input.channel_stride;
        const T* given = grad.data + image * grad.batch_stride + channel * grad.channel_stride;
        if (shape.stride.x > 1) {
          phases.split(source, shape.size.y, parts.data());
          source = parts.data();
        }
        for_runs(runs.y, first, last, [&](const TapRun& row, int64_t skipped, int64_t count) {
          for (const TapRun& column : runs.x.runs) {
            CorrelateTap<T> taps[kMaxTaps];
            int live = 0;
            for (int i = 0; i < row.live; ++i)
              for (int j = 0; j < column.live; ++j)
                taps[live++] = {
                    source + (row.source[i] + skipped * shape.stride.y) * phases.row() + phases.at(column.source[j]),
                    total + (row.tap[i] * shape.kernel + column.tap[j]) * shape.channels};
            const CorrelatePanel<T> panel{count, column.count, shape.out_size.x, shape.stride.y * phases.row(),
                                          given + (row.first + skipped) * shape.out_size.x + column.first};
            gradient_kernels<T>().correlate_columns(taps, live, panel, pre);
          }
        });
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
  const Buffer<T> sums(blocks.count * shape.taps() * shape.channels);
  if (channels_last(grad) && channels_last(input))
    weight_sums_of_channels(shape, blocks, grad, input, pre, sums.data(), pool);
  else
    weight_sums_of_columns(shape, blocks, grad, input, pre, sums.data(), pool);
  pool.parallel_for(shape.channels, kBlockPixels, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      for (int t = 0; t < shape.taps(); ++t) {
        double sum = 0;
        for (int64_t block = 0; block < blocks.count; ++block)
          sum += sums[(block * shape.taps() + t) * shape.channels + c];
        grad_weight[c * shape.taps() + t] = static_cast<T>(sum);
      }
  });
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
