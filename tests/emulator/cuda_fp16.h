// Half precision as storage: conversions that round to the nearest even, as a GPU does them.
#pragma once

#include <cmath>
#include <cstdint>

#include "intrinsics.h"

struct alignas(2) __half {
  uint16_t bits;
};

struct alignas(4) __half2 {
  __half x, y;
};

using half = __half;
using half2 = __half2;

inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return __half{bits}; }

inline float __half2float(__half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7FFFu;
  if (magnitude > 0x7C00u) return __uint_as_float(0x7FFFFFFFu);
  if (magnitude == 0x7C00u) return __uint_as_float(sign | 0x7F800000u);
  if (magnitude < 0x0400u) {  // zero and subnormals count in units of 2^-24
    const float small = std::ldexp(static_cast<float>(magnitude), -24);
    return sign ? -small : small;
  }
  return __uint_as_float(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
}

inline __half __float2half_rn(float value) {
  const uint32_t word = __float_as_uint(value);
  const uint32_t sign = word >> 16 & 0x8000u, magnitude = word & 0x7FFFFFFFu;
  uint32_t bits;
  if (magnitude > 0x7F800000u) {
    return __half{0x7FFF};
  } else if (magnitude >= 0x477FF000u) {  // 65520, halfway between the largest number and 2^16
    bits = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14, in units of 2^-24
    bits = static_cast<uint32_t>(std::nearbyint(std::ldexp(__uint_as_float(magnitude), 24)));
  } else {  // a tie goes up where the last bit that stays is odd; a carry moves on to the exponent
    const uint32_t rebiased = magnitude - ((127u - 15u) << 23);
    bits = (rebiased + 0xFFFu + (rebiased >> 13 & 1u)) >> 13;
  }
  return __half{static_cast<uint16_t>(sign | bits)};
}

inline __half __float2half(float value) { return __float2half_rn(value); }

inline __half2 __halves2half2(__half x, __half y) { return __half2{x, y}; }
inline __half __low2half(__half2 value) { return value.x; }
inline __half __high2half(__half2 value) { return value.y; }
inline float __low2float(__half2 value) { return __half2float(value.x); }
inline float __high2float(__half2 value) { return __half2float(value.y); }
inline __half2 __floats2half2_rn(float x, float y) { return __half2{__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 value) { return __floats2half2_rn(value.x, value.y); }
inline float2 __half22float2(__half2 value) { return float2{__half2float(value.x), __half2float(value.y)}; }

// unlike max and min of floats, these keep a NaN
inline __half __hmax_nan(__half a, __half b) {
  const float x = __half2float(a), y = __half2float(b);
  return x != x || x > y ? a : b;
}
inline __half __hmin_nan(__half a, __half b) {
  const float x = __half2float(a), y = __half2float(b);
  return x != x || x < y ? a : b;
}
inline __half2 __hmax2_nan(__half2 a, __half2 b) { return __half2{__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)}; }
inline __half2 __hmin2_nan(__half2 a, __half2 b) { return __half2{__hmin_nan(a.x, b.x), __hmin_nan(a.y, b.y)}; }
