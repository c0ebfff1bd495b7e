// The inner loops of the depthwise gradients as a table of functions, compiled once per instruction set (isa_*.cpp).
// A panel is `count` lines of `length` neighbouring numbers: pixels of neighbouring channels where channels are last,
// otherwise rows of neighbouring columns. Within a panel every tap reads a panel of the source of its own.
#pragma once

#include "depthwise_runs.h"

namespace densecrf {

constexpr int kMaxTaps = kMaxKernel * kMaxKernel;

template <class T>
struct GatherTap {
  const T* weight;  // [length] where channels are last, otherwise one number
  const T* source;
};

template <class T>
struct GatherPanel {
  int64_t count, length;
  int64_t source_stride, out_stride;  // from line to line
  T* out;
};

template <class T>
struct CorrelateTap {
  const T* source;
  T* sum;  // [length] where channels are last, otherwise one number
};

template <class T>
struct CorrelatePanel {
  int64_t count, length;
  int64_t grad_stride, source_stride;
  const T* grad;
};

template <class T>
struct GradientKernels {
  // out = sum over taps of weight · pre(source)
  void (*gather_channels)(const GatherTap<T>* taps, int live, const GatherPanel<T>& panel, Activation pre);
  void (*gather_columns)(const GatherTap<T>* taps, int live, const GatherPanel<T>& panel, Activation pre);

  // sum of each tap += sum over the panel (over its lines where channels are last) of grad · pre(source)
  void (*correlate_channels)(const CorrelateTap<T>* taps, int live, const CorrelatePanel<T>& panel, Activation pre);
  void (*correlate_columns)(const CorrelateTap<T>* taps, int live, const CorrelatePanel<T>& panel, Activation pre);

  // mean[c] and the sum of (line[c] - mean[c])² over `count` lines of `length` channels
  void (*moments_channels)(const T* lines, int64_t count, int64_t stride, int64_t length, T* mean, T* squares);
  // the same of `count` numbers
  void (*moments_columns)(const T* numbers, int64_t count, T* mean, T* squares);
};

// The best table for this processor.
template <class T>
const GradientKernels<T>& gradient_kernels();

}  // namespace densecrf
