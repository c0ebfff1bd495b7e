// Sums and ranks over the threads of one block, in a fixed order.
#pragma once

#include "launch.h"

namespace densecrf::cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kMaxWarps = 32;

// How many threads before this one have their flag set, and how many have in all. Every thread of the block calls it;
// `warps` is shared memory for kMaxWarps numbers.
__device__ __forceinline__ int block_rank(bool flag, int* warps, int& total) {
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
  const unsigned votes = __ballot_sync(kAllLanes, flag);
  __syncthreads();  // the numbers of the call before have been read
  if (lane == 0) warps[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1));
  total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarpThreads; ++w) {
    if (w < warp) before += warps[w];
    total += warps[w];
  }
  return before;
}

// Sum of the values of the threads before this one, and of all.
template <class V>
__device__ __forceinline__ V block_scan(V value, V* warps, V& total) {
  const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
  V sum = value;
  for (int step = 1; step < kWarpThreads; step *= 2) {
    const V other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();
  if (lane == kWarpThreads - 1) warps[warp] = sum;
  __syncthreads();
  V before = sum - value;
  total = V(0);
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarpThreads; ++w) {
    if (w < warp) before += warps[w];
    total += warps[w];
  }
  return before;
}

}  // namespace densecrf::cuda
