#include "depthwise_runs.h"

#include <algorithm>

namespace densecrf {
namespace {

struct Axis {
  int64_t size, out_size, stride, padding, dilation;
  int kernel;
};

Axis axis_y(const DepthwiseShape& s) {
  return {s.size.y, s.out_size.y, s.stride.y, s.padding.y, s.dilation.y, s.kernel};
}

Axis axis_x(const DepthwiseShape& s) {
  return {s.size.x, s.out_size.x, s.stride.x, s.padding.x, s.dilation.x, s.kernel};
}

// A tap that reads offset + q · step at the q-th of `count` positions, which is inside for q of [begin, end).
struct Reach {
  Reach(int tap, int64_t offset, int64_t step, int64_t source_size, int64_t count) : tap(tap), offset(offset) {
    begin = std::min(count, ceil_div(std::max<int64_t>(-offset, 0), step));
    end = std::max(begin, std::min(count, ceil_div(std::max<int64_t>(source_size - offset, 0), step)));
  }
  int tap;
  int64_t offset, begin, end;
};

// Cuts positions first + q · axis.step, q < count, where a tap enters or leaves.
void append_runs(int64_t first, int64_t count, const std::vector<Reach>& taps, AxisRuns& axis) {
  std::vector<int64_t> cuts = {0, count};
  for (const Reach& tap : taps) cuts.insert(cuts.end(), {tap.begin, tap.end});
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    TapRun run;
    run.first = first + cuts[i] * axis.step;
    run.count = cuts[i + 1] - cuts[i];
    for (const Reach& tap : taps)
      if (tap.begin <= cuts[i] && cuts[i] < tap.end) {
        run.tap[run.live] = tap.tap;
        run.source[run.live++] = tap.offset + cuts[i] * axis.source_step;
      }
    axis.runs.push_back(run);
  }
}

AxisRuns output_axis(const Axis& axis) {
  AxisRuns result{1, axis.stride, {}};
  std::vector<Reach> taps;
  for (int i = 0; i < axis.kernel; ++i)
    taps.emplace_back(i, i * axis.dilation - axis.padding, axis.stride, axis.size, axis.out_size);
  append_runs(0, axis.out_size, taps, result);
  return result;
}

AxisRuns input_axis(const Axis& axis) {
  AxisRuns result{axis.stride, 1, {}};
  for (int64_t phase = 0; phase < std::min(axis.stride, axis.size); ++phase) {
    const int64_t count = ceil_div(axis.size - phase, axis.stride);
    std::vector<Reach> taps;
    for (int i = 0; i < axis.kernel; ++i) {
      const int64_t distance = phase + axis.padding - i * axis.dilation;
      if (distance % axis.stride == 0) taps.emplace_back(i, distance / axis.stride, 1, axis.out_size, count);
    }
    append_runs(phase, count, taps, result);
  }
  return result;
}

}  // namespace

TapRuns runs_of_output(const DepthwiseShape& shape) { return {output_axis(axis_y(shape)), output_axis(axis_x(shape))}; }

TapRuns runs_of_input(const DepthwiseShape& shape) { return {input_axis(axis_y(shape)), input_axis(axis_x(shape))}; }

}  // namespace densecrf
