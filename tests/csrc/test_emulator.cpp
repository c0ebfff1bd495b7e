// The emulator itself: right programs give the same result for every seed, and wrong ones are found.
#include <cuda_runtime.h>

#include <cstdio>
#include <functional>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"

namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

void for_seeds(const std::function<void()>& run) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    emulator::set_seed(seed);
    run();
  }
}

// Whether the launch fails with a message that contains the words.
template <class Kernel>
bool fails(int threads, const std::string& words, Kernel kernel) {
  bool failed = true;
  for_seeds([&] {
    try {
      emulator::launch(2, 3, threads, 64, kernel);
      failed = false;
    } catch (const std::runtime_error& error) {
      if (std::string(error.what()).find(words) == std::string::npos) std::fprintf(stderr, "%s\n", error.what());
      failed = failed && std::string(error.what()).find(words) != std::string::npos;
    }
  });
  return failed;
}

// --- blocks ---

template <bool barrier>
__global__ void __launch_bounds__(256) sum_of_block(const int* values, int count, int* sums) {
  int* shared = static_cast<int*>(emulator::dynamic_shared());
  const unsigned t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
  shared[t] = i < static_cast<unsigned>(count) ? values[i] : 0;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) shared[t] += shared[t + half];
    if (barrier) __syncthreads();
  }
  if (t == 0) sums[blockIdx.x + gridDim.x * blockIdx.y] = shared[0];
}

template <bool barrier>
std::vector<int> sums_of_blocks() {
  std::vector<int> values(1000), sums(8, -1);
  std::iota(values.begin(), values.end(), 0);
  emulator::launch(4, 2, 256, 256 * sizeof(int), [&] { sum_of_block<barrier>(values.data(), 1000, sums.data()); });
  return sums;
}

void barriers_order_a_block() {
  const std::vector<int> expected{32640, 98176, 163712, 204972, 32640, 98176, 163712, 204972};
  for_seeds([&] { CHECK(sums_of_blocks<true>() == expected); });
  std::set<std::vector<int>> wrong;
  for_seeds([&] { wrong.insert(sums_of_blocks<false>()); });
  CHECK(wrong.size() > 1);
}

void barriers_count_votes() {
  for_seeds([] {
    emulator::launch(1, 1, 100, 0, [] {
      const int t = static_cast<int>(threadIdx.x);
      CHECK(__syncthreads_count(t % 3 == 0) == 34);
      CHECK(__syncthreads_or(t == 70) && !__syncthreads_or(0));
      CHECK(__syncthreads_and(1) && !__syncthreads_and(t != 70));
      if (t >= 64) return;  // those that are gone do not count
      CHECK(__syncthreads_count(1) == 64);
    });
  });
}

void shared_memory_is_garbage_at_first() {
  for_seeds([] {
    emulator::launch(3, 1, 32, 128, [] {
      __shared__ int own[32];
      int* dynamic = static_cast<int*>(emulator::dynamic_shared());
      CHECK(dynamic[threadIdx.x] == -1 || dynamic[threadIdx.x] == static_cast<int>(0xCBCBCBCB));
      CHECK(own[threadIdx.x] == dynamic[threadIdx.x]);  // needs shared_memory.ld at link time
      own[threadIdx.x] = dynamic[threadIdx.x] = 5;
    });
  });
}

void schedules_follow_from_the_seed() {
  const auto order = [] {
    std::vector<unsigned> seen;
    emulator::launch(3, 2, 64, 0, [&] {
      seen.push_back(blockIdx.x * 1000 + blockIdx.y * 100 + threadIdx.x);
      __syncthreads();
      seen.push_back(threadIdx.x);
    });
    return seen;
  };
  std::set<std::vector<unsigned>> orders;
  for_seeds([&] { orders.insert(order()); });
  for_seeds([&] { orders.insert(order()); });
  CHECK(orders.size() == 20);
}

// --- warps ---

void warps_exchange_values() {
  for_seeds([] {
    emulator::launch(1, 1, 96, 0, [] {
      const int t = static_cast<int>(threadIdx.x), lane = t % 32;
      CHECK(__ballot_sync(kAllLanes, lane % 2) == 0xAAAAAAAAu);
      CHECK(__any_sync(kAllLanes, lane == 7) && !__all_sync(kAllLanes, lane == 7) && __all_sync(kAllLanes, 2));
      CHECK(__shfl_sync(kAllLanes, t, 3) == t - lane + 3);
      CHECK(__shfl_sync(kAllLanes, t, 9, 8) == (t & ~7) + 1);
      CHECK(__shfl_up_sync(kAllLanes, t, 1) == t - (lane > 0));
      CHECK(__shfl_down_sync(kAllLanes, t, 2, 4) == t + (lane % 4 < 2 ? 2 : 0));
      CHECK(__shfl_xor_sync(kAllLanes, 0.5f * t, 5) == 0.5f * (t ^ 5));
      CHECK(__shfl_xor_sync(kAllLanes, int64_t{1} << lane, 1) == int64_t{1} << (lane ^ 1));
      CHECK(__shfl_xor_sync(kAllLanes, 1.0 / 3 + lane, 16) == 1.0 / 3 + (lane ^ 16));
      CHECK(__match_any_sync(kAllLanes, lane % 4) == 0x11111111u << lane % 4);
      // the halves of a warp go their own ways
      if (lane < 16) {
        int sum = lane;
        for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFu, sum, step);
        CHECK(sum == 120);
      } else {
        CHECK(__ballot_sync(0xFFFF0000u, lane < 20) == 0x000F0000u);
        __syncwarp(1u << lane);
      }
      __syncwarp();
      CHECK((__activemask() >> lane & 1) == 1);
    });
  });
}

__global__ void two_barriers() {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void a_warp_that_is_not_complete() {
  if (threadIdx.x == 40) __ballot_sync(kAllLanes, 1);
  __syncthreads();
}

__global__ void two_warp_operations() {
  if (threadIdx.x % 2)
    __syncwarp();
  else
    __ballot_sync(kAllLanes, 1);
}

__global__ void a_lane_that_has_exited() {
  if (threadIdx.x == 33) return;
  __shfl_sync(kAllLanes, 1, 0);
}

__global__ void a_trap() {
  __syncthreads();
  if (threadIdx.x == 17) __trap();
  __syncthreads();
}

void waiting_in_vain_is_found() {
  CHECK(fails(64, "different lines", two_barriers));
  CHECK(fails(64, "deadlock", a_warp_that_is_not_complete));
  CHECK(fails(32, "different lines or with different masks", two_warp_operations));
  CHECK(fails(32, "different masks", [] { __syncwarp(threadIdx.x < 16 ? kAllLanes : 0xFFFFFF00u); }));
  CHECK(fails(32, "does not name the lane itself", [] { __syncwarp(threadIdx.x < 16 ? 0xFFFFu : 0xFu); }));
  CHECK(fails(64, "exited", a_lane_that_has_exited));
  CHECK(fails(40, "never were", [] { __syncwarp(); }));
  CHECK(fails(40, "thread 17 at test_emulator.cpp", a_trap));
  bool refused = false;
  try {
    emulator::launch(1, 1, 2048, 0, [] {});
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
  barriers_order_a_block();  // the emulator works on after a failure
}

#if !defined(__SANITIZE_ADDRESS__)  // which stops the program
void writing_behind_shared_memory_is_found() {
  CHECK(fails(17, "wrote behind", [] { static_cast<int*>(emulator::dynamic_shared())[threadIdx.x] = 1; }));
}
#endif

// --- atomics ---

struct Counts {
  int sum = 0, least = 1000, most = -1000, bits = 0;
  unsigned unsigned_sum = 0, none = ~0u;
  unsigned long long wide = 0, lock = 0, swaps = 0;
  float real = 0;
  double precise = 0;
};

__global__ void count(Counts* counts) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&counts->sum, i - 100);
  atomicMin(&counts->least, i - 500);
  atomicMax(&counts->most, i - 500);
  atomicOr(&counts->bits, 1 << i % 20);
  atomicAdd(&counts->unsigned_sum, 1u);
  atomicAnd(&counts->none, ~(1u << i % 32));
  atomicAdd(&counts->wide, 1ull << 32);
  atomicAdd(&counts->real, 1.0f);
  atomicAdd(&counts->precise, 0.5);
  unsigned long long seen = counts->lock;
  for (;;) {
    const unsigned long long before = atomicCAS(&counts->lock, seen, seen + 3);
    if (before == seen) break;
    atomicAdd(&counts->swaps, 1ull);  // another thread came between
    seen = before;
  }
}

void atomics_lose_nothing() {
  unsigned long long swaps = 0;
  for_seeds([&] {
    Counts counts;
    emulator::launch(3, 1, 100, 0, [&] { count(&counts); });
    CHECK(counts.sum == 300 * 299 / 2 - 100 * 300);
    CHECK(counts.least == -500 && counts.most == -201 && counts.bits == (1 << 20) - 1);
    CHECK(counts.unsigned_sum == 300 && counts.none == 0 && counts.wide == 300ull << 32);
    CHECK(counts.real == 300 && counts.precise == 150 && counts.lock == 900);
    swaps += counts.swaps;
  });
  CHECK(swaps > 0);
}

void an_update_that_is_not_atomic_is_found() {
  std::set<int> results;
  for_seeds([&] {
    int sum = 0;
    emulator::launch(1, 1, 100, 0, [&] {
      const int before = sum;
      __threadfence();
      sum = before + 1;
    });
    results.insert(sum);
  });
  CHECK(results.size() > 1);
}

}  // namespace

int main() {
  barriers_order_a_block();
  barriers_count_votes();
  shared_memory_is_garbage_at_first();
  schedules_follow_from_the_seed();
  warps_exchange_values();
  waiting_in_vain_is_found();
#if !defined(__SANITIZE_ADDRESS__)
  writing_behind_shared_memory_is_found();
#endif
  atomics_lose_nothing();
  an_update_that_is_not_atomic_is_found();
}
