#include <algorithm>
#include <limits>

#include "depthwise_gradient.h"
#include "depthwise_panels.h"

namespace densecrf {
namespace {

// Mean of `count` numbers and the sum of their squared differences from it.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  // Chan, Golub and LeVeque 1983, equation 2.1
  void add(double other_count, double other_mean, double other_squares) {
    const double total = count + other_count, difference = other_mean - mean;
    mean += difference * (other_count / total);
    squares += other_squares + difference * difference * (count * other_count / total);
    count = total;
  }
};

// Moments [block, channels] of each block of rows, with the channels of a pixel next to each other.
template <class T>
void moments_of_channels(const DepthwiseProblem<T>& problem, const RowBlocks& blocks, Moments* moments,
                         const Pool& pool) {
  const DepthwiseShape& shape = problem.shape;
  const ImageView<const T>& input = problem.input;
  // every row of the output goes to the same place
  const Raster line{0, kBlockChannels, Phases(shape.out_size.x, 1)};
  const Panels panels(runs_of_output(shape), line, pixel_raster(shape.size.x, input.pixel_stride), true, shape.kernel,
                      shape.channels);
  const Buffer<T> weights = weights_by_tap(problem.weight, shape.channels, shape.taps());
  const int64_t groups = ceil_div(shape.channels, kBlockChannels), width = shape.out_size.x;
  pool.parallel_for(blocks.count * groups, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> out(width * kBlockChannels);
    T mean[kBlockChannels], squares[kBlockChannels];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / groups, channel = (task - block * groups) * kBlockChannels;
      const int64_t channels = std::min(kBlockChannels, shape.channels - channel);
      Moments* total = moments + block * shape.channels + channel;
      std::fill_n(total, channels, Moments{});
      blocks.each_image(block, [&](int64_t image, int64_t first, int64_t last) {
        const T* source = input.data + image * input.batch_stride + channel;
        panels.each_row(first, last, [&](const Panel* row, int64_t number, int64_t, int64_t source_at) {
          const GradientKernels<T>& kernels = gradient_kernels<T>();
          kernels.gather_channels(row, number, channels, weights.data() + channel, source + source_at, out.data(),
                                  problem.pre);
          kernels.moments_channels(out.data(), width, kBlockChannels, channels, mean, squares);
          for (int64_t c = 0; c < channels; ++c) total[c].add(static_cast<double>(width), mean[c], squares[c]);
        });
      });
    }
  });
}

// The same with the columns of a row next to each other.
template <class T>
void moments_of_columns(const DepthwiseProblem<T>& problem, const RowBlocks& blocks, Moments* moments,
                        const Pool& pool) {
  const DepthwiseShape& shape = problem.shape;
  const ImageView<const T>& input = problem.input;
  const Phases phases(shape.size.x, shape.stride.x);
  const int64_t groups = ceil_div(shape.channels, kBlockPlanes), width = shape.out_size.x;
  const Panels panels(runs_of_output(shape), pixel_raster(width, 1), column_raster(phases), false, shape.kernel, 1);
  pool.parallel_for(blocks.count * groups, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> parts(shape.stride.x > 1 ? shape.size.y * phases.row() : 0);
    const Buffer<T> out(std::min(blocks.size, shape.out_size.y) * width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / groups, channel = (task - block * groups) * kBlockPlanes;
      const int64_t channels = std::min(kBlockPlanes, shape.channels - channel);
      Moments* total = moments + block * shape.channels + channel;
      std::fill_n(total, channels, Moments{});
      blocks.each_image(block, [&](int64_t image, int64_t first, int64_t last) {
        std::vector<Panel> cut = panels.of_rows(first, last);
        for (Panel& panel : cut) panel.at -= first * width;
        for (int64_t c = 0; c < channels; ++c) {
          const T* source = input.data + image * input.batch_stride + (channel + c) * input.channel_stride;
          if (shape.stride.x > 1) {
            phases.split(source, shape.size.y, parts.data());
            source = parts.data();
          }
          const GradientKernels<T>& kernels = gradient_kernels<T>();
          T mean, squares;
          kernels.gather_columns(cut.data(), static_cast<int64_t>(cut.size()),
                                 problem.weight + (channel + c) * shape.taps(), source, out.data(), problem.pre);
          kernels.moments_columns(out.data(), (last - first) * width, &mean, &squares);
          total[c].add(static_cast<double>((last - first) * width), mean, squares);
        }
      });
    }
  });
}

}  // namespace

template <class T>
void depthwise_moments(const DepthwiseProblem<T>& problem, T* mean, T* variance, const Pool& pool) {
  const RowBlocks blocks(problem.shape);
  const int64_t channels = problem.shape.channels;
  const Buffer<Moments> moments(blocks.count * channels);
  if (channels_last(problem.input))
    moments_of_channels(problem, blocks, moments.data(), pool);
  else
    moments_of_columns(problem, blocks, moments.data(), pool);
  for (int64_t c = 0; c < channels; ++c) {
    Moments total;
    for (int64_t block = 0; block < blocks.count; ++block) {
      const Moments& part = moments[block * channels + c];
      total.add(part.count, part.mean, part.squares);
    }
    // of no pixels, both are 0 / 0
    mean[c] = static_cast<T>(total.count > 0 ? total.mean : std::numeric_limits<double>::quiet_NaN());
    variance[c] = static_cast<T>(total.squares / total.count);
  }
}

template void depthwise_moments<float>(const DepthwiseProblem<float>&, float*, float*, const Pool&);
template void depthwise_moments<double>(const DepthwiseProblem<double>&, double*, double*, const Pool&);

}  // namespace densecrf
