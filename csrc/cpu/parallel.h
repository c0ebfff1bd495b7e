// Threads without a thread library: the caller hands in ATen's pool, a test hands in a plain loop.
#pragma once

#include <cstdint>
#include <type_traits>

namespace densecrf {

struct Pool {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  // Calls `body` on disjoint ranges that cover [0, count), none shorter than `grain` but the last.
  void (*run)(int64_t count, int64_t grain, Body body, void* context);
  int threads;

  template <class Function>
  void parallel_for(int64_t count, int64_t grain, Function&& function) const {
    using F = std::remove_reference_t<Function>;
    run(
        count, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&function)));
  }
};

inline Pool serial_pool() {
  return {[](int64_t count, int64_t, Pool::Body body, void* context) {
            if (count > 0) body(context, 0, count);
          },
          1};
}

}  // namespace densecrf
