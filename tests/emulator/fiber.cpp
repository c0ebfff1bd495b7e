#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;  // its frames are several times as large
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif

Fiber* left = nullptr;  // the fiber that the last switch came from

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

#if !defined(EMULATOR_UCONTEXT)
// Keeps what a called function must preserve on the stack that it leaves; a jump instead of a return, which the
// processor would predict to go back to the caller.
__attribute__((naked, noinline)) void swap_stacks(void** /*rdi: keep*/, void* /*rsi: go on*/) {
  asm("pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "popq %rcx\n\t"
      "jmpq *%rcx");
}
constexpr int kSavedRegisters = 6;
#endif

}  // namespace

Fiber::Fiber(void (*entry)(), size_t number) : entry_(entry), offset_(number * 192 % 4096), size_(kStackBytes) {
  mapping_ = mmap(nullptr, page() + size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, page(), PROT_NONE);  // an overflow ends the program instead of spoiling the next stack
  bottom_ = static_cast<char*>(mapping_) + page();
  restart();
}

Fiber::~Fiber() {
  if (mapping_) munmap(mapping_, page() + size_);
}

void Fiber::restart() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom_, size_);  // of the frames that nobody returned from
#endif
  fake_stack_ = nullptr;
#if defined(EMULATOR_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = const_cast<void*>(bottom_);
  context_.uc_stack.ss_size = size_ - offset_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry_, 0);
#else
  const uintptr_t top = reinterpret_cast<uintptr_t>(bottom_) + size_ - offset_;  // a multiple of 16
  void** frame = reinterpret_cast<void**>(top);
  *--frame = nullptr;  // where the entry would return to; a function expects the stack 8 bytes off a multiple of 16
  *--frame = reinterpret_cast<void*>(entry_);
  for (int i = 0; i < kSavedRegisters; ++i) *--frame = nullptr;
  stack_pointer_ = frame;
#endif
}

void Fiber::switch_stacks(Fiber& from, Fiber& to) {
  left = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
#endif
#if defined(EMULATOR_UCONTEXT)
  swapcontext(&from.context_, &to.context_);
#else
  swap_stacks(&from.stack_pointer_, to.stack_pointer_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  // the only way to learn the bounds of the stack that the program began on
  __sanitizer_finish_switch_fiber(nullptr, &left->bottom_, &left->size_);
#endif
}

}  // namespace emulator
