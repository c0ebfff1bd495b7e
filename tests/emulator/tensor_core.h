// What PTX says of copies, matrices and tensor cores, for the emulator. Words of other lanes are exchanged through
// memory, between two waits for the warp.
#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "warp.h"

namespace emulator {

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

// What each thread of the block has brought to the others of its warp, and the copies that it has begun.
struct Exchange {
  const void* row;
  uint32_t a[4], b[2];
  std::vector<Copy> copies;
};
inline Exchange exchanges[1024];

inline Exchange& own_exchange() { return exchanges[threadIdx.x]; }
inline Exchange& exchange_of_lane(int other) { return exchanges[threadIdx.x / warpSize * warpSize + other]; }

// Until it is waited for, what the copy is to write is garbage.
inline void copy_async(void* to, const void* from, int bytes, Site site = Site::here()) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) fail("misaligned copy", site);
  std::memset(to, 0xFF, 16);
  own_exchange().copies.push_back({to, from, bytes});
}

inline void wait_for_copies() {
  for (const Copy& copy : own_exchange().copies) {
    std::memset(copy.to, 0, 16);
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
  }
  own_exchange().copies.clear();
}

inline void load_matrices(uint32_t (&words)[4], const void* row, Site site = Site::here()) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("misaligned row of a matrix", site);
  own_exchange().row = row;
  __syncwarp();
  for (int matrix = 0; matrix < 4; ++matrix) {
    const void* of = exchange_of_lane(8 * matrix + lane() / 4).row;
    std::memcpy(&words[matrix], static_cast<const char*>(of) + 4 * (lane() % 4), 4);
  }
  __syncwarp();
}

inline float round_to_tf32(float x) {
  return std::isfinite(x) ? __uint_as_float((__float_as_uint(x) + 0x1000u) & ~0x1FFFu) : x;
}

// Number k of a lane's word or words, as tensor cores read it.
template <class T>
float number_of(uint32_t word, int half) {
  const auto bits = static_cast<unsigned short>(word >> 16 * half);
  if constexpr (std::is_same_v<T, __half>) return __half2float(__ushort_as_half(bits));
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __bfloat162float(__ushort_as_bfloat16(bits));
  return __uint_as_float(word & ~0x1FFFu);
}

// sums += A B, A 16 x K and B K x 8 with K = 16 for half types and 8 for TF32, as mma.sync spreads them over lanes.
template <class T>
void multiply_fragments(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  constexpr int per_word = std::is_same_v<T, float> ? 1 : 2;
  std::memcpy(own_exchange().a, a, sizeof(a));
  own_exchange().b[0] = b0;
  own_exchange().b[1] = b1;
  __syncwarp();
  for (int e = 0; e < 4; ++e) {
    const int row = lane() / 4, lower = e / 2, column = 2 * (lane() % 4) + e % 2;
    for (int k = 0; k < 8 * per_word; ++k) {
      const int right = k / (4 * per_word), quad = k / per_word % 4;
      const Exchange &left_lane = exchange_of_lane(4 * row + quad), &right_lane = exchange_of_lane(4 * column + quad);
      sums[e] +=
          number_of<T>(left_lane.a[2 * right + lower], k % per_word) * number_of<T>(right_lane.b[right], k % per_word);
    }
  }
  __syncwarp();
}

}  // namespace emulator
