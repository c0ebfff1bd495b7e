// Mean field in steps, one kernel for each, for any number of labels: rows of pixels are [B, N, C] and a warp takes
// one.

#include "mean_field.h"
#include "pixel_update.cuh"

namespace densecrf::cuda {
namespace {

constexpr int kWarps = kBlockThreads / kWarpThreads;
constexpr int64_t kProductPoints = 256;  // summed by one block

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int step = kWarpThreads / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
  return value;
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int step = kWarpThreads / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(0xFFFFFFFFu, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// The pixel of this warp, `count` or more where there is none.
__device__ __forceinline__ int64_t warp_pixel() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpThreads;
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads) logits_kernel(MeanFieldProblem<T> problem, T* x) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (i >= problem.batch * problem.points() * problem.channels) return;
  // Neighbouring threads take neighbouring points: that is how a unary lies in memory as a rule.
  const int64_t n = i % problem.points(), c = i / problem.points() % problem.channels;
  const int64_t image = i / problem.points() / problem.channels;
  x[(image * problem.points() + n) * problem.channels + c] =
      -problem.unary.at(image, n)[c * problem.unary.channel_stride];
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    matrix_kernel(int64_t points, int channels, const T* matrix, bool transposed, const T* y, T* x) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (i >= points * channels) return;
  const int c = static_cast<int>(i % channels);
  const int64_t first = i - c, own = transposed ? c : static_cast<int64_t>(c) * channels;
  const int step = transposed ? channels : 1;
  T sum = T(0);
  for (int j = 0; j < channels; ++j)
    sum = multiply_add(matrix[own + static_cast<int64_t>(j) * step], y[first + j], sum);
  x[i] -= sum;
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    factor_kernel(int64_t points, int channels, ChannelFactor<T> factor, const T* y, T* x) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (i < points * channels) x[i] = multiply_add(factor.at(static_cast<int>(i % channels)), y[i], x[i]);
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    warp_update_kernel(MeanFieldProblem<T> problem, int iteration, const T* logits, BatchView<T> target) {
  const int64_t pixel = warp_pixel(), image = pixel / problem.points(), n = pixel % problem.points();
  if (image >= problem.batch || has_stopped(problem, image, iteration)) return;
  const int lane = threadIdx.x % kWarpThreads, channels = problem.channels;
  const T* x = logits + pixel * channels;
  T* q = target.at(image, n);
  T highest = -INFINITY, sum = T(0), changed = T(0);
  for (int c = lane; c < channels; c += kWarpThreads) highest = x[c] > highest ? x[c] : highest;
  highest = warp_max(highest);
  for (int c = lane; c < channels; c += kWarpThreads) sum += exponential(x[c] - highest);
  sum = warp_sum(sum);
  const T inverse = T(1) / sum, shift = log(sum);
  const bool writes = problem.writes(iteration), mixes = problem.damping > T(0) && iteration > 0;
  T most = T(-1);
  int best = 0;
  for (int c = lane; c < channels; c += kWarpThreads) {
    const int64_t plane = (image * channels + c) * problem.points() + n;
    T value = exponential(x[c] - highest) * inverse;
    if (c == 0) check_number(problem, image, n, iteration, value);
    if (problem.kept) {
      const T before = problem.kept[plane];
      if (iteration > 0) {
        value = problem.damping * before + (T(1) - problem.damping) * value;
        changed = fabs(value - before) > changed ? fabs(value - before) : changed;
      }
      problem.kept[plane] = value;
    }
    q[c * target.channel_stride] = value;
    if (value > most) {
      most = value;
      best = c;
    }
    if (!writes || problem.output == Output::labels) continue;
    problem.out[plane] = problem.output == Output::probabilities ? value
                         : mixes                                 ? log(value)
                                                                 : (x[c] - highest) - shift;
  }
  if (problem.change) report_change(problem, image, iteration, changed);
  if (!writes || problem.output != Output::labels) return;
  for (int step = kWarpThreads / 2; step > 0; step /= 2) {  // of equals, the first
    const T other = __shfl_xor_sync(0xFFFFFFFFu, most, step);
    const int label = __shfl_xor_sync(0xFFFFFFFFu, best, step);
    if (other > most || (other == most && label < best)) {
      most = other;
      best = label;
    }
  }
  if (lane == 0) problem.labels[image * problem.points() + n] = best;
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads) softmax_gradient_kernel(SoftmaxGradient<T> problem) {
  const int64_t pixel = warp_pixel(), image = pixel / problem.points, n = pixel % problem.points;
  if (image >= problem.batch) return;
  const int lane = threadIdx.x % kWarpThreads;
  const T* grad = problem.grad.at(image, n);
  const T* q = problem.q.at(image, n);
  T sum = T(0);
  for (int c = lane; c < problem.channels; c += kWarpThreads) {
    const T g = grad[c * problem.grad.channel_stride];
    sum += problem.logarithm ? g : q[c * problem.q.channel_stride] * g;
  }
  sum = warp_sum(sum);
  for (int c = lane; c < problem.channels; c += kWarpThreads) {
    const T g = grad[c * problem.grad.channel_stride], value = q[c * problem.q.channel_stride];
    const T result = problem.logarithm ? g - exp(value) * sum : value * (g - sum);
    const int64_t at = pixel * problem.channels + c;
    problem.g[at] = result;
    problem.total[at] = problem.first ? result : problem.total[at] + result;
  }
}

// Sums over the points of one block, then over blocks; in double, because the sums are long and cancel.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    product_kernel(int64_t points, int channels, const T* y, BatchView<const T> q, T* parts) {
  const int64_t image = blockIdx.y, begin = blockIdx.x * kProductPoints, end = min_of(begin + kProductPoints, points);
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
  __shared__ double sums[kWarps][kWarpThreads];
  for (int first = 0; first < channels; first += kWarpThreads) {
    const int c = first + lane;
    double sum = 0;
    for (int64_t n = begin + warp; n < end && c < channels; n += kWarps)
      sum += static_cast<double>(y[(image * points + n) * channels + c] * q.at(image, n)[c * q.channel_stride]);
    __syncthreads();  // the sums of the channels before have been read
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || c >= channels) continue;
    for (int w = 1; w < kWarps; ++w) sum += sums[w][lane];
    parts[(image * gridDim.x + blockIdx.x) * channels + c] = static_cast<T>(sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    sum_products_kernel(int64_t count, int channels, const T* parts, BatchView<T> sums) {
  const int64_t image = blockIdx.y;
  const int c = static_cast<int>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (c >= channels) return;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(parts[(image * count + i) * channels + c]);
  T& target = sums.at(image, 0)[c * sums.channel_stride];
  target = static_cast<T>(static_cast<double>(target) + sum);
}

Grid warps_for(int64_t pixels) { return {ceil_div(pixels, kWarps)}; }

}  // namespace

template <class T>
void load_logits(const MeanFieldProblem<T>& problem, T* x, cudaStream_t stream) {
  const int64_t size = problem.batch * problem.points() * problem.channels;
  launch(logits_kernel<T>, {ceil_div(size, kBlockThreads)}, stream, problem, x);
}

template <class T>
void subtract_matrix(int64_t points, int channels, const T* matrix, bool transposed, const T* y, T* x,
                     cudaStream_t stream) {
  launch(matrix_kernel<T>, {ceil_div(points * channels, kBlockThreads)}, stream, points, channels, matrix, transposed,
         y, x);
}

template <class T>
void add_scaled_rows(int64_t points, int channels, const ChannelFactor<T>& factor, const T* y, T* x,
                     cudaStream_t stream) {
  launch(factor_kernel<T>, {ceil_div(points * channels, kBlockThreads)}, stream, points, channels, factor, y, x);
}

template <class T>
void update(const MeanFieldProblem<T>& problem, int iteration, const T* x, const BatchView<T>& q, cudaStream_t stream) {
  launch(warp_update_kernel<T>, warps_for(problem.batch * problem.points()), stream, problem, iteration, x, q);
}

template <class T>
void softmax_gradient(const SoftmaxGradient<T>& problem, cudaStream_t stream) {
  launch(softmax_gradient_kernel<T>, warps_for(problem.batch * problem.points), stream, problem);
}

int64_t product_parts(int64_t points) { return ceil_div(points, kProductPoints); }

template <class T>
void add_parts(int64_t batch, int64_t count, int channels, const T* parts, BatchView<T> sums, cudaStream_t stream) {
  launch(sum_products_kernel<T>, {ceil_div(channels, kBlockThreads), batch}, stream, count, channels, parts, sums);
}

template <class T>
void add_products(int64_t batch, int64_t points, int channels, const T* y, const BatchView<const T>& q, T* parts,
                  BatchView<T> sums, cudaStream_t stream) {
  launch(product_kernel<T>, {product_parts(points), batch}, stream, points, channels, y, q, parts);
  add_parts<T>(batch, product_parts(points), channels, parts, sums, stream);
}

#define DENSECRF_INSTANTIATE(T)                                                                            \
  template void load_logits(const MeanFieldProblem<T>&, T*, cudaStream_t);                                 \
  template void subtract_matrix(int64_t, int, const T*, bool, const T*, T*, cudaStream_t);                 \
  template void add_scaled_rows(int64_t, int, const ChannelFactor<T>&, const T*, T*, cudaStream_t);        \
  template void update(const MeanFieldProblem<T>&, int, const T*, const BatchView<T>&, cudaStream_t);      \
  template void softmax_gradient(const SoftmaxGradient<T>&, cudaStream_t);                                 \
  template void add_parts(int64_t, int64_t, int, const T*, BatchView<T>, cudaStream_t);                    \
  template void add_products(int64_t, int64_t, int, const T*, const BatchView<const T>&, T*, BatchView<T>, \
                             cudaStream_t);
DENSECRF_INSTANTIATE(float)
DENSECRF_INSTANTIATE(double)

}  // namespace densecrf::cuda
