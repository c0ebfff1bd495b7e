#include "depthwise.h"

#include "depthwise_strip.cuh"

namespace densecrf::cuda {
namespace {

template <class T>
struct WeightGradient {
  Gather gather;
  Strips strips;
  Parts parts;
  ImageView<const T> grad, source;
  Activation pre;
  Accumulator<T>* sums;  // [parts, K · K, C]
};

// Each block sums over the strips of a part, for `Rows` rows of taps and its channels.
template <class T, int V, int K, int Rows, int R>
__global__ void __launch_bounds__(kBlockThreads, kResidentBlocks<K>) weight_gradient_kernel(WeightGradient<T> problem) {
  using A = Accumulator<T>;
  __shared__ A of_threads[kBlockThreads * V];
  const Gather& gather = problem.gather;
  const Strips& strips = problem.strips;
  const auto place = Place::of_thread<V>(strips);
  const int64_t part = blockIdx.x / strips.chunks;
  const int first_row = static_cast<int>(blockIdx.y) * Rows, together = strips.together();
  const bool active = place.strip < together && place.channel < gather.channels;
  const int64_t end = active ? min_of((part + 1) * problem.parts.length, problem.parts.strips) : 0;
  A sums[Rows][K][V] = {};
  for (int64_t n = part * problem.parts.length + place.strip; n < end; n += together) {
    const int64_t row = n / strips.of_row;
    const Strip strip =
        strip_at<R>(gather, strips, static_cast<int>(row / gather.y.slots()), static_cast<int>(row % gather.y.slots()),
                    static_cast<int>(n % strips.of_row), place.channel);
    if (strip.count == 0) continue;
    const T* from = problem.grad.data + strip.image * problem.grad.batch_stride + strip.channel +
                    (static_cast<int64_t>(strip.y) * gather.x.outputs + strip.x) * problem.grad.pixel_stride;
    Packet<T, V> grad[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      grad[r] = Packet<T, V>{};
      if (r < strip.count)
        grad[r] = Packet<T, V>::load(from + r * gather.x.classes * static_cast<int>(problem.grad.pixel_stride));
    }
    const T* image = problem.source.data + strip.image * problem.source.batch_stride + strip.channel;
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
      int y;
      const int position = strip.y * gather.y.step + gather.y.origin + (first_row + i) * gather.y.dilation;
      const bool live = source_pixel(gather.y, position, y);
      if (!live) continue;
      Packet<T, V> pixels[R + K - 1];
      load_row<T, V>(gather.x, image + static_cast<int64_t>(y) * gather.source_width * problem.source.pixel_stride,
                     static_cast<int>(problem.source.pixel_stride), live, strip.x * gather.x.step + gather.x.origin,
                     strip.count + K - 1, pixels);
      if (problem.pre != Activation::none) {
#pragma unroll
        for (int j = 0; j < R + K - 1; ++j) pixels[j] = activated(pixels[j], problem.pre);
      }
#pragma unroll
      for (int j = 0; j < R + K - 1; ++j)
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A x = pixels[j].at(v);
#pragma unroll
          for (int r = 0; r < R; ++r)
            if (j - r >= 0 && j - r < K) sums[i][j - r][v] = multiply_add(grad[r].at(v), x, sums[i][j - r][v]);
        }
    }
  }

  // the threads of a packet, in their order
  const int width = strips.lanes * V, thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < Rows; ++i)
#pragma unroll
    for (int j = 0; j < K; ++j) {
      __syncthreads();  // the sums of the tap before have been read
#pragma unroll
      for (int v = 0; v < V; ++v) of_threads[thread * V + v] = sums[i][j][v];
      __syncthreads();
      const int channel = place.first_channel + thread;
      if (thread >= width || channel >= gather.channels) continue;
      A sum = A(0);
      for (int p = 0; p < together; ++p) sum += of_threads[p * width + thread];
      problem.sums[(part * K * K + (first_row + i) * K + j) * gather.channels + channel] = sum;
    }
}

// One thread for each weight; in double, because the sums are long.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    add_parts_kernel(int64_t parts, int taps, int summed_taps, int first_tap, int64_t channels,
                     const Accumulator<T>* sums, T* grad_weight) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x, channel = n % channels;
  const int tap = static_cast<int>(n / channels), summed = tap - first_tap;
  if (tap >= taps) return;
  double sum = 0;
  if (summed >= 0 && summed < summed_taps)
    for (int64_t p = 0; p < parts; ++p)
      sum += static_cast<double>(sums[(p * summed_taps + summed) * channels + channel]);
  from_accumulator(static_cast<Accumulator<T>>(sum), grad_weight[channel * taps + tap]);
}

// The sums of all taps are in registers: of fewer channels than a packet could have, and of large kernels a row of
// taps.
template <int K>
constexpr int kTapRows = K > 3 ? 1 : K;

template <class T, int V, int K, int R>
WeightGradient<T> cut(const Gather& gather) {
  WeightGradient<T> problem{gather, cut_strips(gather, V, R)};
  problem.parts = cut_parts(gather, problem.strips, problem.strips.chunks * (K / kTapRows<K>));
  return problem;
}

// Calls start(packet, kernel, strip, problem) with constants.
template <class T, class Start>
void choose(const DepthwiseShape& shape, Start start) {
  choose_kernel<T, kSumPacketChannels<T>, kSumStrip<T>>(
      forward_gather(shape), shape.channels % kSumPacketChannels<T> == 0,
      [&](auto packet, auto kernel, auto strip, const Gather& gather) {
        start(packet, kernel, strip, cut<T, packet.value, kernel.value, strip.value>(gather));
      });
}

}  // namespace

template <class T>
int64_t weight_gradient_workspace(const DepthwiseShape& shape) {
  int64_t numbers = 0;
  choose<T>(shape, [&](auto, auto kernel, auto, const WeightGradient<T>& problem) {
    numbers = problem.parts.count * kernel.value * kernel.value * shape.channels;
  });
  return numbers;
}

template <class T>
void depthwise_weight_gradient(const DepthwiseShape& shape, const ImageView<const T>& grad,
                               const ImageView<const T>& input, Activation pre, T* grad_weight,
                               Accumulator<T>* workspace, cudaStream_t stream) {
  choose<T>(shape, [&](auto packet, auto kernel, auto strip, WeightGradient<T> problem) {
    constexpr int K = kernel.value, kRows = kTapRows<K>;
    problem.grad = grad;
    problem.source = input;
    problem.pre = pre;
    problem.sums = workspace;
    launch(weight_gradient_kernel<T, packet.value, K, kRows, strip.value>,
           {problem.strips.chunks * problem.parts.count, K / kRows}, stream, problem);
    const Gather& gather = problem.gather;
    const int first_tap = K == 1 ? gather.y.first * gather.kernel + gather.x.first : 0;
    launch(add_parts_kernel<T>, {ceil_div(shape.channels * shape.taps(), kBlockThreads)}, stream, problem.parts.count,
           shape.taps(), K * K, first_tap, shape.channels, workspace, grad_weight);
  });
}

#define DENSECRF_INSTANTIATE(T)                                                                                        \
  template int64_t weight_gradient_workspace<T>(const DepthwiseShape&);                                                \
  template void depthwise_weight_gradient(const DepthwiseShape&, const ImageView<const T>&, const ImageView<const T>&, \
                                          Activation, T*, Accumulator<T>*, cudaStream_t);
DENSECRF_INSTANTIATE(float)
DENSECRF_INSTANTIATE(double)
DENSECRF_INSTANTIATE(__half)
DENSECRF_INSTANTIATE(__nv_bfloat16)

}  // namespace densecrf::cuda
