#include "packets.cuh"
#include "separable_fused.h"

namespace densecrf::cuda {
namespace {

// What lies next to each other in memory is a row: the channels of a pixel, or the pixels of a channel.
struct Rows {
  bool of_channels;
  int64_t count, length;  // in all images, in elements
  int64_t pixels, channels;
};

template <class T>
__device__ __forceinline__ T* element(const ImageView<T>& view, int64_t image, int64_t pixel, int64_t channel) {
  return view.data + image * view.batch_stride + pixel * view.pixel_stride + channel * view.channel_stride;
}

template <class T, int V>
__global__ void __launch_bounds__(kBlockThreads)
    finish_kernel(ImageView<T> out, ImageView<const T> residual, Affine<Accumulator<T>> affine, Rows rows) {
  using A = Accumulator<T>;
  const int64_t packets = rows.length / V, step = static_cast<int64_t>(gridDim.x) * kBlockThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x; i < rows.count * packets;
       i += step) {
    const int64_t row = i / packets, at = (i - row * packets) * V,
                  others = rows.of_channels ? rows.pixels : rows.channels;
    const int64_t image = row / others, other = row - image * others;
    const int64_t pixel = rows.of_channels ? other : at, channel = rows.of_channels ? at : other;
    T* to = element(out, image, pixel, channel);
    const auto product = *reinterpret_cast<const Packet<T, V>*>(to);
    Packet<T, V> added{}, result{};
    if (residual.data) added = Packet<T, V>::load(element(residual, image, pixel, channel));
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t c = rows.of_channels ? channel + v : channel;
      A y = multiply_add(affine.scale ? affine.scale[c] : A(1), product.at(v), affine.shift ? affine.shift[c] : A(0));
      if (residual.data) y += added.at(v);
      result.set(v, activate(y, affine.activation));
    }
    result.store(to);
  }
}

// Whether vectors of V elements of a row can be moved.
template <class T>
bool in_packets(const ImageView<T>& view, const Rows& rows, int64_t V) {
  const int64_t next = rows.of_channels ? view.pixel_stride : view.channel_stride;
  return next % V == 0 && view.batch_stride % V == 0 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

}  // namespace

template <class T>
void finish_pointwise(const SeparableProblem<T>& problem, const ImageView<T>& out, cudaStream_t stream) {
  constexpr int V = kPacketChannels<T>;
  const int64_t batch = problem.depthwise.shape.batch, pixels = problem.depthwise.shape.out_pixels();
  const bool of_channels = out.channel_stride == 1;
  const Rows rows{of_channels, batch * (of_channels ? pixels : problem.out_channels),
                  of_channels ? problem.out_channels : pixels, pixels, problem.out_channels};
  const ImageView<const T>& residual = problem.residual;
  const bool alike = !residual.data || (of_channels ? residual.channel_stride == 1 : residual.pixel_stride == 1);
  const bool packed =
      alike && rows.length % V == 0 && in_packets(out, rows, V) && (!residual.data || in_packets(residual, rows, V));
  const Grid grid{striding_blocks(rows.count * rows.length / (packed ? V : 1))};
  launch(packed ? finish_kernel<T, V> : finish_kernel<T, 1>, grid, stream, out, residual, problem.affine, rows);
}

template void finish_pointwise(const SeparableProblem<float>&, const ImageView<float>&, cudaStream_t);
template void finish_pointwise(const SeparableProblem<double>&, const ImageView<double>&, cudaStream_t);
template void finish_pointwise(const SeparableProblem<__half>&, const ImageView<__half>&, cudaStream_t);
template void finish_pointwise(const SeparableProblem<__nv_bfloat16>&, const ImageView<__nv_bfloat16>&, cudaStream_t);

}  // namespace densecrf::cuda
