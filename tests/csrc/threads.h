// A pool for tests whose threads are real.
#pragma once

#include <algorithm>
#include <thread>
#include <vector>

#include "parallel.h"

namespace densecrf {

// Every range on a thread of its own, in no particular order.
inline Pool threads(int count) {
  static int parts;
  parts = count;
  return {[](int64_t size, int64_t grain, Pool::Body body, void* context) {
            const int64_t chunk = std::max<int64_t>(grain, (size + parts - 1) / parts);
            std::vector<std::thread> running;
            for (int64_t begin = 0; begin < size; begin += chunk)
              running.emplace_back(body, context, begin, std::min(size, begin + chunk));
            for (auto& thread : running) thread.join();
          },
          count};
}

}  // namespace densecrf
