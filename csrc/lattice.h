// Geometry of one point on the permutohedral lattice (Adams, Baek & Davis, "Fast high-dimensional filtering using the
// permutohedral lattice", 2010), torch-free and written once: `T` is a number (float or double) or a vector of such
// numbers, one point per lane, and MaxD bounds the dimension d at compile time (equal to d where d is known).
//
// The order of the floating-point operations is part of the contract: with contraction to fused multiply-adds off,
// every device finds the same simplex for the same feature.
#pragma once

#include <cmath>
#include <cstring>

#include "common.h"

namespace densecrf {

// Element type, integer type and lane-wise primitives of T; the vector types specialise it in cpu/vector.h.
template <class T>
struct Lanes;

template <class F, class I>
struct ScalarLanes {
  using Element = F;
  using Integer = I;
  HOST_DEVICE static F broadcast(F x) { return x; }
  HOST_DEVICE static I broadcast_integer(I x) { return x; }
  HOST_DEVICE static I less(F a, F b) { return -static_cast<I>(a < b); }  // all ones where true
  HOST_DEVICE static I less(I a, I b) { return -static_cast<I>(a < b); }
  HOST_DEVICE static I equal(I a, I b) { return -static_cast<I>(a == b); }
  HOST_DEVICE static F select(I mask, F a, F b) { return mask ? a : b; }
  HOST_DEVICE static I to_integer(F x) { return static_cast<I>(x); }
  HOST_DEVICE static F to_float(I x) { return static_cast<F>(x); }
#if defined(__CUDA_ARCH__)
  // Contraction is off for all CUDA code, so the fused form has to be asked for; never used for geometry.
  HOST_DEVICE static F multiply_add(F a, F b, F c) { return fma(a, b, c); }
#else
  HOST_DEVICE static F multiply_add(F a, F b, F c) { return a * b + c; }
#endif
  // For powers of two that are normal numbers: their exponent is put together from its bits.
  HOST_DEVICE static F scale_by_power(F x, I n) {
    constexpr int fraction = sizeof(F) == 4 ? 23 : 52, bias = sizeof(F) == 4 ? 127 : 1023;
    const I bits = (n + bias) << fraction;
    F power;
    memcpy(&power, &bits, sizeof(F));
    return x * power;
  }
};
template <>
struct Lanes<float> : ScalarLanes<float, int32_t> {};
template <>
struct Lanes<double> : ScalarLanes<double, int64_t> {};

// Ties go to the even integer; exact for |x| < 2^22 (float) or 2^51 (double), far beyond the largest key.
template <class T>
HOST_DEVICE T round_to_even(T x) {
  using F = typename Lanes<T>::Element;
  const F magic = sizeof(F) == 4 ? F(12582912.0) : F(6755399441055744.0);  // 1.5 · 2^23 and 1.5 · 2^52
  return (x + magic) - magic;
}

// Scale of feature i (0-based) before it is elevated: the blur of unit variance becomes one lattice step.
template <class F>
HOST_DEVICE F elevation_scale(int i, int d) {
  const F deviation = static_cast<F>(sqrt(2.0 / 3.0) * (d + 1));
  return static_cast<F>(static_cast<double>(deviation) / sqrt(static_cast<double>(i + 1) * (i + 2)));
}

// Gain of one splat–blur–slice that the slice takes back: 1 / (1 + 2^-d).
template <class F>
HOST_DEVICE F slice_gain(int d) {
  return static_cast<F>(1.0 / (1.0 + ldexp(1.0, -d)));
}

// The simplex that encloses a point: the remainder-0 vertex, the rank of each coordinate and the barycentric weights.
// Vertex k has coordinate remainder[i] + k where rank[i] <= d - k, and remainder[i] + k - (d + 1) elsewhere.
template <class T, int MaxD>
struct Simplex {
  using F = typename Lanes<T>::Element;
  using I = typename Lanes<T>::Integer;

  T remainder[MaxD + 1];
  I rank[MaxD + 1];
  T weight[MaxD + 1];

  // feature[i] is already divided by its bandwidth; scale[i] = elevation_scale(i, d).
  HOST_DEVICE void enclose(const T* feature, const F* scale, int d) {
    using L = Lanes<T>;
    const F steps = static_cast<F>(d + 1);
    const F inverse = F(1) / steps;

    // 1. Elevate to the hyperplane where coordinates sum to zero.
    T elevated[MaxD + 1];
    T sum = L::broadcast(F(0));
    for (int j = d; j > 0; --j) {
      const T c = feature[j - 1] * scale[j - 1];
      elevated[j] = sum - c * static_cast<F>(j);
      sum = sum + c;
    }
    elevated[0] = sum;

    // 2. Nearest point whose coordinates are multiples of d + 1, and by how much its sum leaves the hyperplane.
    T excess = L::broadcast(F(0));
    for (int i = 0; i <= d; ++i) {
      const T v = round_to_even(elevated[i] * inverse);
      remainder[i] = v * steps;
      excess = excess + v;
      rank[i] = L::broadcast_integer(0);
    }

    // 3. Rank the differences (ties raise the later coordinate), then walk back onto the hyperplane.
    for (int i = 0; i < d; ++i) {
      const T difference = elevated[i] - remainder[i];
      for (int j = i + 1; j <= d; ++j) {
        const I less = L::less(difference, elevated[j] - remainder[j]);
        rank[i] = rank[i] - less;
        rank[j] = rank[j] + less + 1;
      }
    }
    const I shift = L::to_integer(excess);
    const I zero = L::broadcast_integer(0), last = L::broadcast_integer(d);
    for (int i = 0; i <= d; ++i) {
      rank[i] = rank[i] + shift;
      const I below = L::less(rank[i], zero), above = L::less(last, rank[i]);
      rank[i] = rank[i] + (below & (d + 1)) - (above & (d + 1));
      remainder[i] = L::select(below, remainder[i] + steps, L::select(above, remainder[i] - steps, remainder[i]));
    }

    // 4. Barycentric weights from the sorted offsets; sums over selects keep every index a constant.
    T sorted[MaxD + 1];
    for (int r = 0; r <= d; ++r) sorted[r] = L::broadcast(F(0));
    for (int i = 0; i <= d; ++i) {
      const T offset = (elevated[i] - remainder[i]) * inverse;
      for (int r = 0; r <= d; ++r) sorted[r] = L::select(L::equal(rank[i], L::broadcast_integer(r)), offset, sorted[r]);
    }
    weight[0] = sorted[d] + (F(1) - sorted[0]);
    for (int k = 1; k <= d; ++k) weight[k] = sorted[d - k] - sorted[d - k + 1];
  }

  // All ones where every coordinate of every vertex is below kKeyLimit in magnitude; zero for NaN and infinity too.
  HOST_DEVICE I in_range(int d) const {
    using L = Lanes<T>;
    const T limit = L::broadcast(static_cast<F>(kKeyLimit)), floor = L::broadcast(-static_cast<F>(kKeyLimit));
    I inside = L::broadcast_integer(-1);
    for (int i = 0; i <= d; ++i) {
      const T r = L::to_float(rank[i]);
      inside = inside & L::less(remainder[i] + (static_cast<F>(d) - r), limit) & L::less(floor, remainder[i] - r);
    }
    return inside;
  }
};

// Gradient with respect to a feature from the gradients `vertex` of the d + 1 barycentric weights: the derivative is
// constant inside a simplex, so the ranks are all it needs.
template <class F>
HOST_DEVICE void feature_gradient(const F* vertex, const int32_t* rank, int rank_stride, const F* scale, int d,
                                  F* feature) {
  const F inverse = F(1) / static_cast<F>(d + 1);
  F before = F(0);  // sum of the elevated gradients of coordinates below j
  for (int j = 0; j <= d; ++j) {
    const int r = d - rank[j * rank_stride];
    const F elevated = (vertex[r] - vertex[r == d ? 0 : r + 1]) * inverse;
    if (j > 0) feature[j - 1] = scale[j - 1] * (before - static_cast<F>(j) * elevated);
    before += elevated;
  }
}

// Keys: the first d coordinates of a vertex (the last one is minus their sum), 21 bits each, three to a word.
constexpr int kFieldBits = 21;
constexpr int kFieldsPerWord = 3;

HOST_DEVICE constexpr int key_words(int d) { return static_cast<int>(ceil_div(d, kFieldsPerWord)); }

HOST_DEVICE constexpr uint64_t key_field(int i) { return uint64_t(1) << (kFieldBits * (i % kFieldsPerWord)); }

HOST_DEVICE constexpr int32_t key_coordinate(const uint64_t* key, int i) {
  return static_cast<int32_t>((key[i / kFieldsPerWord] >> (kFieldBits * (i % kFieldsPerWord))) &
                              ((1u << kFieldBits) - 1)) -
         kKeyLimit;
}

// Word w of the key whose coordinates are all 1 (without the bias): adding it moves one step along the diagonal.
HOST_DEVICE constexpr uint64_t key_ones(int w, int d) {
  uint64_t ones = 0;
  for (int i = w * kFieldsPerWord; i < d && i < (w + 1) * kFieldsPerWord; ++i) ones += key_field(i);
  return ones;
}

// Neighbour of a vertex along axis j, one step in the positive direction: all coordinates +1, coordinate j - d.
HOST_DEVICE void key_neighbour(const uint64_t* key, int axis, int d, uint64_t* neighbour) {
  for (int w = 0; w < key_words(d); ++w) neighbour[w] = key[w] + key_ones(w, d);
  if (axis < d) neighbour[axis / kFieldsPerWord] -= static_cast<uint64_t>(d + 1) * key_field(axis);
}

// A neighbour just outside the range would carry into the next field, so it must not be looked up.
HOST_DEVICE bool key_has_neighbour(const uint64_t* key, int axis, int d) {
  for (int i = 0; i < d; ++i) {
    const int32_t moved = key_coordinate(key, i) + (i == axis ? -d : 1);
    if (moved >= kKeyLimit || moved < -kKeyLimit) return false;
  }
  return true;
}

HOST_DEVICE uint64_t key_hash(const uint64_t* key, int words) {
  uint64_t h = 0;
  for (int w = 0; w < words; ++w) {
    h = (h ^ key[w]) * 0x9E3779B97F4A7C15ull;
    h ^= h >> 32;
  }
  return h * 0xD6E8FEB86659FD93ull;
}

}  // namespace densecrf
