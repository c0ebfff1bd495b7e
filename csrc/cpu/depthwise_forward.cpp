#include <algorithm>

#include "depthwise_tiles.h"

namespace densecrf {
namespace {

template <class T>
void forward_of_channels(const DepthwiseProblem<T>& problem, const ImageView<T>& out, const Pool& pool) {
  const DepthwiseShape& shape = problem.shape;
  const ChannelsOfPixels<T> tiles(problem);
  pool.parallel_for(shape.batch * shape.out_size.y, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / shape.out_size.y, first = (row - image * shape.out_size.y) * shape.out_size.x;
      tiles.compute(image, first, first + shape.out_size.x,
                    out.data + image * out.batch_stride + first * out.pixel_stride, out.pixel_stride);
    }
  });
}

// Pixels whose taps are found once for many channels: of a channel they fill some kilobytes of the first cache.
constexpr int64_t kTilePixels = 512;
// Enough channels to pay for that.
constexpr int64_t kTileChannels = 256;

template <class T>
void forward_of_pixels(const DepthwiseProblem<T>& problem, const ImageView<T>& out, const Pool& pool) {
  const DepthwiseShape& shape = problem.shape;
  const PixelsOfChannels<T> tiles(problem);
  const int64_t lanes = separable_kernels<T>().lanes;
  const int64_t stretches = ceil_div(shape.out_pixels(), kTilePixels);
  const int64_t groups = ceil_div(shape.channels, kTileChannels);
  pool.parallel_for(shape.batch * stretches * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task % groups, stretch = task / groups % stretches, image = task / groups / stretches;
      const PixelRange range{image, stretch * kTilePixels,
                             std::min(kTilePixels, shape.out_pixels() - stretch * kTilePixels)};
      const int64_t channel = group * kTileChannels, channels = std::min(kTileChannels, shape.channels - channel);
      tiles.compute(tiles.taps_of({range}, 1), channel, channel + channels,
                    out.data + image * out.batch_stride + range.first + channel * out.channel_stride,
                    out.channel_stride, 2 * lanes, range.count - (ceil_div(range.count, lanes) - 1) * lanes);
    }
  });
}

}  // namespace

template <class T>
void depthwise_forward(const DepthwiseProblem<T>& problem, const ImageView<T>& out, const Pool& pool) {
  if (problem.input.channel_stride == 1 && out.channel_stride == 1)
    forward_of_channels(problem, out, pool);
  else
    forward_of_pixels(problem, out, pool);
}

template void depthwise_forward<float>(const DepthwiseProblem<float>&, const ImageView<float>&, const Pool&);
template void depthwise_forward<double>(const DepthwiseProblem<double>&, const ImageView<double>&, const Pool&);

}  // namespace densecrf
