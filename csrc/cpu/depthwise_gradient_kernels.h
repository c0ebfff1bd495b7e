// The inner loops of the depthwise gradients as a table of functions, compiled once per instruction set (isa_*.cpp).
#pragma once

#include "depthwise_runs.h"

namespace densecrf {

// Positions of a map that read a source through the same taps: `count` lines of neighbouring numbers. Where channels
// are last a line is one pixel, of as many channels as the call says; otherwise it is `length` columns of one channel.
// Offsets count from the beginning of an image, and of the first tap's weights.
struct Panel {
  int64_t count, length;
  int64_t at, stride;     // of the map: the first number, and from line to line
  int64_t source_stride;  // from line to line
  int live;
  int64_t source[kMaxTaps], weight[kMaxTaps];  // of each live tap
};

template <class T>
struct GradientKernels {
  // map = sum over taps of weight · pre(source), with weights [taps, channels] or [taps].
  void (*gather_channels)(const Panel* panels, int64_t number, int64_t channels, const T* weight, const T* source,
                          T* map, Activation pre);
  void (*gather_columns)(const Panel* panels, int64_t number, const T* weight, const T* source, T* map, Activation pre);

  // sums += sum over lines (and columns) of map · pre(source), laid out as weights are.
  void (*correlate_channels)(const Panel* panels, int64_t number, int64_t channels, const T* map, const T* source,
                             T* sums, Activation pre);
  void (*correlate_columns)(const Panel* panels, int64_t number, const T* map, const T* source, T* sums, int taps,
                            Activation pre);

  // mean[c] and the sum of (line[c] - mean[c])² over `count` lines of channels
  void (*moments_channels)(const T* lines, int64_t count, int64_t stride, int64_t channels, T* mean, T* squares);
  // the same of `count` numbers
  void (*moments_columns)(const T* numbers, int64_t count, T* mean, T* squares);
};

// The best table for this processor.
template <class T>
const GradientKernels<T>& gradient_kernels();

}  // namespace densecrf
