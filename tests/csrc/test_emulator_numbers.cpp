// What the emulator computes itself: bits, and both half types against their definitions.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <limits>

#include "check.h"

namespace {

void bits_are_counted() {
  CHECK(__popc(0xF0F0u) == 8 && __popcll(~0ull) == 64 && __ffs(0) == 0 && __ffs(8) == 4);
  CHECK(__clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0 && __brev(1u) == 0x80000000u);
  CHECK(__float_as_int(1.0f) == 0x3F800000 && __longlong_as_double(__double_as_longlong(0.1)) == 0.1);
}

float nearest_half(float value) { return __half2float(__float2half_rn(value)); }

void halves_are_rounded_to_nearest_even() {
  for (unsigned bits = 0; bits <= 0xFFFF; ++bits) {
    const __half value = __ushort_as_half(static_cast<unsigned short>(bits));
    const float wide = __half2float(value);
    CHECK(std::isnan(wide) == ((bits & 0x7FFF) > 0x7C00));
    if (std::isnan(wide)) continue;
    CHECK(__half_as_ushort(__float2half_rn(wide)) == bits);
    const int exponent = static_cast<int>(bits >> 10 & 31), fraction = static_cast<int>(bits & 1023);
    const float magnitude = exponent == 31  ? std::numeric_limits<float>::infinity()
                            : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                            : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    CHECK(wide == (bits >> 15 ? -magnitude : magnitude));
    // halfway to the next one: to the even of the two; a little more or less: to the nearer
    if ((bits & 0x7FFF) >= 0x7BFF) continue;
    const float next = __half2float(__ushort_as_half(static_cast<unsigned short>(bits + 1)));
    const float middle = (wide + next) / 2;
    CHECK(nearest_half(middle) == (bits % 2 ? next : wide));
    CHECK(nearest_half(std::nextafter(middle, wide)) == wide && nearest_half(std::nextafter(middle, next)) == next);
  }
  CHECK(nearest_half(65519.0f) == 65504.0f && std::isinf(nearest_half(65520.0f)) && nearest_half(-1e-9f) == 0);
  CHECK(std::isnan(nearest_half(std::numeric_limits<float>::quiet_NaN())));
  const float2 pair = __half22float2(__floats2half2_rn(1.5f, -2.0f));
  CHECK(pair.x == 1.5f && pair.y == -2.0f && sizeof(__half2) == 4);
}

float nearest_bfloat16(float value) { return __bfloat162float(__float2bfloat16_rn(value)); }

void bfloat16_is_the_upper_half_of_a_float() {
  for (unsigned bits = 0; bits < 0x7F80; ++bits) {
    const float wide = __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(bits)));
    CHECK(wide == __uint_as_float(bits << 16) && __bfloat16_as_ushort(__float2bfloat16_rn(wide)) == bits);
    const float next = __uint_as_float((bits + 1) << 16), middle = __uint_as_float(bits << 16 | 0x8000u);
    CHECK(nearest_bfloat16(middle) == (bits % 2 ? next : wide));
    CHECK(nearest_bfloat16(-middle) == -nearest_bfloat16(middle));
    CHECK(nearest_bfloat16(std::nextafter(middle, wide)) == wide);
    CHECK(nearest_bfloat16(std::nextafter(middle, std::numeric_limits<float>::infinity())) == next);
  }
  CHECK(std::isinf(nearest_bfloat16(std::numeric_limits<float>::max())));
  CHECK(std::isnan(nearest_bfloat16(std::numeric_limits<float>::quiet_NaN())));
  const float2 pair = __bfloat1622float2(__floats2bfloat162_rn(1.5f, -2.0f));
  CHECK(pair.x == 1.5f && pair.y == -2.0f && sizeof(__nv_bfloat162) == 4);
}

void the_larger_and_the_smaller_keep_what_is_no_number() {
  const float none = std::numeric_limits<float>::quiet_NaN();
  const __half2 numbers = __floats2half2_rn(1, -1), one = __floats2half2_rn(none, 0), zero = __floats2half2_rn(0, 0);
  CHECK(__low2float(__hmax2_nan(numbers, zero)) == 1 && __high2float(__hmax2_nan(numbers, zero)) == 0);
  CHECK(__low2float(__hmin2_nan(numbers, zero)) == 0 && __high2float(__hmin2_nan(numbers, zero)) == -1);
  CHECK(std::isnan(__low2float(__hmax2_nan(one, zero))) && std::isnan(__low2float(__hmax2_nan(zero, one))));
  const __nv_bfloat162 other = __floats2bfloat162_rn(none, 7), six = __floats2bfloat162_rn(6, 6);
  CHECK(std::isnan(__low2float(__hmin2_nan(other, six))) && std::isnan(__low2float(__hmin2_nan(six, other))));
  CHECK(__high2float(__hmin2_nan(other, six)) == 6 && __high2float(__hmax2_nan(other, six)) == 7);
}

}  // namespace

int main() {
  bits_are_counted();
  halves_are_rounded_to_nearest_even();
  bfloat16_is_the_upper_half_of_a_float();
  the_larger_and_the_smaller_keep_what_is_no_number();
}
