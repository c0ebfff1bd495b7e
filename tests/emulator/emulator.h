// Runs CUDA kernels on the CPU: every thread of a block is a fiber, blocks run one after the other, and a seed decides
// the order of blocks and which thread goes on wherever one has to wait. A barrier that is missing shows as a result
// that depends on the seed, one that only some threads meet as a deadlock.
//
// The emulation is sequentially consistent: a missing memory fence stays hidden. Nothing here knows torch.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vectors.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulator {

// --- the host's side ---

// Every schedule from here on follows from the seed; DENSECRF_EMULATOR_SEED names the first one, 1 if unset.
void set_seed(uint64_t seed);

// How often the program has gone from one thread to another, for measurements.
uint64_t switches();

// Runs the kernel for every thread of a grid. Throws std::invalid_argument where no GPU would start the grid, and
// std::runtime_error where the threads wait for one another in vain or break a rule; the emulator is usable after that.
void launch(int64_t blocks_x, int64_t blocks_y, int threads, int64_t shared_bytes, void (*kernel)(void*),
            void* context);

template <class Kernel>
void launch(int64_t blocks_x, int64_t blocks_y, int threads, int64_t shared_bytes, Kernel&& kernel) {
  using Callable = std::remove_reference_t<Kernel>;
  launch(
      blocks_x, blocks_y, threads, shared_bytes, [](void* context) { (*static_cast<Callable*>(context))(); },
      const_cast<void*>(static_cast<const void*>(&kernel)));
}

// --- the kernel's side ---

// The line of a kernel: what a thread waits for is told by where it waits.
struct Site {
  const char* file;
  int line;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  // every file of the program may have its own copy of the name
  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

// Dynamic shared memory of the block, filled with garbage before it starts.
void* dynamic_shared();

// Gives up the launch: the message, with block and thread, becomes the exception that launch() throws.
[[noreturn]] void fail(const char* message, Site site);

struct Votes {
  int positive;  // threads whose predicate is not zero
  int threads;   // all that have met
};

// Waits for every thread of the block that has not exited.
Votes meet_block(int predicate, Site site);

enum class WarpOperation { sync, ballot, shuffle, match };

// Waits for the lanes of the mask, all at the same site. Returns the lanes whose value is not zero (ballot), the value
// of lane `source` (shuffle; garbage if the mask lacks it), or the lanes of the same value (match).
uint64_t meet_warp(unsigned mask, WarpOperation operation, uint64_t value, int source, Site site);

// Lets another thread go on, if the seed says so.
void yield();

namespace detail {

extern uint64_t random_state;

inline uint32_t random_word() {  // splitmix64
  uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<uint32_t>(z >> 32);
}

}  // namespace detail

// Around whatever other threads may see half done: another thread gets the chance to come between, at times.
struct Interleaving {
  Interleaving() { perhaps(); }
  ~Interleaving() { perhaps(); }

  static void perhaps() {
    if (detail::random_word() % 16 == 0) yield();
  }
};

}  // namespace emulator
