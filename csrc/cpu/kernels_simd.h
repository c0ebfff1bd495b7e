// Loops with one point, or one channel, per lane: the geometry of a tile and the softmax of rows. Included by the
// isa_*.cpp after kernels_impl.h, under the same conditions.

namespace densecrf {
namespace DENSECRF_ISA {

template <class F, class I, int N>
struct VectorLanes {
  using Element = F;
  using Integer = Vector<I, N>;
  using V = Vector<F, N>;
  HOST_DEVICE static V broadcast(F x) { return x - V{}; }
  HOST_DEVICE static Integer broadcast_integer(I x) { return Integer{} + x; }
  HOST_DEVICE static Integer less(V a, V b) { return a < b; }
  HOST_DEVICE static Integer less(Integer a, Integer b) { return a < b; }
  HOST_DEVICE static Integer equal(Integer a, Integer b) { return a == b; }
  HOST_DEVICE static V select(Integer mask, V a, V b) { return mask ? a : b; }
  HOST_DEVICE static Integer to_integer(V x) { return __builtin_convertvector(x, Integer); }
  HOST_DEVICE static V to_float(Integer x) { return __builtin_convertvector(x, V); }
  HOST_DEVICE static V multiply_add(V a, V b, V c) { return DENSECRF_ISA::multiply_add(a, b, c); }
  // x · 2^n through the bits of the exponent, for n in the normal range.
  HOST_DEVICE static V scale_by_power(V x, Integer n) {
    constexpr int mantissa = sizeof(F) == 4 ? 23 : 52;
    constexpr I bias = sizeof(F) == 4 ? 127 : 1023;
    return x * (V)((n + bias) << mantissa);
  }
};

}  // namespace DENSECRF_ISA

template <>
struct Lanes<DENSECRF_ISA::Vector<float, DENSECRF_VECTOR_BYTES / 4>>
    : DENSECRF_ISA::VectorLanes<float, int32_t, DENSECRF_VECTOR_BYTES / 4> {};
template <>
struct Lanes<DENSECRF_ISA::Vector<double, DENSECRF_VECTOR_BYTES / 8>>
    : DENSECRF_ISA::VectorLanes<double, int64_t, DENSECRF_VECTOR_BYTES / 8> {};
#if DENSECRF_VECTOR_BYTES != 32
template <>
struct Lanes<DENSECRF_ISA::Vector<float, 8>> : DENSECRF_ISA::VectorLanes<float, int32_t, 8> {};
template <>
struct Lanes<DENSECRF_ISA::Vector<double, 4>> : DENSECRF_ISA::VectorLanes<double, int64_t, 4> {};
#endif

namespace DENSECRF_ISA {

template <int MaxD, class F>
bool enclose_bounded(const F* features, const F* scale, int d, int points, TileSimplices<F>* out) {
  constexpr int lanes = kWidth<F>;
  using V = Vector<F, lanes>;
  using L = Lanes<V>;
  using Narrow = Vector<int32_t, lanes>;
  typename L::Integer inside = L::broadcast_integer(-1);
  for (int p = 0; p < points; p += lanes) {
    V feature[MaxD];
    for (int i = 0; i < d; ++i) feature[i] = load<V>(features + i * kTilePoints + p);
    Simplex<V, MaxD> simplex;
    simplex.enclose(feature, scale, d);
    inside &= simplex.in_range(d);
    for (int i = 0; i <= d; ++i) {
      store(out->weight + i * kTilePoints + p, simplex.weight[i]);
      store(out->remainder + i * kTilePoints + p, __builtin_convertvector(simplex.remainder[i], Narrow));
      store(out->rank + i * kTilePoints + p, __builtin_convertvector(simplex.rank[i], Narrow));
    }
  }
  for (int i = 0; i < lanes; ++i)
    if (!inside[i]) return false;
  for (int p = 0; p < points; ++p) out->hash[p] = 0;
  for (int i = 0; i <= d; ++i) {
    const auto* remainder = reinterpret_cast<const uint32_t*>(out->remainder + i * kTilePoints);
    const auto* rank = reinterpret_cast<const uint32_t*>(out->rank + i * kTilePoints);
    for (int p = 0; p < points; ++p) out->hash[p] = (out->hash[p] + remainder[p] * 64 + rank[p]) * 0x9E3779B1u;
  }
  return true;
}

// Lanes past the last point must hold finite features: the caller repeats the last point.
template <class F>
bool enclose(const F* features, const F* scale, int d, int points, TileSimplices<F>* out) {
  if (d == 2) return enclose_bounded<2>(features, scale, 2, points, out);
  if (d == 3) return enclose_bounded<3>(features, scale, 3, points, out);
  if (d == 5) return enclose_bounded<5>(features, scale, 5, points, out);
  return enclose_bounded<kMaxDimension>(features, scale, d, points, out);
}

// Reduction over groups of N neighbouring lanes, the result in every lane of the group.
template <int N, class V, class Combine>
inline V reduce_lanes(V x, Combine combine) {
  if constexpr (sizeof(V) == 32 && sizeof(x[0]) == 4) {
    if constexpr (N >= 2) x = combine(x, __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6));
    if constexpr (N >= 4) x = combine(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
    if constexpr (N >= 8) x = combine(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
  } else {
    if constexpr (N >= 2) x = combine(x, __builtin_shufflevector(x, x, 1, 0, 3, 2));
    if constexpr (N >= 4) x = combine(x, __builtin_shufflevector(x, x, 2, 3, 0, 1));
  }
  return x;
}

struct Largest {
  template <class V>
  V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};
struct Sum {
  template <class V>
  V operator()(V a, V b) const {
    return a + b;
  }
};

// Calls function(row, reduced) for each row of `stride` channels, with the reduction of its channels in every lane.
template <class F, class Combine, class Function>
inline void for_reduced_rows(F* x, int points, int64_t stride, Combine combine, Function function) {
  using U = Vector<F, kUnit<F>>;
  for (int p = 0; p < points; ++p, x += stride) {
    U reduced = load<U>(x);
    for (int64_t c = kUnit<F>; c < stride; c += kUnit<F>) reduced = combine(load<U>(x + c), reduced);
    function(x, stride, reduce_lanes<kUnit<F>>(reduced, combine));
  }
}

// The same for rows shorter than a unit, of which one unit holds several.
template <int N, class F, class Combine, class Function>
inline void for_reduced_short_rows(F* x, int points, Combine combine, Function function) {
  constexpr int unit = kUnit<F>;
  for (int at = 0; at < points * N; at += unit)
    function(x + at, int64_t(unit), reduce_lanes<N>(load<Vector<F, unit>>(x + at), combine));
}

template <class F, class Combine, class Function>
inline void for_any_rows(F* x, int points, int64_t stride, Combine combine, Function function) {
  constexpr int64_t unit = kUnit<F>;
  if (stride == 1) return for_reduced_short_rows<1>(x, points, combine, function);
  if (stride == 2) return for_reduced_short_rows<2>(x, points, combine, function);
  if (stride < unit) return for_reduced_short_rows<4>(x, points, combine, function);
  // A constant number of units spares the loops over them for up to 32 labels.
  if (stride == unit) return for_reduced_rows(x, points, unit, combine, function);
  if (stride == 2 * unit) return for_reduced_rows(x, points, 2 * unit, combine, function);
  if (stride == 3 * unit) return for_reduced_rows(x, points, 3 * unit, combine, function);
  if (stride == 4 * unit) return for_reduced_rows(x, points, 4 * unit, combine, function);
  for_reduced_rows(x, points, stride, combine, function);
}

// Three passes over rows that stay in the first cache: exp() runs over all channels alike, in the widest vectors, and
// no pass waits for a chain of dependent operations from maximum to division.
template <class F>
void softmax(F* x, int points, int64_t stride, bool logarithm) {
  using U = Vector<F, kUnit<F>>;
  using V = Vector<F, kWidth<F>>;
  for_any_rows(x, points, stride, Largest{}, [](F* row, int64_t size, U largest) {
    for (int64_t c = 0; c < size; c += kUnit<F>) store(row + c, load<U>(row + c) - largest);
  });
  if (logarithm) {
    for (int p = 0; p < points; ++p) {
      F sum = F(0);
      for (int64_t c = 0; c < stride; ++c) sum += std::exp(x[p * stride + c]);
      for (int64_t c = 0; c < stride; ++c) x[p * stride + c] -= std::log(sum);
    }
    return;
  }
  for (int64_t c = 0; c < points * stride; c += kWidth<F>) store(x + c, exponential(load<V>(x + c)));
  for_any_rows(x, points, stride, Sum{}, [](F* row, int64_t size, U sum) {
    const U inverse = F(1) / sum;
    for (int64_t c = 0; c < size; c += kUnit<F>) store(row + c, load<U>(row + c) * inverse);
  });
}

template <class F>
void softmax_gradient(const F* q, F* g, int points, int64_t stride) {
  using U = Vector<F, kUnit<F>>;
  for (int64_t c = 0; c < points * stride; c += kUnit<F>) store(g + c, load<U>(g + c) * load<U>(q + c));
  for_any_rows(g, points, stride, Sum{}, [q, g](F* row, int64_t size, U sum) {
    for (int64_t c = 0; c < size; c += kUnit<F>) store(row + c, load<U>(row + c) - load<U>(q + (row - g) + c) * sum);
  });
}

// Sum over the channels of a row, whatever vectors it is held in.
template <class F, int N>
inline F sum_row(Row<F, N>& row) {
  if constexpr (N < kUnit<F>) {
    F channels[N], sum = F(0);
    row.write(channels);
    for (const F channel : channels) sum += channel;
    return sum;
  } else {
    using U = Vector<F, kUnit<F>>;
    U sum{};
    row.each([&sum](auto& v, int) {
      U parts[sizeof(v) / sizeof(U)];
      __builtin_memcpy(parts, &v, sizeof(v));
      for (const U& part : parts) sum += part;
    });
    return reduce_lanes<kUnit<F>>(sum, Sum{})[0];
  }
}

template <class F>
void pair(const TileEntries<F>& entries, const int32_t* vertices, const F* rows, int64_t stride, const F* in, F factor,
          F* out) {
  for_blocks<F>(stride, [&](auto block, int64_t at) {
    const int count = entries.vertices_per_point;
    for (int e = 0; e < entries.points; ++e) {
      const F* value = in + TileEntries<F>::position(entries.order[e]) * stride + at;
      const int16_t* local_ids = entries.local_ids + e * count;
      for (int k = 0; k < count; ++k) {
        Row<F, block> product;
        product.zero();
        product.add_product(value, rows + vertices[local_ids[k]] * stride + at);
        out[e * count + k] += factor * sum_row(product);
      }
    }
  });
}

template <class F>
const Kernels<F>& table() {
  static const Kernels<F> kernels = {enclose<F>,        slice<F>,
                                     pair<F>,           splat<F>,
                                     gather<F>,         blur<F>,
                                     softmax<F>,        softmax_gradient<F>,
                                     add_products<F>,   subtract_diagonal<F>,
                                     subtract_matrix<F>};
  return kernels;
}
template const Kernels<float>& table<float>();
template const Kernels<double>& table<double>();

}  // namespace DENSECRF_ISA
}  // namespace densecrf
