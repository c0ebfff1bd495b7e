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
  const TapRuns runs = runs_of_output(shape);
  const Buffer<T> weights = weights_by_tap(problem.weight, shape.channels, shape.taps());
  const int64_t groups = ceil_div(shape.channels, kBlockChannels), width = shape.out_size.x;
  pool.parallel_for(blocks.count * groups, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> line(width * kBlockChannels);
    T mean[kBlockChannels], squares[kBlockChannels];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / groups, channel = (task - block * groups) * kBlockChannels;
      const int64_t channels = std::min(kBlockChannels, shape.channels - channel);
      Moments* total = moments + block * shape.channels + channel;
      std::fill_n(total, channels, Moments{});
      blocks.each_image(block, [&](int64_t image, int64_t first, int64_t last) {
        const T* source = input.data + image * input.batch_stride + channel;
        for_runs(runs.y, first, last, [&](const TapRun& row, int64_t skipped, int64_t count) {
          for (int64_t q = skipped; q < skipped + count; ++q) {
            for (const TapRun& column : runs.x.runs) {
              GatherTap<T> taps[kMaxTaps];
              int live = 0;
              for (int i = 0; i < row.live; ++i)
                for (int j = 0; j < column.live; ++j)
                  taps[live++] = {
                      weights.data() + (row.tap[i] * shape.kernel + column.tap[j]) * shape.channels + channel,
                      source + ((row.source[i] + q * shape.stride.y) * shape.size.x + column.source[j]) *
                                   input.pixel_stride};
              const GatherPanel<T> panel{column.count, channels, shape.stride.x * input.pixel_stride, kBlockChannels,
                                         line.data() + column.first * kBlockChannels};
              gradient_kernels<T>().gather_channels(taps, live, panel, problem.pre);
            }
            gradient_kernels<T>().moments_channels(line.data(), width, kBlockChannels, channels, mean, squares);
            for (int64_t c = 0; c < channels; ++c) total[c].add(static_cast<double>(width), mean[c], squares[c]);
          }
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
  const TapRuns runs = runs_of_output(shape);
  const Phases phases(shape.size.x, shape.stride.x);
  const int64_t width = shape.out_size.x;
  pool.parallel_for(blocks.count * shape.channels, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> parts(shape.stride.x > 1 ? shape.size.y * phases.row() : 0);
    const Buffer<T> lines(std::min(blocks.size, shape.out_size.y) * width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / shape.channels, channel = task - block * shape.channels;
      Moments& total = moments[task] = Moments{};
      blocks.each_image(block, [&](int64_t image, int64_t first, int64_t last) {
        const T* source = input.data + image * input.batch_stride + channel * input.channel_stride;
        if (shape.stride.x > 1) {
          phases.split(source, shape.size.y, parts.data());
          source = parts.data();
        }
        for_runs(runs.y, first, last, [&](const TapRun& row, int64_t skipped, int64_t count) {
          for (const TapRun& column : runs.x.runs) {
            GatherTap<T> taps[kMaxTaps];
            int live = 0;
            for (int i = 0; i < row.live; ++i)
              for (int j = 0; j < column.live; ++j)
                taps[live++] = {
                    problem.weight + channel * shape.taps() + row.tap[i] * shape.kernel + column.tap[j],
                    source + (row.source[i] + skipped * shape.stride.y) * phases.row() + phases.at(column.source[j])};
            const GatherPanel<T> panel{count, column.count, shape.stride.y * phases.row(), width,
                                       lines.data() + (row.first + skipped - first) * width + column.first};
            gradient_kernels<T>().gather_columns(taps, live, panel, problem.pre);
          }
        });
        T mean, squares;
        gradient_kernels<T>().moments_columns(lines.data(), (last - first) * width, &mean, &squares);
        total.add(static_cast<double>((last - first) * width), mean, squares);
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
