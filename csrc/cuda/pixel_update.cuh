// The update of one pixel and what it reports.
#pragma once

#include "../mean_field.h"
#include "mean_field.h"

namespace densecrf::cuda {

// Whether an update before this one left every probability of the image as it was, up to the tolerance.
template <class T>
__device__ __forceinline__ bool has_stopped(const MeanFieldProblem<T>& problem, int64_t image, int iteration) {
  if (problem.change == nullptr || problem.tolerance < T(0)) return false;
  for (int i = 1; i < iteration; ++i)
    if (__longlong_as_double(problem.change[i * problem.batch + image]) <= static_cast<double>(problem.tolerance))
      return true;
  return false;
}

// The largest change, whatever the order: bits of numbers that are not negative order as they do.
template <class T>
__device__ __forceinline__ void report_change(const MeanFieldProblem<T>& problem, int64_t image, int iteration,
                                              T changed) {
  for (int step = kWarpThreads / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(0xFFFFFFFFu, changed, step);
    changed = other > changed ? other : changed;
  }
  if (threadIdx.x % kWarpThreads == 0)
    atomicMax(problem.change + iteration * problem.batch + image,
              static_cast<unsigned long long>(__double_as_longlong(static_cast<double>(changed))));
}

// A distribution that is not a number: at first the unary is to blame, later an overflow.
template <class T>
__device__ __forceinline__ void check_number(const MeanFieldProblem<T>& problem, int64_t image, int64_t point,
                                             int iteration, T q) {
  if (q == q) return;
  const uint64_t word = update_fault(iteration ? Fault::overflow : Fault::unary, iteration, point);
  atomicMax(problem.faults + image, static_cast<unsigned long long>(kNoFault - word));
}

// Labels by vectors of four; R vectors for each pixel.
template <int R>
struct PixelRow {
  Vector<float, kVector> of[R];

  __device__ float& at(int channel) { return of[channel / kVector].of[channel % kVector]; }
};

// From the logits of a pixel to its Q, in place; `row` is in shared memory, padded with -infinity, which becomes 0.
// Writes what is due and returns the largest change of a probability. The loops over what goes to memory read the row
// again: unrolled over registers, their addresses would need more registers than there are.
template <int R>
__device__ __forceinline__ float update_pixel(const MeanFieldProblem<float>& problem, int64_t image, int64_t point,
                                              int iteration, Vector<float, kVector>* row) {
  constexpr int padded = R * kVector;
  const int channels = problem.channels;
  const int64_t points = problem.points(), first = image * channels * points + point;  // of planes [B, C, N]
  float* values = row->of;
  const bool writes = problem.writes(iteration), mixes = problem.damping > 0.0f && iteration > 0;
  const bool logarithms = writes && problem.output == Output::log_probabilities;
  PixelRow<R> x;
  float highest = -INFINITY, sum = 0.0f, changed = 0.0f;
#pragma unroll
  for (int i = 0; i < R; ++i) x.of[i] = row[i];
#pragma unroll
  for (int c = 0; c < padded; ++c) highest = x.at(c) > highest ? x.at(c) : highest;
#pragma unroll
  for (int c = 0; c < padded; ++c) {
    x.at(c) = exponential(x.at(c) - highest);
    sum += x.at(c);
  }
  if (logarithms && !mixes) {
    const float shift = logf(sum);
#pragma unroll 4
    for (int c = 0; c < channels; ++c) problem.out[first + c * points] = (values[c] - highest) - shift;
  }
  const float inverse = 1.0f / sum;
#pragma unroll
  for (int c = 0; c < padded; ++c) x.at(c) *= inverse;
#pragma unroll
  for (int i = 0; i < R; ++i) row[i] = x.of[i];
  check_number(problem, image, point, iteration, x.at(0));
  if (problem.kept) {
#pragma unroll 4
    for (int c = 0; c < channels; ++c) {
      float& before = problem.kept[first + c * points];
      if (iteration > 0) {
        values[c] = problem.damping * before + (1.0f - problem.damping) * values[c];
        changed = fabsf(values[c] - before) > changed ? fabsf(values[c] - before) : changed;
      }
      before = values[c];
    }
  }
  if (!writes || (logarithms && !mixes)) return changed;
  if (problem.output == Output::labels) {
    int best = 0;
    for (int c = 1; c < channels; ++c)
      if (values[c] > values[best]) best = c;
    problem.labels[image * points + point] = best;
    return changed;
  }
#pragma unroll 4
  for (int c = 0; c < channels; ++c) problem.out[first + c * points] = logarithms ? logf(values[c]) : values[c];
  return changed;
}

}  // namespace densecrf::cuda
