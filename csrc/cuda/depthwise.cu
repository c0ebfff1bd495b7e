#include "depthwise.h"

#include "depthwise_strip.cuh"

namespace densecrf::cuda {
namespace {

template <class T>
struct GatherProblem {
  Gather gather;
  GatherTiles tiles;
  ImageView<const T> source;
  const T* weight;
  Activation pre;
  Affine<Accumulator<T>> affine;
  ImageView<T> out;
};

// The first channel of a block, and each thread's strip.
template <int V, int R>
__device__ __forceinline__ Strip strip_of_thread(const Gather& gather, const GatherTiles& tiles, int& first_channel) {
  int64_t block = blockIdx.x;
  first_channel = static_cast<int>(block % tiles.chunks) * tiles.lanes * V;
  block /= tiles.chunks;
  const int64_t across = block % tiles.across, down = block / tiles.across % tiles.down;
  const int lane = static_cast<int>(threadIdx.x) % tiles.lanes, place = static_cast<int>(threadIdx.x) / tiles.lanes;
  const int64_t row = down * tiles.rows + place / tiles.strips, column = across * tiles.strips + place % tiles.strips;
  Strip strip{block / tiles.across / tiles.down, 0, 0, 0, first_channel + lane * V};
  if (place < tiles.rows * tiles.strips && row < gather.y.slots() && column < tiles.row_strips &&
      strip.channel < gather.channels)
    place_strip<R>(gather, tiles.strips_of_class, static_cast<int>(row), column, strip);
  return strip;
}

template <class T, int V, int K, int R>
__global__ void __launch_bounds__(kBlockThreads) depthwise_kernel(GatherProblem<T> problem) {
  using A = Accumulator<T>;
  DENSECRF_DYNAMIC_SHARED(A, weights);
  const Gather& gather = problem.gather;
  int first_channel;
  const Strip strip = strip_of_thread<V, R>(gather, problem.tiles, first_channel);
  load_weights<T, V, K>(gather, problem.weight, first_channel, problem.tiles.lanes, weights);
  __syncthreads();
  if (strip.count == 0) return;
  A sums[R][V];
  gather_strip<T, V, K, R>(gather, problem.source, problem.pre, strip, weights + (strip.channel - first_channel),
                           problem.tiles.lanes * V, sums);
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
  problem.tiles = gather_tiles(problem.gather, V, R);
  const int64_t shared = static_cast<int64_t>(problem.tiles.lanes) * V * K * K * sizeof(Accumulator<T>);
  launch(depthwise_kernel<T, V, K, R>, {problem.tiles.blocks(problem.gather.batch), 1, shared}, stream, problem);
}

// Strips of one output where neighbours share no taps, or where there are too few neighbours.
template <class T, int V, int K>
void start_strips(const GatherProblem<T>& problem, cudaStream_t stream) {
  if constexpr (K > 1 && V > 1 && sizeof(T) < 8)
    if (problem.gather.x.shares_taps() && problem.gather.x.length > 2) return start<T, V, K, kStrip>(problem, stream);
  start<T, V, K, 1>(problem, stream);
}

template <class T, int V>
void start_kernel(GatherProblem<T> problem, cudaStream_t stream) {
  Gather& gather = problem.gather;
  if (gather.one_tap()) {
    gather.y = gather.y.first_tap_alone();
    gather.x = gather.x.first_tap_alone();
    return start<T, V, 1, 1>(problem, stream);
  }
  if (gather.kernel == 3) return start_strips<T, V, 3>(problem, stream);
  if (gather.kernel == 5) return start_strips<T, V, 5>(problem, stream);
  start_strips<T, V, 7>(problem, stream);
}

template <class T>
void run(const GatherProblem<T>& problem, cudaStream_t stream) {
  const bool whole =
      fits_packets(problem.source, problem.gather.channels) && fits_packets(problem.out, problem.gather.channels);
  if (whole)
    start_kernel<T, kPacketChannels<T>>(problem, stream);
  else
    start_kernel<T, 1>(problem, stream);
}

}  // namespace

template <class T>
void depthwise_forward(const DepthwiseProblem<T>& problem, const ImageView<T>& out, cudaStream_t stream) {
  run<T>({forward_gather(problem.shape), {}, problem.input, problem.weight, problem.pre, problem.affine, out}, stream);
}

template <class T>
void depthwise_input_gradient(const DepthwiseShape& shape, const ImageView<const T>& grad, const T* weight,
                              const ImageView<T>& grad_input, cudaStream_t stream) {
  run<T>({adjoint_gather(shape), {}, grad, weight, Activation::none, {}, grad_input}, stream);
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
