// Stacks that a program switches between by itself: the threads of an emulated block.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT  // slower: it asks the system about signals at every switch
#endif

#if defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  // The stack that the program is on already.
  Fiber() = default;

  // A stack of its own, where `entry` starts at the first switch and never returns. Fibers with different numbers begin
  // at different cache lines: page-aligned stacks would all compete for the same ones.
  Fiber(void (*entry)(), size_t number);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Forgets where the fiber stood: `entry` starts anew at the next switch.
  void restart();

  // Stops in `from`, goes on in `to`, and returns when something switches to `from` again.
  static void switch_stacks(Fiber& from, Fiber& to);

  // The first thing that `entry` does.
  static void arrived();

 private:
  void (*entry_)() = nullptr;
  size_t offset_ = 0;
  void* mapping_ = nullptr;
#if defined(EMULATOR_UCONTEXT)
  ucontext_t context_ = {};
#else
  void* stack_pointer_ = nullptr;
#endif
  // what AddressSanitizer wants to know
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace emulator
