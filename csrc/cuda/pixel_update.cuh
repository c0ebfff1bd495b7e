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

template <int R>
struct PixelRow;

// From the logits of a pixel to its Q, in place; writes what is due and returns the largest change of a probability.
template <int R>
__device__ __forceinline__ float update_pixel(const MeanFieldProblem<float>& problem, int64_t image, int64_t point,
                                              int iteration, PixelRow<R>& x) {
  constexpr int padded = R * kVector;
  const int channels = problem.channels;
  const int64_t first = image * channels * problem.points() + point;  // of planes [B, C, N]
  float highest = -INFINITY, sum = 0.0f, changed = 0.0f;
#pragma unroll
  for (int c = 0; c < padded; ++c) highest = x.at(c) > highest ? x.at(c) : highest;
  const bool writes = problem.writes(iteration);
  const bool mixes = problem.damping > 0.0f && iteration > 0;
  const bool logarithms = writes && problem.output == Output::log_probabilities;
  if (logarithms && !mixes) {
#pragma unroll
    for (int c = 0; c < padded; ++c) sum += exponential(x.at(c) - highest);
    const float shift = logf(sum);
#pragma unroll
    for (int c = 0; c < padded; ++c)
      if (c < channels) problem.out[first + c * problem.points()] = (x.at(c) - highest) - shift;
    sum = 0.0f;
  }
#pragma unroll
  for (int c = 0; c < padded; ++c) {
    x.at(c) = exponential(x.at(c) - highest);
    sum += x.at(c);
  }
  const float inverse = 1.0f / sum;
#pragma unroll
  for (int c = 0; c < padded; ++c) x.at(c) *= inverse;
  check_number(problem, image, point, iteration, x.at(0));
  if (problem.kept) {
#pragma unroll
    for (int c = 0; c < padded; ++c) {
      if (c >= channels) continue;
      float& before = problem.kept[first + c * problem.points()];
      if (iteration > 0) {
        x.at(c) = problem.damping * before + (1.0f - problem.damping) * x.at(c);
        changed = fabsf(x.at(c) - before) > changed ? fabsf(x.at(c) - before) : changed;
      }
      before = x.at(c);
    }
  }
  if (!writes || (logarithms && !mixes)) return changed;
  if (problem.output == Output::labels) {
    int best = 0;
    float most = x.at(0);
#pragma unroll
    for (int c = 1; c < padded; ++c) {
      if (c >= channels || !(x.at(c) > most)) continue;
      best = c;
      most = x.at(c);
    }
    problem.labels[image * problem.points() + point] = best;
    return changed;
  }
#pragma unroll
  for (int c = 0; c < padded; ++c)
    if (c < channels) problem.out[first + c * problem.points()] = logarithms ? logf(x.at(c)) : x.at(c);
  return changed;
}

}  // namespace densecrf::cuda
