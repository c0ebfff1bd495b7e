// Where the taps of a depthwise convolution fall along one axis: positions are grouped into runs that share one set of
// taps inside of the source, so that no loop over pixels tests a border and none multiplies with the padding.
#pragma once

#include <cstdint>
#include <vector>

#include "../separable_conv.h"

namespace densecrf {

constexpr int kMaxKernel = 7;
constexpr int kMaxTaps = kMaxKernel * kMaxKernel;

// Positions first + q · step for q of 0 … count - 1; the n-th live tap reads source[n] + q · source_step.
struct TapRun {
  int64_t first = 0, count = 0;
  int live = 0;
  int tap[kMaxKernel] = {};
  int64_t source[kMaxKernel] = {};
};

// Every position of the axis is in exactly one run, in one without taps too.
struct AxisRuns {
  int64_t step = 1, source_step = 1;
  std::vector<TapRun> runs;
};

struct TapRuns {
  AxisRuns y, x;
};

// Calls function(run, skipped, count) for the parts of runs within positions [begin, end); the step must be 1.
template <class Function>
void for_runs(const AxisRuns& axis, int64_t begin, int64_t end, Function function) {
  for (const TapRun& run : axis.runs) {
    const int64_t from = begin > run.first ? begin : run.first, to = min_of(end, run.first + run.count);
    if (from < to) function(run, from - run.first, to - from);
  }
}

// A live tap of some pixels, and where these pixels go: `count` lines of `length` channels.
template <class T>
struct GatherTap {
  const T* weight;  // [length]
  const T* source;
};

template <class T>
struct GatherPanel {
  int64_t count, length;
  int64_t source_stride, out_stride;  // from line to line
  T* out;
};

// Positions of the output, which read the input.
TapRuns runs_of_output(const DepthwiseShape& shape);

// Positions of the input, which read the output's gradient through the transposed convolution.
TapRuns runs_of_input(const DepthwiseShape& shape);

}  // namespace densecrf
