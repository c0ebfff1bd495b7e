// The depthwise stage of the fused kernel: what the product multiplies, made in shared memory.
#pragma once

#include "separable_fused_tile.cuh"
#include "tensor_core.cuh"

namespace densecrf::cuda {

// Taps of the tile's pixels, once for all channels. A pixel behind the last one has none.
template <class T, class Tile>
__device__ __forceinline__ void place_pixels(const FusedProblem<T>& problem, int64_t first_pixel,
                                             const FusedMemory<T, Tile>& memory) {
  const ImageView<const T>& input = problem.separable.depthwise.input;
  const TapAxis &rows = problem.y, &columns = problem.x;
  for (int t = threadIdx.x; t < memory.taps; t += kBlockThreads)
    memory.tap_offsets[t] = (static_cast<int64_t>(t / columns.live_taps) * rows.dilation * columns.size +
                             static_cast<int64_t>(t % columns.live_taps) * columns.dilation) *
                            input.pixel_stride;
  for (int p = threadIdx.x; p < Tile::pixels; p += kBlockThreads) {
    PixelTaps at{0, 0};
    if (first_pixel + p < problem.pixels) {
      const PixelPlace place(first_pixel + p, rows, columns);
      const int y = rows.step * place.y + rows.origin, x = columns.step * place.x + columns.origin;
      at.offset = place.image * input.batch_stride + (static_cast<int64_t>(y) * columns.size + x) * input.pixel_stride;
      for (int t = 0; t < memory.taps; ++t) {
        const int row = y + t / columns.live_taps * rows.dilation,
                  column = x + t % columns.live_taps * columns.dilation;
        const bool inside = row >= 0 && row < rows.size && column >= 0 && column < columns.size;
        at.live |= static_cast<unsigned long long>(inside) << t;
      }
    }
    memory.pixels[p] = at;
  }
}

// The depthwise weights of a chunk, tap by tap, then scale and shift; zero behind the last channel.
template <class T>
__device__ __forceinline__ void load_weights(const FusedProblem<T>& problem, int chunk, Accumulator<T>* weights) {
  using A = Accumulator<T>;
  const DepthwiseProblem<T>& depthwise = problem.separable.depthwise;
  const int kernel = depthwise.shape.kernel, columns = problem.x.live_taps, taps = problem.y.live_taps * columns;
  for (int i = threadIdx.x; i < (taps + 2) * kChunk<T>; i += kBlockThreads) {
    const int row = i / kChunk<T>;
    const int channel = chunk * kChunk<T> + i % kChunk<T>;
    A value = A(0);
    if (channel < depthwise.shape.channels) {
      if (row < taps) {
        const int tap = (problem.y.first_tap + row / columns) * kernel + problem.x.first_tap + row % columns;
        value = to_accumulator(depthwise.weight[static_cast<int64_t>(channel) * kernel * kernel + tap]);
      } else if (row == taps) {
        value = depthwise.affine.scale ? depthwise.affine.scale[channel] : A(1);
      } else if (depthwise.affine.shift) {
        value = depthwise.affine.shift[channel];
      }
    }
    weights[i] = value;
  }
}

// The pointwise weights of a chunk: rows of outputs, zero behind the last output and the last channel.
template <class T, class Tile>
__device__ __forceinline__ void begin_factors(const FusedProblem<T>& problem, int first_output, int chunk, char* to) {
  constexpr int V = kPacketChannels<T>;
  const SeparableProblem<T>& separable = problem.separable;
  const int channels = static_cast<int>(separable.depthwise.shape.channels);
  for (int i = threadIdx.x; i < Tile::outputs * kSegments; i += kBlockThreads) {
    const int row = i / kSegments, segment = i % kSegments;
    const int output = first_output + row, channel = chunk * kChunk<T> + segment * V;
    const bool exists = output < separable.out_channels && channel < channels;
    const T* from = separable.pointwise + (exists ? static_cast<int64_t>(output) * channels + channel : 0);
    char* place = to + segment_offset(row, segment);
    if (problem.whole_packets) {
      copy_async(place, from, exists ? kSegmentBytes : 0);
    } else {
      Packet<T, V> packet{};
      for (int v = 0; v < V; ++v)
        if (exists && channel + v < channels) packet.set(v, to_accumulator(from[v]));
      packet.store(reinterpret_cast<T*>(place));
    }
  }
}

// 16 bytes of a pixel of which `count` channels exist.
template <class T, bool WholePackets>
__device__ __forceinline__ Packet<T, kPacketChannels<T>> load_pixel(const T* from, int count) {
  constexpr int V = kPacketChannels<T>;
  if constexpr (WholePackets) {
    return Packet<T, V>::load(from);
  } else {
    Packet<T, V> packet{};
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (v < count) packet.set(v, to_accumulator(from[v]));
    return packet;
  }
}

// The left factor of a chunk: every thread makes one segment of several pixels. As many loads are on their way together
// as there are registers for.
template <class T, class Tile, bool WholePackets, class Product>
__device__ __forceinline__ void produce(const FusedProblem<T>& problem, const FusedMemory<T, Tile>& memory, int chunk) {
  using A = Accumulator<T>;
  constexpr int V = kPacketChannels<T>, together = !WholePackets ? 1 : Tile::blocks == 1 ? 9 : 3;
  const DepthwiseProblem<T>& depthwise = problem.separable.depthwise;
  const int segment = threadIdx.x % kSegments, stage = chunk % 2;
  const int channel = chunk * kChunk<T> + segment * V;
  const int count = static_cast<int>(depthwise.shape.channels) - channel;
  const A* weights = memory.weights_of(stage) + segment * V;
#pragma unroll 1
  for (int p = threadIdx.x / kSegments; p < Tile::pixels; p += kBlockThreads / kSegments) {
    const T* from = depthwise.input.data + memory.pixels[p].offset + channel;
    unsigned long long live = count > 0 ? memory.pixels[p].live : 0;
    A sums[V] = {};
    for (int first = 0; live != 0; first += together, live >>= together) {
      Packet<T, V> x[together];
#pragma unroll
      for (int t = 0; t < together; ++t)
        if (live >> t & 1) x[t] = load_pixel<T, WholePackets>(from + memory.tap_offsets[first + t], count);
#pragma unroll
      for (int t = 0; t < together; ++t) {
        if (!(live >> t & 1)) continue;
        const A* weight = weights + (first + t) * kChunk<T>;
#pragma unroll
        for (int v = 0; v < V; ++v) sums[v] = multiply_add(weight[v], activate(x[t].at(v), depthwise.pre), sums[v]);
      }
    }
    const A *scale = weights + memory.taps * kChunk<T>, *shift = scale + kChunk<T>;
    Packet<T, V> packet{};
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A y = activate(multiply_add(scale[v], sums[v], shift[v]), depthwise.affine.activation);
      packet.set(v, Product::operand(y));
    }
    packet.store(reinterpret_cast<T*>(memory.inputs(stage) + segment_offset(p, segment)));
  }
}

}  // namespace densecrf::cuda
