// One thread's share of a gather: a strip of neighbouring outputs of one class, for one packet of channels.
#pragma once

#include "depthwise_gather.h"
#include "packets.cuh"

namespace densecrf::cuda {

// Outputs of a strip that share taps; images are often a little wider than a power of two, seldom than a multiple of 6.
constexpr int kStrip = 6;

// Outputs y and x + r · classes for r of 0 … count - 1, in the channels of a packet.
struct Strip {
  int64_t image;
  int y, x, count;  // count 0: nothing to do
  int channel;
};

// Strip `column` of the row of slots `row`.
template <int R>
__device__ __forceinline__ void place_strip(const Gather& gather, int strips_of_class, int row, int64_t column,
                                            Strip& strip) {
  const int first = static_cast<int>(column % strips_of_class) * R;
  strip.y = gather.y.output(row);
  strip.x = static_cast<int>(column / strips_of_class) + first * gather.x.classes;
  const int left = strip.x < gather.x.outputs ? (gather.x.outputs - 1 - strip.x) / gather.x.classes + 1 : 0;
  const int until_end = left < gather.x.length - first ? left : gather.x.length - first;
  strip.count = strip.y < gather.y.outputs ? (until_end < R ? until_end : R) : 0;
}

// The weights of a block's channels into shared memory, [K · K][lanes · V], in the order in which taps are read.
template <class T, int V, int K>
__device__ __forceinline__ void load_weights(const Gather& gather, const T* weight, int first_channel, int lanes,
                                             Accumulator<T>* shared) {
  const int taps = gather.kernel * gather.kernel, width = lanes * V;
  for (int n = threadIdx.x; n < width * K * K; n += kBlockThreads) {
    const int channel = first_channel + n / (K * K), tap = n % (K * K);
    const int from = K == 1 ? gather.y.first * gather.kernel + gather.x.first : tap;
    shared[tap * width + n / (K * K)] =
        channel < gather.channels
            ? to_accumulator(weight[static_cast<int64_t>(channel) * taps + (gather.backwards ? taps - 1 - from : from)])
            : Accumulator<T>(0);
  }
}

// Source pixels x0 + j · dilation of a row, all of which outputs of the strip share.
template <class T, int V, int N>
__device__ __forceinline__ void load_row(const GatherAxis& x, const T* row, int64_t pixel_stride, bool live, int first,
                                         Packet<T, V> (&packets)[N]) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    int at = first + j * x.dilation;
    const bool inside =
        live && static_cast<unsigned>(at) < static_cast<unsigned>(x.end) && (x.divisor == 1 || at % 2 == 0);
    if (x.divisor > 1) at /= 2;
    packets[j] = Packet<T, V>{};
    if (inside) packets[j] = Packet<T, V>::load(row + at * pixel_stride);
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
#pragma unroll(K <= 3 ? K : 1)
  for (int i = 0; i < K; ++i) {
    int y = strip.y * gather.y.step + gather.y.origin + i * gather.y.dilation;
    const bool live =
        static_cast<unsigned>(y) < static_cast<unsigned>(gather.y.end) && (gather.y.divisor == 1 || y % 2 == 0);
    if (K > 3 && !live) continue;
    if (gather.y.divisor > 1) y /= 2;
    Packet<T, V> row[R + K - 1];
    load_row<T, V, R + K - 1>(gather.x, image + static_cast<int64_t>(y) * gather.source_width * source.pixel_stride,
                              source.pixel_stride, live, first, row);
    A w[K][V];
#pragma unroll
    for (int j = 0; j < K; ++j)
#pragma unroll
      for (int v = 0; v < V; ++v) w[j][v] = weights[(i * K + j) * width + v];
#pragma unroll
    for (int j = 0; j < R + K - 1; ++j) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A x = activate(row[j].at(v), pre);
#pragma unroll
        for (int r = 0; r < R; ++r)
          if (j - r >= 0 && j - r < K) sums[r][v] = multiply_add(w[j - r][v], x, sums[r][v]);
      }
    }
  }
}

}  // namespace densecrf::cuda
