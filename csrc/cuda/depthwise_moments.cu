#include "depthwise.h"

#include "depthwise_strip.cuh"

namespace densecrf::cuda {
namespace {

template <class T>
struct MomentsProblem {
  Gather gather;
  Strips strips;
  Parts parts;
  ImageView<const T> source;
  const T* weight;
  Activation pre;
  Accumulator<T>* moments;  // [parts, 3, C]: how many numbers, their mean, the sum of their squared distances from it
};

// Those of a set of numbers. Two sets are joined after Chan, Golub and LeVeque (1983), equation 1.5, which loses no
// digits where the mean is far from zero.
template <class A>
struct Moments {
  A count, mean, squares;

  __device__ __forceinline__ void join(const Moments& other) {
    if (other.count == A(0)) return;
    const A all = count + other.count, share = other.count / all, distance = other.mean - mean;
    mean = multiply_add(distance, share, mean);
    squares += multiply_add(distance * distance, count * share, other.squares);
    count = all;
  }
};

template <class T, int V, int K, int R>
__global__ void __launch_bounds__(kBlockThreads, kResidentBlocks<K>) moments_kernel(MomentsProblem<T> problem) {
  using A = Accumulator<T>;
  DENSECRF_DYNAMIC_SHARED(A, weights);
  __shared__ A counts[kBlockThreads], means[kBlockThreads * V], squares[kBlockThreads * V];
  const Gather& gather = problem.gather;
  const Strips& strips = problem.strips;
  const auto place = Place::of_thread<V>(strips);
  const int64_t part = blockIdx.x / strips.chunks;
  const int width = strips.lanes * V, together = strips.together(), thread = static_cast<int>(threadIdx.x);
  load_weights<T, K>(gather, problem.weight, place.first_channel, width, weights);
  __syncthreads();
  const bool active = place.strip < together && place.channel < gather.channels;
  const int64_t end = active ? min_of((part + 1) * problem.parts.length, problem.parts.strips) : 0;
  A count = A(0), mean[V] = {}, square[V] = {};
  for (int64_t n = part * problem.parts.length + place.strip; n < end; n += together) {
    const int64_t row = n / strips.of_row;
    const Strip strip =
        strip_at<R>(gather, strips, static_cast<int>(row / gather.y.slots()), static_cast<int>(row % gather.y.slots()),
                    static_cast<int>(n % strips.of_row), place.channel);
    if (strip.count == 0) continue;
    A sums[R][V];
    gather_strip<T, V, K, R>(gather, problem.source, problem.pre, strip,
                             weights + (strip.channel - place.first_channel), width, sums);
    const A of_strip = static_cast<A>(strip.count);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      Moments<A> own{of_strip, A(0), A(0)};
#pragma unroll
      for (int r = 0; r < R; ++r)
        if (r < strip.count) own.mean += sums[r][v];
      own.mean /= of_strip;
#pragma unroll
      for (int r = 0; r < R; ++r)
        if (r < strip.count) own.squares = multiply_add(sums[r][v] - own.mean, sums[r][v] - own.mean, own.squares);
      Moments<A> before{count, mean[v], square[v]};
      before.join(own);
      mean[v] = before.mean;
      square[v] = before.squares;
    }
    count += of_strip;
  }

  counts[thread] = count;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    means[thread * V + v] = mean[v];
    squares[thread * V + v] = square[v];
  }
  __syncthreads();
  const int channel = place.first_channel + thread;
  if (thread >= width || channel >= gather.channels) return;
  Moments<A> all{A(0), A(0), A(0)};
  for (int p = 0; p < together; ++p)
    all.join({counts[p * strips.lanes + thread / V], means[p * width + thread], squares[p * width + thread]});
  A* to = problem.moments + part * 3 * gather.channels + channel;
  to[0] = all.count;
  to[gather.channels] = all.mean;
  to[2 * gather.channels] = all.squares;
}

template <class A>
__global__ void __launch_bounds__(kBlockThreads)
    join_parts_kernel(int64_t parts, int64_t channels, const A* moments, A* mean, A* variance) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (channel >= channels) return;
  Moments<double> all{0, 0, 0};
  for (int64_t p = 0; p < parts; ++p) {
    const A* of_part = moments + p * 3 * channels + channel;
    all.join({static_cast<double>(of_part[0]), static_cast<double>(of_part[channels]),
              static_cast<double>(of_part[2 * channels])});
  }
  mean[channel] = static_cast<A>(all.mean);
  variance[channel] = static_cast<A>(all.squares / all.count);
}

template <class T, int V, int R>
MomentsProblem<T> cut(const Gather& gather) {
  MomentsProblem<T> problem{gather, cut_strips(gather, V, R)};
  problem.parts = cut_parts(gather, problem.strips, problem.strips.chunks);
  return problem;
}

// Calls start(packet, kernel, strip, problem) with constants.
template <class T, class Start>
void choose(const DepthwiseShape& shape, Start start) {
  choose_kernel<T, kSumPacketChannels<T>, kSumStrip<T>>(
      forward_gather(shape), shape.channels % kSumPacketChannels<T> == 0,
      [&](auto packet, auto kernel, auto strip, const Gather& gather) {
        start(packet, kernel, strip, cut<T, packet.value, strip.value>(gather));
      });
}

}  // namespace

template <class T>
int64_t moments_workspace(const DepthwiseShape& shape) {
  int64_t numbers = 0;
  choose<T>(shape, [&](auto, auto, auto, const MomentsProblem<T>& problem) {
    numbers = problem.parts.count * 3 * shape.channels;
  });
  return numbers;
}

template <class T>
void depthwise_moments(const DepthwiseProblem<T>& problem, Accumulator<T>* mean, Accumulator<T>* variance,
                       Accumulator<T>* workspace, cudaStream_t stream) {
  using A = Accumulator<T>;
  choose<T>(problem.shape, [&](auto packet, auto kernel, auto strip, MomentsProblem<T> of_parts) {
    constexpr int V = packet.value, K = kernel.value;
    of_parts.source = problem.input;
    of_parts.weight = problem.weight;
    of_parts.pre = problem.pre;
    of_parts.moments = workspace;
    const int64_t shared = static_cast<int64_t>(sizeof(A)) * of_parts.strips.lanes * V * K * K;
    launch(moments_kernel<T, V, K, strip.value>, {of_parts.strips.chunks * of_parts.parts.count, 1, shared}, stream,
           of_parts);
    launch(join_parts_kernel<A>, {ceil_div(problem.shape.channels, kBlockThreads)}, stream, of_parts.parts.count,
           problem.shape.channels, workspace, mean, variance);
  });
}

#define DENSECRF_INSTANTIATE(T)                                                                                  \
  template int64_t moments_workspace<T>(const DepthwiseShape&);                                                  \
  template void depthwise_moments(const DepthwiseProblem<T>&, Accumulator<T>*, Accumulator<T>*, Accumulator<T>*, \
                                  cudaStream_t);
DENSECRF_INSTANTIATE(float)
DENSECRF_INSTANTIATE(double)
DENSECRF_INSTANTIATE(__half)
DENSECRF_INSTANTIATE(__nv_bfloat16)

}  // namespace densecrf::cuda
