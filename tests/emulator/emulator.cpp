// Starts grids and decides which thread goes on.
#include "emulator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "block.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Around the __shared__ variables, if the program was linked with shared_memory.ld.
extern "C" {
extern unsigned char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulator {

Block block;
Thread* current = nullptr;
std::string failure;

namespace {

constexpr int64_t kMaxBlocksX = (int64_t{1} << 31) - 1, kMaxBlocksY = 65535;
// The least that any GPU of the supported ones has for a block.
constexpr int64_t kMaxShared = 64 * 1024;

std::mutex launching;
Fiber host;  // the stack that launch() was called on
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;
uint64_t switch_count = 0;
int current_warp = 0;  // of the thread that was drawn last
void (*run_kernel)(void*) = nullptr;
void* kernel_context = nullptr;

// --- dynamic shared memory ---

constexpr int64_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xA5;
alignas(128) unsigned char shared_memory[kMaxShared + kGuardBytes];
int64_t shared_bytes = 0;

#if defined(__SANITIZE_ADDRESS__)
// memset would refuse to touch what AddressSanitizer keeps between variables, and so would a loop that becomes one
__attribute__((no_sanitize("address"))) void fill(volatile unsigned char* begin, int64_t bytes, unsigned char value) {
  for (int64_t i = 0; i < bytes; ++i) begin[i] = value;
}

void guard_shared() {
  __asan_unpoison_memory_region(shared_memory, sizeof(shared_memory));
  __asan_poison_memory_region(shared_memory + shared_bytes, sizeof(shared_memory) - shared_bytes);
}

bool guard_is_intact() { return true; }
#else
void fill(unsigned char* begin, int64_t bytes, unsigned char value) {
  if (bytes > 0) std::memset(begin, value, static_cast<size_t>(bytes));
}

void guard_shared() { fill(shared_memory + shared_bytes, kGuardBytes, kGuard); }

bool guard_is_intact() {
  const unsigned char* guard = shared_memory + shared_bytes;
  return std::all_of(guard, guard + kGuardBytes, [](unsigned char byte) { return byte == kGuard; });
}
#endif

// A NaN or a large negative number, as the seed decides: no result may depend on it.
void poison_shared() {
  const unsigned char garbage = detail::random_word() & 1 ? 0xFF : 0xCB;
  fill(shared_memory, shared_bytes, garbage);
  fill(__start_emulated_shared, __stop_emulated_shared - __start_emulated_shared, garbage);
}

// --- the scheduler ---

void run_threads();

Fiber* take_idle() {
  if (idle.empty()) {
    fibers.push_back(std::make_unique<Fiber>(run_threads, fibers.size()));
    idle.push_back(fibers.back().get());
  }
  Fiber* fiber = idle.back();
  idle.pop_back();
  return fiber;
}

void go(Fiber& from, Fiber& to) {
  ++switch_count;
  Fiber::switch_stacks(from, to);
}

[[noreturn]] void give_up_from(Fiber& here) {
  go(here, host);
  __builtin_unreachable();
}

// Any of the bits that are set, which there must be.
int draw_bit(unsigned bits, unsigned random) {
  const unsigned by = random % 32;
  const unsigned turned = bits >> by | bits << (32 - by) % 32;
  return static_cast<int>((static_cast<unsigned>(__builtin_ctz(turned)) + by) % 32);
}

// Makes one of the ready threads the current one; as a rule one of the same warp, whose stacks are in the cache.
Thread& draw(Fiber& here) {
  if (block.ready_warps == 0) {
    failure = "deadlock: " + state_of_threads();
    give_up_from(here);
  }
  const uint32_t random = detail::random_word();
  if (!block.warp[current_warp].ready || random % 8 == 0) current_warp = draw_bit(block.ready_warps, random >> 8);
  Warp& warp = block.warp[current_warp];
  const int lane = draw_bit(warp.ready, random >> 16);
  warp.ready &= ~(1u << lane);
  if (!warp.ready) block.ready_warps &= ~(1u << current_warp);
  current = &block.thread[current_warp * warpSize + lane];
  threadIdx = {current->index, 0, 0};
  return *current;
}

// What every fiber does. One that has brought a thread to its end takes the next that has not started yet, so threads
// that never wait cost no switch at all.
void run_threads() {
  Fiber::arrived();
  for (;;) {
    run_kernel(kernel_context);
    Thread& thread = *current;
    Fiber& here = *thread.fiber;
    if (!exit_thread(thread)) give_up_from(here);
    thread.fiber = nullptr;
    Fiber* there = &host;
    if (block.running > 0) {
      Thread& next = draw(here);
      if (!next.fiber) next.fiber = &here;
      there = next.fiber;
    }
    if (there != &here) {
      idle.push_back(&here);
      go(here, *there);
    }
  }
}

void run_block() {
  poison_shared();
  block.running = block.threads;
  block.waiting = block.positive = 0;
  block.ready_warps = 0;
  for (int w = 0; w * warpSize < block.threads; ++w) {
    const int lanes = std::min(block.threads - w * warpSize, warpSize);
    block.warp[w].running = block.warp[w].ready = ~0u >> (warpSize - lanes);
    block.warp[w].meetings = 0;
    block.ready_warps |= 1u << w;
    for (int lane = 0; lane < lanes; ++lane) {
      Thread& thread = block.thread[w * warpSize + lane];
      thread.index = static_cast<unsigned>(w * warpSize + lane);
      thread.fiber = nullptr;
    }
  }
  current_warp = draw_bit(block.ready_warps, detail::random_word());
  Thread& first = draw(host);
  first.fiber = take_idle();
  go(host, *first.fiber);
  current = nullptr;

  if (failure.empty() && !guard_is_intact())
    failure = "wrote behind its " + std::to_string(shared_bytes) + " bytes of dynamic shared memory";
  if (failure.empty()) return;
  idle.clear();
  for (const auto& fiber : fibers) {
    fiber->restart();
    idle.push_back(fiber.get());
  }
  throw std::runtime_error("emulated kernel, block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) +
                           "): " + std::exchange(failure, std::string()));
}

uint64_t state_of(uint64_t seed) { return seed * 0xD1342543DE82EF95u; }

uint64_t first_state() {
  const char* seed = std::getenv("DENSECRF_EMULATOR_SEED");
  return state_of(seed ? std::strtoull(seed, nullptr, 10) : 1);
}

}  // namespace

uint64_t detail::random_state = first_state();

void give_up() { give_up_from(*current->fiber); }

void wait() {
  Thread& thread = *current;
  Thread& next = draw(*thread.fiber);
  if (&next == &thread) return;
  if (!next.fiber) next.fiber = take_idle();
  go(*thread.fiber, *next.fiber);
}

void yield() {
  if (!current) return;
  block.make_ready(warp_index(*current), lane_bit(*current));
  wait();
}

void* dynamic_shared() { return shared_memory; }

void set_seed(uint64_t seed) {
  const std::lock_guard<std::mutex> lock(launching);
  detail::random_state = state_of(seed);
}

uint64_t switches() { return switch_count; }

void launch(int64_t blocks_x, int64_t blocks_y, int threads, int64_t shared, void (*kernel)(void*), void* context) {
  const std::lock_guard<std::mutex> lock(launching);
  if (blocks_x < 1 || blocks_x > kMaxBlocksX || blocks_y < 1 || blocks_y > kMaxBlocksY || threads < 1 ||
      threads > kMaxThreads || shared < 0 || shared > kMaxShared)
    throw std::invalid_argument("emulated kernel: not every GPU starts a grid of " + std::to_string(blocks_x) + " x " +
                                std::to_string(blocks_y) + " blocks of " + std::to_string(threads) + " threads with " +
                                std::to_string(shared) + " bytes of shared memory");
  run_kernel = kernel;
  kernel_context = context;
  shared_bytes = shared;
  block.threads = threads;
  guard_shared();
  blockDim = dim3(static_cast<unsigned>(threads));
  gridDim = dim3(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
  std::vector<int64_t> order(static_cast<size_t>(blocks_x * blocks_y));
  std::iota(order.begin(), order.end(), int64_t{0});
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[detail::random_word() % i]);
  for (const int64_t b : order) {
    blockIdx = {static_cast<unsigned>(b % blocks_x), static_cast<unsigned>(b / blocks_x), 0};
    run_block();
  }
}

}  // namespace emulator
