#include "depthwise.h"

#include "depthwise_strip.cuh"

namespace densecrf::cuda {
namespace {

template <class T>
struct GatherProblem {
  Gather gather;
  Strips strips;
  Tiles tiles;
  ImageView<const T> source;
  const T* weight;
  Activation pre;
  Affine<Accumulator<T>> affine;
  ImageView<T> out;
};

template <int V, int R>
__device__ __forceinline__ Strip strip_in_tile(const Gather& gather, const Strips& strips, const Tiles& tiles,
                                               const Place& place) {
  const int tile = static_cast<int>(blockIdx.x) / strips.chunks;
  const int across = tile % tiles.across, down = tile / tiles.across % tiles.down;
  const int row = down * tiles.rows + place.strip / tiles.columns;
  const int column = across * tiles.columns + place.strip % tiles.columns;
  if (place.strip >= tiles.rows * tiles.columns || row >= gather.y.slots() || column >= strips.of_row ||
      place.channel >= gather.channels)
    return {};
  return strip_at<R>(gather, strips, tile / tiles.across / tiles.down, row, column, place.channel);
}

template <class T, int V, int K, int R>
__global__ void __launch_bounds__(kBlockThreads, kResidentBlocks<K>) depthwise_kernel(GatherProblem<T> problem) {
  using A = Accumulator<T>;
  DENSECRF_DYNAMIC_SHARED(A, weights);
  const Gather& gather = problem.gather;
  const int width = problem.strips.lanes * V;
  const auto place = Place::of_thread<V>(problem.strips);
  const Strip strip = strip_in_tile<V, R>(gather, problem.strips, problem.tiles, place);
  load_weights<T, K>(gather, problem.weight, place.first_channel, width, weights);
  __syncthreads();
  if (strip.count == 0) return;
  A sums[R][V];
  gather_strip<T, V, K, R>(gather, problem.source, problem.pre, strip, weights + (strip.channel - place.first_channel),
                           width, sums);
  const Affine<A>& affine = problem.affine;
  const ImageView<T>& out = problem.out;
  T* to = out.data + strip.image * out.batch_stride + strip.channel +
          (static_cast<int64_t>(strip.y) * gather.x.outputs + strip.x) * out.pixel_stride;
  A scale[V], shift[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    scale[v] = affine.scale ? affine.scale[strip.channel + v] : A(1);
    shift[v] = affine.shift ? affine.shift[strip.channel + v] : A(0);
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (r >= strip.count) break;
    Packet<T, V> packet{};
#pragma unroll
    for (int v = 0; v < V; ++v)
      packet.set(v, activate(multiply_add(scale[v], sums[r][v], shift[v]), affine.activation));
    packet.store(to + static_cast<int64_t>(r) * gather.x.classes * out.pixel_stride);
  }
}

template <class T, int V, int K, int R>
void start(GatherProblem<T> problem, cudaStream_t stream) {
  const Gather& gather = problem.gather;
  problem.strips = cut_strips(gather, V, R);
  problem.tiles = cut_tiles(gather, problem.strips, R);
  const Grid grid{int64_t{problem.strips.chunks} * problem.tiles.across * problem.tiles.down * gather.batch, 1,
                  static_cast<int64_t>(sizeof(Accumulator<T>)) * problem.strips.lanes * V * K * K};
  launch(depthwise_kernel<T, V, K, R>, grid, stream, problem);
}

template <class T>
void run(const GatherProblem<T>& problem, cudaStream_t stream) {
  const int64_t channels = problem.gather.channels;
  choose_kernel<T, kPacketChannels<T>, kStrip>(
      problem.gather, fits_packets(problem.source, channels) && fits_packets(problem.out, channels),
      [&](auto packet, auto kernel, auto strip, const Gather& gather) {
        GatherProblem<T> chosen = problem;
        chosen.gather = gather;
        start<T, packet.value, kernel.value, strip.value>(chosen, stream);
      });
}

}  // namespace

template <class T>
void depthwise_forward(const DepthwiseProblem<T>& problem, const ImageView<T>& out, cudaStream_t stream) {
  run<T>({forward_gather(problem.shape), {}, {}, problem.input, problem.weight, problem.pre, problem.affine, out},
         stream);
}

template <class T>
void depthwise_input_gradient(const DepthwiseShape& shape, const ImageView<const T>& grad, const T* weight,
                              const ImageView<T>& grad_input, cudaStream_t stream) {
  run<T>({adjoint_gather(shape), {}, {}, grad, weight, Activation::none, {}, grad_input}, stream);
}

#define DENSECRF_INSTANTIATE(T)                                                                      \
  template void depthwise_forward(const DepthwiseProblem<T>&, const ImageView<T>&, cudaStream_t);    \
  template void depthwise_input_gradient(const DepthwiseShape&, const ImageView<const T>&, const T*, \
                                         const ImageView<T>&, cudaStream_t);
DENSECRF_INSTANTIATE(float)
DENSECRF_INSTANTIATE(double)
DENSECRF_INSTANTIATE(__half)
DENSECRF_INSTANTIATE(__nv_bfloat16)

}  // namespace densecrf::cuda
