// Arithmetic of the mean-field update of one pixel, torch-free and written once; `T` as in lattice.h.
#pragma once

#include <limits>

#include "lattice.h"

namespace densecrf {

// exp(x) for x <= 0, within 2 units in the last place; exactly 0 below the smallest normal number, NaN for NaN.
// Range reduction by a two-part ln 2 keeps it exact without a fused multiply-add; coefficients as in Cephes.
template <class T>
HOST_DEVICE T exponential(T x) {
  using L = Lanes<T>;
  using F = typename L::Element;
  constexpr bool single = sizeof(F) == 4;
  const T lowest = L::broadcast(single ? F(-87.33654) : F(-708.39641853226408));
  const auto underflow = L::less(x, lowest);
  const T clamped = L::select(underflow, lowest, x);
  const T n = round_to_even(clamped * F(1.4426950408889634));
  T y;
  if constexpr (single) {
    const auto fma = [](T a, T b, T c) { return L::multiply_add(a, b, c); };
    const auto line = [](T x, double slope, double start) {
      return L::multiply_add(x, L::broadcast(F(slope)), L::broadcast(F(start)));
    };
    const T r = fma(n, L::broadcast(F(2.12194440e-4)), fma(n, L::broadcast(F(-0.693359375)), clamped));
    // exp(r) = 1 + r + r² q(r), q by pairs of terms: the chain of dependent operations is what bounds a softmax.
    const T r2 = r * r;
    const T low = line(r, 1.6666665459e-1, 5.0000001201e-1), middle = line(r, 8.3334519073e-3, 4.1665795894e-2);
    const T high = line(r, 1.9875691500e-4, 1.3981999507e-3);
    y = fma(fma(r2 * r2, high, fma(r2, middle, low)), r2, r + F(1));
  } else {
    const T r = (clamped - n * F(6.93145751953125e-1)) - n * F(1.42860682030941723212e-6);
    const T s = r * r;
    const T p = r * ((s * F(1.26177193074810590878e-4) + F(3.02994407707441961300e-2)) * s + F(1));
    const T q =
        ((s * F(3.00198505138664455042e-6) + F(2.52448340349684104192e-3)) * s + F(2.27265548208155028766e-1)) * s +
        F(2);
    y = p / (q - p) * F(2) + F(1);
  }
  return L::select(underflow, L::broadcast(F(0)), L::scale_by_power(y, L::to_integer(n)));
}

}  // namespace densecrf
