// Where the taps of a depthwise convolution fall along one axis: positions are grouped into runs that share one set of
// taps inside of the source, so that no loop over pixels tests a border and none multiplies with the padding.
#pragma once

#include <cstdint>
#include <vector>

#include "../separable_conv.h"

namespace densecrf {

constexpr int kMaxKernel = 7;

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

// Positions of the output, which read the input.
TapRuns runs_of_output(const DepthwiseShape& shape);

// Positions of the input, which read the output's gradient through the transposed convolution.
TapRuns runs_of_input(const DepthwiseShape& shape);

}  // namespace densecrf
