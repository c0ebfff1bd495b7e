// Any stretch of the depthwise convolution's output, in the form that the caller wants: the image itself, or the rows
// or columns of a matrix product. What does not depend on the stretch is prepared once.
#pragma once

#include <vector>

#include "depthwise.h"
#include "depthwise_panels.h"
#include "separable_kernels.h"

namespace densecrf {

// With the channels of a pixel next to each other.
template <class T>
class ChannelsOfPixels {
 public:
  explicit ChannelsOfPixels(const DepthwiseProblem<T>& problem);

  // Pixels [first, end) of an image, in rows that are `stride` apart.
  void compute(int64_t image, int64_t first, int64_t end, T* out, int64_t stride) const;

 private:
  const DepthwiseProblem<T>& problem_;
  TapRuns runs_;
  Buffer<T> weights_;
};

// Pixels [first, first + count) of an image.
struct PixelRange {
  int64_t image, first, count;
};

// With the pixels of a channel next to each other.
template <class T>
class PixelsOfChannels {
 public:
  explicit PixelsOfChannels(const DepthwiseProblem<T>& problem);

  // The taps of the vectors of some ranges, each of which has at least `vectors`.
  struct Taps {
    std::vector<PixelTap> taps;
    std::vector<int32_t> first;
  };
  Taps taps_of(const std::vector<PixelRange>& ranges, int64_t vectors) const;

  // Channels [channel, end) of those ranges. In `out` channels are `channel_stride` apart, and panels of two vectors
  // `panel_stride`; the last vector is written up to `last_lanes`.
  void compute(const Taps& taps, int64_t channel, int64_t end, T* out, int64_t channel_stride, int64_t panel_stride,
               int64_t last_lanes) const;

 private:
  // Positions along one axis at which a tap is inside of the image.
  struct Reach {
    int64_t offset, begin, end;
  };
  static std::vector<Reach> reaches(int kernel, int64_t size, int64_t out_size, int64_t stride, int64_t padding,
                                    int64_t dilation);
  void append_vector(const PixelRange& range, Taps& taps) const;

  const DepthwiseProblem<T>& problem_;
  std::vector<Reach> rows_, columns_;
};

}  // namespace densecrf
