// Functions of CUDA that one thread computes by itself.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#include "emulator.h"

namespace emulator {

template <class To, class From>
To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <class T>
T reverse_bits(T value) {
  T reversed = 0;
  for (unsigned bit = 0; bit < 8 * sizeof(T); ++bit, value >>= 1) reversed = reversed << 1 | (value & 1);
  return reversed;
}

}  // namespace emulator

// --- memory ---

template <class T>
T __ldg(const T* address) {
  return *address;
}

// The emulation is sequentially consistent, but what a fence separates is where threads come between each other.
inline void __threadfence() { emulator::Interleaving::perhaps(); }
inline void __threadfence_block() { emulator::Interleaving::perhaps(); }
inline void __nanosleep(unsigned) { emulator::yield(); }

[[noreturn]] inline void __trap(emulator::Site site = emulator::Site::here()) { emulator::fail("__trap()", site); }

// --- bits ---

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline unsigned __brev(unsigned value) { return emulator::reverse_bits(value); }
inline unsigned long long __brevll(unsigned long long value) { return emulator::reverse_bits(value); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

inline int __float_as_int(float value) { return emulator::reinterpret<int>(value); }
inline unsigned __float_as_uint(float value) { return emulator::reinterpret<unsigned>(value); }
inline float __int_as_float(int value) { return emulator::reinterpret<float>(value); }
inline float __uint_as_float(unsigned value) { return emulator::reinterpret<float>(value); }
inline long long __double_as_longlong(double value) { return emulator::reinterpret<long long>(value); }
inline double __longlong_as_double(long long value) { return emulator::reinterpret<double>(value); }

// --- arithmetic whose rounding is named: never contracted ---

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline int __float2int_rn(float value) { return static_cast<int>(rintf(value)); }
inline int __float2int_rd(float value) { return static_cast<int>(floorf(value)); }
inline int __float2int_rz(float value) { return static_cast<int>(value); }
inline float __int2float_rn(int value) { return static_cast<float>(value); }

#define EMULATOR_MIN_MAX(T)                        \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }

EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)

#undef EMULATOR_MIN_MAX

// these leave out a NaN, as those of a GPU do
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
