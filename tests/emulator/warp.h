// Barriers of a block and operations of a warp. Stricter than a GPU: a lane that has exited, or that the block never
// had, must not be named in a mask, and a wait that threads meet at different lines is an error.
#pragma once

#include <cstring>

#include "emulator.h"

inline void __syncthreads(emulator::Site site = emulator::Site::here()) { emulator::meet_block(0, site); }

inline int __syncthreads_count(int predicate, emulator::Site site = emulator::Site::here()) {
  return emulator::meet_block(predicate, site).positive;
}

inline int __syncthreads_or(int predicate, emulator::Site site = emulator::Site::here()) {
  return emulator::meet_block(predicate, site).positive > 0;
}

inline int __syncthreads_and(int predicate, emulator::Site site = emulator::Site::here()) {
  const emulator::Votes votes = emulator::meet_block(predicate, site);
  return votes.positive == votes.threads;
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, emulator::Site site = emulator::Site::here()) {
  emulator::meet_warp(mask, emulator::WarpOperation::sync, 0, 0, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site::here()) {
  return static_cast<unsigned>(emulator::meet_warp(mask, emulator::WarpOperation::ballot, predicate != 0, 0, site));
}

inline int __any_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site::here()) {
  return __ballot_sync(mask, predicate, site) != 0;
}

inline int __all_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site::here()) {
  return __ballot_sync(mask, predicate, site) == mask;
}

// Lanes run one by one, so each is alone when it asks; a program that counts on more counts on luck.
inline unsigned __activemask() { return 1u << threadIdx.x % warpSize; }

namespace emulator {

template <class T>
uint64_t to_word(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
  const uint64_t word = meet_warp(mask, WarpOperation::shuffle, to_word(value), source, site);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

// The lane that a segment of `width` lanes begins at.
inline int segment(int width) { return static_cast<int>(threadIdx.x) % warpSize & ~(width - 1); }
inline int lane() { return static_cast<int>(threadIdx.x) % warpSize; }

}  // namespace emulator

#define EMULATOR_SHUFFLES(T)                                                                                     \
  inline T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,                                 \
                       emulator::Site site = emulator::Site::here()) {                                           \
    return emulator::shuffle(mask, value, emulator::segment(width) | (source & (width - 1)), site);              \
  }                                                                                                              \
  inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize,                              \
                           emulator::Site site = emulator::Site::here()) {                                       \
    const int source = emulator::lane() ^ lanes;                                                                 \
    return emulator::shuffle(mask, value, source < emulator::segment(width) + width ? source : emulator::lane(), \
                             site);                                                                              \
  }                                                                                                              \
  inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,                          \
                          emulator::Site site = emulator::Site::here()) {                                        \
    const int source = emulator::lane() - static_cast<int>(delta);                                               \
    return emulator::shuffle(mask, value, source >= emulator::segment(width) ? source : emulator::lane(), site); \
  }                                                                                                              \
  inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,                        \
                            emulator::Site site = emulator::Site::here()) {                                      \
    const int source = emulator::lane() + static_cast<int>(delta);                                               \
    return emulator::shuffle(mask, value, source < emulator::segment(width) + width ? source : emulator::lane(), \
                             site);                                                                              \
  }

#define EMULATOR_MATCH(T)                                                                                  \
  inline unsigned __match_any_sync(unsigned mask, T value, emulator::Site site = emulator::Site::here()) { \
    return static_cast<unsigned>(                                                                          \
        emulator::meet_warp(mask, emulator::WarpOperation::match, emulator::to_word(value), 0, site));     \
  }

EMULATOR_SHUFFLES(int)
EMULATOR_SHUFFLES(unsigned)
EMULATOR_SHUFFLES(long)
EMULATOR_SHUFFLES(unsigned long)
EMULATOR_SHUFFLES(long long)
EMULATOR_SHUFFLES(unsigned long long)
EMULATOR_SHUFFLES(float)
EMULATOR_SHUFFLES(double)
EMULATOR_MATCH(int)
EMULATOR_MATCH(unsigned)
EMULATOR_MATCH(long)
EMULATOR_MATCH(unsigned long)
EMULATOR_MATCH(long long)
EMULATOR_MATCH(unsigned long long)
EMULATOR_MATCH(float)
EMULATOR_MATCH(double)

#undef EMULATOR_SHUFFLES
#undef EMULATOR_MATCH
