// One thread's share of a gather: a strip of neighbouring outputs of one class, for one packet of channels.
#pragma once

#include "depthwise_gather.h"
#include "packets.cuh"

namespace densecrf::cuda {

// Outputs of a strip that share taps; images are often a little wider than a power of two, seldom than a multiple of 6.
constexpr int kStrip = 6;

// Where threads keep sums of their own too, fewer channels and outputs fit in their registers.
template <class T>
constexpr int kSumPacketChannels = min_of(kPacketChannels<T>, 4);
template <class T>
constexpr int kSumStrip = sizeof(T) == 2 ? 6 : 4;

// Blocks that a multiprocessor has registers for at the least: of the usual kernel enough to hide the time of loads.
// GPUs without instructions for bfloat16 need more registers.
template <int K>
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kResidentBlocks = 1;
#else
constexpr int kResidentBlocks = K > 3 ? 1 : 2;
#endif

// Outputs y and x + r · classes for r of 0 … count - 1, in the channels of a packet.
struct Strip {
  int image, y, x, count;  // count 0: nothing to do
  int channel;
};

// Where a thread stands among those of its block: what its packet is, and which of the strips it has.
struct Place {
  int chunk, first_channel, channel, strip;

  template <int V>
  static __device__ __forceinline__ Place of_thread(const Strips& strips) {
    const int chunk = static_cast<int>(blockIdx.x % strips.chunks), first = chunk * strips.lanes * V;
    const int thread = static_cast<int>(threadIdx.x);
    return {chunk, first, first + thread % strips.lanes * V, thread / strips.lanes};
  }
};

// Strip `column` of a row of slots.
template <int R>
__device__ __forceinline__ Strip strip_at(const Gather& gather, const Strips& strips, int image, int row, int column,
                                          int channel) {
  const int first = column % strips.of_class * R;
  const int y = gather.y.output(row), x = column / strips.of_class + first * gather.x.classes;
  const int left = x < gather.x.outputs ? (gather.x.outputs - 1 - x) / gather.x.classes + 1 : 0;
  const int of_class = min(left, gather.x.length - first);
  return {image, y, x, y < gather.y.outputs ? min(of_class, R) : 0, channel};
}

// The weights of a block's channels into shared memory, [K · K][width], in the order in which taps are read.
template <class T, int K>
__device__ __forceinline__ void load_weights(const Gather& gather, const T* weight, int first_channel, int width,
                                             Accumulator<T>* shared) {
  const int taps = gather.kernel * gather.kernel;
  for (int n = threadIdx.x; n < width * K * K; n += kBlockThreads) {
    const int channel = first_channel + n / (K * K), tap = n % (K * K);
    const int from = K == 1 ? gather.y.first * gather.kernel + gather.x.first : tap;
    shared[tap * width + n / (K * K)] =
        channel < gather.channels
            ? to_accumulator(weight[static_cast<int64_t>(channel) * taps + (gather.backwards ? taps - 1 - from : from)])
            : Accumulator<T>(0);
  }
}

// Whether a position is a pixel of the source, and which one.
__device__ __forceinline__ bool source_pixel(const GatherAxis& axis, int position, int& pixel) {
  pixel = axis.divisor == 1 ? position : position / 2;  // strides are 1 or 2
  return static_cast<unsigned>(position) < static_cast<unsigned>(axis.end) && (axis.divisor == 1 || position % 2 == 0);
}

// The pixels at positions first + j · dilation of a row, for j below `count`; zero where there is none.
template <class T, int V, int N>
__device__ __forceinline__ void load_row(const GatherAxis& x, const T* row, int pixel_stride, bool live, int first,
                                         int count, Packet<T, V> (&packets)[N]) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    int pixel;
    const bool inside = source_pixel(x, first + j * x.dilation, pixel);
    packets[j] = Packet<T, V>{};
    if (live && inside && j < count) packets[j] = Packet<T, V>::load(row + pixel * pixel_stride);
  }
}

// sums[r][v] = what output r of the strip gathers in channel v of its packet; each sum runs over the taps in their
// order.
template <class T, int V, int K, int R>
__device__ __forceinline__ void gather_strip(const Gather& gather, const ImageView<const T>& source, Activation pre,
                                             const Strip& strip, const Accumulator<T>* weights, int width,
                                             Accumulator<T> (&sums)[R][V]) {
  using A = Accumulator<T>;
  const T* image = source.data + strip.image * source.batch_stride + strip.channel;
  const int first = strip.x * gather.x.step + gather.x.origin;
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int v = 0; v < V; ++v) sums[r][v] = A(0);
  // a row has enough loads to wait for where outputs share them
#pragma unroll(K == 3 && R == 1 ? K : 1)
  for (int i = 0; i < K; ++i) {
    int y;
    const bool live = source_pixel(gather.y, strip.y * gather.y.step + gather.y.origin + i * gather.y.dilation, y);
    if ((K > 3 || R > 1) && !live) continue;
    Packet<T, V> row[R + K - 1];
    load_row<T, V, R + K - 1>(gather.x, image + static_cast<int64_t>(y) * gather.source_width * source.pixel_stride,
                              static_cast<int>(source.pixel_stride), live, first, R + K - 1, row);
    if (pre != Activation::none) {
#pragma unroll
      for (int j = 0; j < R + K - 1; ++j) row[j] = activated(row[j], pre);
    }
    // few channels at a time, whose weights are in registers together
    constexpr int together = V < 2 ? V : 2;
#pragma unroll
    for (int c = 0; c < V; c += together) {
      A w[K][together];
#pragma unroll
      for (int j = 0; j < K; ++j)
#pragma unroll
        for (int v = 0; v < together; ++v) w[j][v] = weights[(i * K + j) * width + c + v];
#pragma unroll
      for (int j = 0; j < R + K - 1; ++j)
#pragma unroll
        for (int v = 0; v < together; ++v) {
          const A x = row[j].at(c + v);
#pragma unroll
          for (int r = 0; r < R; ++r)
            if (j - r >= 0 && j - r < K) sums[r][c + v] = multiply_add(w[j - r][v], x, sums[r][c + v]);
        }
    }
  }
}

template <int N>
using Constant = std::integral_constant<int, N>;

// Calls start(packet, kernel, strip, gather) with these sizes as constants. A kernel of which but one tap is live is
// one of size 1. Strips are of one output where neighbours share no taps, or where there are too few of them.
template <class T, int V, int R, class Start>
void choose_sizes(Gather gather, Start start) {
  if (gather.one_tap()) {
    gather.y = gather.y.first_tap_alone();
    gather.x = gather.x.first_tap_alone();
    return start(Constant<V>{}, Constant<1>{}, Constant<1>{}, gather);
  }
  const auto with_kernel = [&](auto kernel) {
    if constexpr (V > 1 && sizeof(T) < 8)
      if (gather.x.shares_taps() && gather.x.length > 2) return start(Constant<V>{}, kernel, Constant<R>{}, gather);
    start(Constant<V>{}, kernel, Constant<1>{}, gather);
  };
  if (gather.kernel == 3) return with_kernel(Constant<3>{});
  if (gather.kernel == 5) return with_kernel(Constant<5>{});
  with_kernel(Constant<7>{});
}

// Of packets of V channels and strips of R outputs, or of single ones.
template <class T, int V, int R, class Start>
void choose_kernel(const Gather& gather, bool packets, Start start) {
  packets ? choose_sizes<T, V, R>(gather, start) : choose_sizes<T, 1, 1>(gather, start);
}

}  // namespace densecrf::cuda
