// The state of the block that runs, between the scheduler (emulator.cpp) and what threads wait for (meetings.cpp).
#pragma once

#include <string>

#include "emulator.h"
#include "fiber.h"

namespace emulator {

constexpr int kMaxThreads = 1024;

struct Thread {
  unsigned index = 0;
  Fiber* fiber = nullptr;  // none before it starts and after it has exited
  Site site = {};          // what it waits for, if it can not go on
  unsigned mask = 0;       // of a warp operation; 0: it waits for the block
};

// Lanes that wait for one another.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  WarpOperation operation = WarpOperation::sync;
  Site site = {};
};

struct Warp {
  unsigned running = 0;  // lanes that have not exited
  unsigned ready = 0;    // of these, the ones that can start or go on, but for the current one
  int meetings = 0;
  Meeting meeting[warpSize];
  uint64_t word[warpSize];  // what each lane brought to a warp operation, then what that gave it
  int source[warpSize];     // of a shuffle
};

struct Block {
  int threads = 0;  // of which `running` have not exited
  int running = 0;
  Thread thread[kMaxThreads];
  Warp warp[kMaxThreads / warpSize];
  unsigned ready_warps = 0;  // warps with ready lanes

  // the barrier: how many threads wait at it, with how many votes, and what the one before gave
  int waiting = 0, positive = 0;
  const Thread* first_waiting = nullptr;
  Votes votes = {};

  void make_ready(int w, unsigned lanes) {
    warp[w].ready |= lanes;
    ready_warps |= 1u << w;
  }
};

inline int warp_index(const Thread& thread) { return static_cast<int>(thread.index) / warpSize; }
inline unsigned lane_bit(const Thread& thread) { return 1u << thread.index % warpSize; }

extern Block block;
extern Thread* current;  // none outside of kernels

// Why the launch is given up. Whatever sets it must have left no string on its own stack, which nobody returns from,
// when it calls give_up().
extern std::string failure;
[[noreturn]] void give_up();

// The current thread waits: another one goes on, until something has made this one ready and the seed draws it.
void wait();

// The current thread exits, which may open a barrier for the others. False: the launch must be given up.
bool exit_thread(Thread& thread);

// What every thread of the block does.
std::string state_of_threads();

}  // namespace emulator
