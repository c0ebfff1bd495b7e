#include "depthwise_tiles.h"

#include <algorithm>

namespace densecrf {

template <class T>
ChannelsOfPixels<T>::ChannelsOfPixels(const DepthwiseProblem<T>& problem)
    : problem_(problem),
      runs_(runs_of_output(problem.shape)),
      weights_(weights_by_tap(problem.weight, problem.shape.channels, problem.shape.taps())) {}

template <class T>
void ChannelsOfPixels<T>::compute(int64_t image, int64_t first, int64_t end, T* out, int64_t stride) const {
  const DepthwiseShape& shape = problem_.shape;
  const int64_t pixel_stride = problem_.input.pixel_stride;
  const T* source = problem_.input.data + image * problem_.input.batch_stride;
  while (first < end) {
    const int64_t y = first / shape.out_size.x, x = first - y * shape.out_size.x;
    const int64_t row_end = std::min(shape.out_size.x, x + end - first);
    for_runs(runs_.y, y, y + 1, [&](const TapRun& row, int64_t down, int64_t) {
      for_runs(runs_.x, x, row_end, [&](const TapRun& column, int64_t right, int64_t count) {
        GatherTap<T> taps[kMaxTaps];
        int live = 0;
        for (int i = 0; i < row.live; ++i)
          for (int j = 0; j < column.live; ++j) {
            const int64_t from_y = row.source[i] + down * shape.stride.y;
            const int64_t from_x = column.source[j] + right * shape.stride.x;
            taps[live++] = {weights_.data() + (row.tap[i] * shape.kernel + column.tap[j]) * shape.channels,
                            source + (from_y * shape.size.x + from_x) * pixel_stride};
          }
        const GatherPanel<T> panel{count, shape.channels, shape.stride.x * pixel_stride, stride,
                                   out + (column.first + right - x) * stride};
        separable_kernels<T>().depthwise_channels(taps, live, panel, problem_.pre, problem_.affine);
      });
    });
    out += (row_end - x) * stride;
    first += row_end - x;
  }
}

template <class T>
PixelsOfChannels<T>::PixelsOfChannels(const DepthwiseProblem<T>& problem) : problem_(problem) {
  const DepthwiseShape& s = problem.shape;
  rows_ = reaches(s.kernel, s.size.y, s.out_size.y, s.stride.y, s.padding.y, s.dilation.y);
  columns_ = reaches(s.kernel, s.size.x, s.out_size.x, s.stride.x, s.padding.x, s.dilation.x);
}

template <class T>
auto PixelsOfChannels<T>::reaches(int kernel, int64_t size, int64_t out_size, int64_t stride, int64_t padding,
                                  int64_t dilation) -> std::vector<Reach> {
  std::vector<Reach> result;
  for (int i = 0; i < kernel; ++i) {
    const int64_t offset = i * dilation - padding;
    const auto first_from = [&](int64_t source) {
      return std::min(out_size, ceil_div(std::max<int64_t>(source - offset, 0), stride));
    };
    result.push_back({offset, first_from(0), first_from(size)});
  }
  return result;
}

template <class T>
void PixelsOfChannels<T>::append_vector(const PixelRange& range, Taps& taps) const {
  const DepthwiseShape& shape = problem_.shape;
  const int64_t width = shape.out_size.x, start = range.image * problem_.input.batch_stride;
  const size_t first = taps.taps.size();
  for (int i = 0; i < shape.kernel; ++i)
    for (int j = 0; j < shape.kernel; ++j)
      for (int64_t lane = 0; lane < range.count;) {
        const int64_t y = (range.first + lane) / width, x = range.first + lane - y * width;
        const int64_t length = std::min(width - x, range.count - lane);
        const int64_t begin = std::max(x, columns_[j].begin), end = std::min(x + length, columns_[j].end);
        if (rows_[i].begin <= y && y < rows_[i].end && begin < end) {
          const uint32_t lanes = ((uint32_t(1) << (end - begin)) - 1) << (lane + begin - x);
          const int64_t from = (y * shape.stride.y + rows_[i].offset) * shape.size.x + columns_[j].offset +
                               (x - lane) * shape.stride.x + start;
          PixelTap* last = taps.taps.size() > first ? &taps.taps.back() : nullptr;
          if (last && last->tap == i * shape.kernel + j && last->source == from)
            last->lanes |= lanes;
          else
            taps.taps.push_back({i * shape.kernel + j, lanes, from});
        }
        lane += length;
      }
  taps.first.push_back(static_cast<int32_t>(taps.taps.size()));
}

template <class T>
auto PixelsOfChannels<T>::taps_of(const std::vector<PixelRange>& ranges, int64_t vectors) const -> Taps {
  const int64_t lanes = separable_kernels<T>().lanes;
  Taps taps{{}, {0}};
  for (const PixelRange& range : ranges)
    for (int64_t at = 0; at < std::max(vectors * lanes, range.count); at += lanes)
      append_vector({range.image, range.first + at, std::clamp<int64_t>(range.count - at, 0, lanes)}, taps);
  return taps;
}

template <class T>
void PixelsOfChannels<T>::compute(const Taps& taps, int64_t channel, int64_t end, T* out, int64_t channel_stride,
                                  int64_t panel_stride, int64_t last_lanes) const {
  const DepthwiseShape& shape = problem_.shape;
  Affine<T> affine = problem_.affine;
  if (affine.scale) affine.scale += channel;
  if (affine.shift) affine.shift += channel;
  separable_kernels<T>().depthwise_pixels(
      {taps.taps.data(), taps.first.data(), static_cast<int64_t>(taps.first.size()) - 1, last_lanes, end - channel,
       problem_.input.data + channel * problem_.input.channel_stride, problem_.input.channel_stride,
       static_cast<int>(shape.stride.x), problem_.weight + channel * shape.taps(), shape.taps(), problem_.pre, affine,
       out, channel_stride, panel_stride});
}

template class ChannelsOfPixels<float>;
template class ChannelsOfPixels<double>;
template class PixelsOfChannels<float>;
template class PixelsOfChannels<double>;

}  // namespace densecrf
