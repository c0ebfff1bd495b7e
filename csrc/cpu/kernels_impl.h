// Bodies of the table in kernels.h. No include guard: each isa_*.cpp includes this file once, inside its own target
// region, with DENSECRF_ISA (a namespace), DENSECRF_VECTOR_BYTES and DENSECRF_HAS_FMA defined.

namespace densecrf {
namespace DENSECRF_ISA {

template <class F, int N>
struct VectorOf {
  typedef F type __attribute__((vector_size(N * sizeof(F))));
  typedef F unaligned __attribute__((vector_size(N * sizeof(F)), aligned(sizeof(F)), may_alias));
};
template <class F>
struct VectorOf<F, 1> {
  typedef F type;
  typedef F unaligned;
};
template <class F, int N>
using Vector = typename VectorOf<F, N>::type;

template <class V, class F>
inline V load(const F* p) {
  return *reinterpret_cast<const typename VectorOf<F, sizeof(V) / sizeof(F)>::unaligned*>(p);
}
template <class V, class F>
inline void store(F* p, V v) {
  *reinterpret_cast<typename VectorOf<F, sizeof(V) / sizeof(F)>::unaligned*>(p) = v;
}

// x - 0 is x for every x, so this is a plain broadcast; 0 + x would turn -0 into 0 and cost an addition.
template <class V, class F>
inline V broadcast(F x) {
  return x - V{};
}

// a · b + c, fused where the instruction set has it; never used for geometry.
template <class V>
inline V multiply_add(V a, V b, V c) {
#if DENSECRF_HAS_FMA
  if constexpr (std::is_same_v<V, Vector<float, 4>>) return (V)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
  if constexpr (std::is_same_v<V, Vector<float, 8>>) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (std::is_same_v<V, Vector<double, 2>>) return (V)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)c);
  if constexpr (std::is_same_v<V, Vector<double, 4>>) return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#if DENSECRF_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<V, Vector<float, 16>>) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  if constexpr (std::is_same_v<V, Vector<double, 8>>) return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#endif
#endif
  return a * b + c;
}

template <class F>
constexpr int kUnit = kRowUnit / sizeof(F);
template <class F>
constexpr int kWidth = DENSECRF_VECTOR_BYTES / sizeof(F);

// N channels of one row in registers: whole vectors, then one unit where N is an odd number of units.
template <class F, int N>
struct Row {
  static constexpr int kFull = N / kWidth<F>;
  static constexpr int kRest = N % kWidth<F>;
  using Full = Vector<F, kWidth<F>>;
  using Rest = Vector<F, kRest ? kRest : 1>;
  Full full[kFull ? kFull : 1];
  Rest rest;

  template <class Function>
  inline void each(Function function) {
    if constexpr (kFull > 0)
      for (int i = 0; i < kFull; ++i) function(full[i], i * kWidth<F>);
    if constexpr (kRest > 0) function(rest, kFull * kWidth<F>);
  }
  inline void zero() {
    each([](auto& v, int) { v = std::decay_t<decltype(v)>{}; });
  }
  inline void read(const F* p) {
    each([p](auto& v, int at) { v = load<std::decay_t<decltype(v)>>(p + at); });
  }
  inline void write(F* p) {
    each([p](auto& v, int at) { store(p + at, v); });
  }
  inline void add(const F* p) {
    each([p](auto& v, int at) { v += load<std::decay_t<decltype(v)>>(p + at); });
  }
  inline void add(const Row& other) {
    if constexpr (kFull > 0)
      for (int i = 0; i < kFull; ++i) full[i] += other.full[i];
    if constexpr (kRest > 0) rest += other.rest;
  }
  inline void multiply(F w) {
    each([w](auto& v, int) { v *= w; });
  }
  inline void add_scaled(F w, const F* p) {
    each([p, w](auto& v, int at) {
      using V = std::decay_t<decltype(v)>;
      v = multiply_add(broadcast<V>(w), load<V>(p + at), v);
    });
  }
  inline void add_product(const F* a, const F* b) {
    each([a, b](auto& v, int at) {
      using V = std::decay_t<decltype(v)>;
      v = multiply_add(load<V>(a + at), load<V>(b + at), v);
    });
  }
  inline void add_scaled(F w, const Row& other) {
    if constexpr (kFull > 0)
      for (int i = 0; i < kFull; ++i) full[i] = multiply_add(broadcast<Full>(w), other.full[i], full[i]);
    if constexpr (kRest > 0) rest = multiply_add(broadcast<Rest>(w), other.rest, rest);
  }
  inline void add_scaled_to(F w, F* p) {
    each([p, w](auto& v, int at) {
      using V = std::decay_t<decltype(v)>;
      store(p + at, multiply_add(broadcast<V>(w), v, load<V>(p + at)));
    });
  }
  inline void add_to(F* p) {
    each([p](auto& v, int at) { store(p + at, load<std::decay_t<decltype(v)>>(p + at) + v); });
  }
};

// Calls function(block, offset) with a constant number of channels per block, at most MaxUnits units (1, 2 or 4).
template <class F, int MaxUnits = 4, class Function>
inline void for_blocks(int64_t stride, Function function) {
  constexpr int unit = kUnit<F>;
  if (stride < unit) {
    if (stride == 1) return function(std::integral_constant<int, 1>{}, int64_t(0));
    if (stride == 2) return function(std::integral_constant<int, 2>{}, int64_t(0));
    if constexpr (unit > 4) return function(std::integral_constant<int, 4>{}, int64_t(0));
  }
  int64_t at = 0;
  for (; stride - at >= MaxUnits * unit; at += MaxUnits * unit)
    function(std::integral_constant<int, MaxUnits * unit>{}, at);
  if constexpr (MaxUnits > 2) {
    if (stride - at == 3 * unit) return function(std::integral_constant<int, 3 * unit>{}, at);
    if (stride - at == 2 * unit) return function(std::integral_constant<int, 2 * unit>{}, at);
  }
  if (stride - at == unit) return function(std::integral_constant<int, unit>{}, at);
}

// The rows of all vertices of a simplex stay in registers while its points pass by: as many channels at a time as
// leaves room for that. VERTICES is a constant for the two lattices of every image CRF, else 0.
template <int Vertices>
constexpr int kSimplexUnits = Vertices == 0                                 ? 1
                              : Vertices > 3 && DENSECRF_VECTOR_BYTES == 32 ? 2
                                                                            : 4;

// Entries fetched ahead of the slice: they come from memory once an iteration, and the loop over groups, whose length
// nobody can predict, keeps the processor from running ahead to them by itself.
constexpr int kEntriesAhead = 64;

template <class Function>
inline void with_vertices(int vertices, Function function) {
  if (vertices == 3) return function(std::integral_constant<int, 3>{});
  if (vertices == 6) return function(std::integral_constant<int, 6>{});
  function(std::integral_constant<int, 0>{});
}

template <class F, int Vertices, int Block>
inline void slice_block(const TileEntries<F>& entries, const int32_t* vertices, const F* rows, int64_t stride,
                        const F* scale, F factor, F* out) {
  const int count = Vertices ? Vertices : entries.vertices_per_point;
  Row<F, Block> corner[Vertices ? Vertices : kMaxDimension + 1];
  for (int e = 0; e < entries.points;) {
    const int16_t* local_ids = entries.local_ids + e * count;
    for (int k = 0; k < count; ++k) corner[k].read(rows + vertices[local_ids[k]] * stride);
    do {
      const int p = TileEntries<F>::position(entries.order[e]);
      const F* weights = entries.weights + e * count;
      __builtin_prefetch(weights + kEntriesAhead * count);
      __builtin_prefetch(entries.local_ids + (e + kEntriesAhead) * count);
      Row<F, Block> sum;
      sum.zero();
      for (int k = 0; k < count; ++k) sum.add_scaled(weights[k], corner[k]);
      sum.add_scaled_to(scale ? factor * scale[p] : factor, out + p * stride);
    } while (++e < entries.points && entries.order[e] < 0);
  }
}

template <class F>
void slice(const TileEntries<F>& entries, const int32_t* vertices, const F* rows, int64_t stride, const F* scale,
           F factor, F* out) {
  with_vertices(entries.vertices_per_point, [&](auto count) {
    for_blocks<F, kSimplexUnits<count>>(stride, [&](auto block, int64_t at) {
      slice_block<F, count, block>(entries, vertices, rows + at, stride, scale, factor, out + at);
    });
  });
}

template <class F, int Vertices, int Block>
inline void splat_block(const TileEntries<F>& entries, const F* in, int64_t stride, const F* scale, F* partials) {
  const int count = Vertices ? Vertices : entries.vertices_per_point;
  Row<F, Block> corner[Vertices ? Vertices : kMaxDimension + 1];
  for (int e = 0; e < entries.points;) {
    const int16_t* local_ids = entries.local_ids + e * count;
    for (int k = 0; k < count; ++k) corner[k].zero();
    do {
      const int p = TileEntries<F>::position(entries.order[e]);
      const F* weights = entries.weights + e * count;
      Row<F, Block> value;
      value.read(in + p * stride);
      if (scale) value.multiply(scale[p]);
      for (int k = 0; k < count; ++k) corner[k].add_scaled(weights[k], value);
    } while (++e < entries.points && entries.order[e] < 0);
    for (int k = 0; k < count; ++k) corner[k].add_to(partials + local_ids[k] * stride);
  }
}

template <class F>
void splat(const TileEntries<F>& entries, const F* in, int64_t stride, const F* scale, F* partials) {
  with_vertices(entries.vertices_per_point, [&](auto count) {
    for_blocks<F, kSimplexUnits<count>>(stride, [&](auto block, int64_t at) {
      splat_block<F, count, block>(entries, in + at, stride, scale, partials + at);
    });
  });
}

template <class F>
inline void prefetch_row(const F* row, int bytes) {
  for (int at = 0; at < bytes; at += 64) __builtin_prefetch(reinterpret_cast<const char*>(row) + at);
}

template <class F>
void gather(int64_t begin, int64_t end, const int64_t* offsets, const int64_t* indices, int64_t first,
            const F* partials, int64_t stride, F* rows) {
  // Lists are short and of random length: what the processor cannot predict it does not fetch ahead.
  constexpr int64_t ahead = 24;
  const int64_t last = offsets[end];
  for_blocks<F>(stride, [&](auto block, int64_t at) {
    const F* source = partials + at - first * stride;
    for (int64_t v = begin; v < end; ++v) {
      Row<F, block> sum;
      sum.zero();
      for (int64_t i = offsets[v]; i < offsets[v + 1]; ++i) {
        if (i + ahead < last) prefetch_row(source + indices[i + ahead] * stride, block * sizeof(F));
        sum.add(source + indices[i] * stride);
      }
      sum.write(rows + v * stride + at);
    }
  });
}

// Row of a neighbour, or row -1 where it is missing; without a branch, which would be mispredicted every other time.
inline int64_t neighbour_row(int64_t id, int64_t first) { return (id - first) | (id >> 63); }

// One axis at a time: fusing two reads more rows per vertex through an index that depends on another one, which costs
// more than the second pass over memory saves (measured 2.5 times slower at 39,000 vertices of 24 channels).
template <class F>
void blur(int64_t begin, int64_t end, const int32_t* neighbours, int64_t first, const F* in, int64_t stride, F* out) {
  for_blocks<F>(stride, [&](auto block, int64_t at) {
    const F* source = in + at;
    for (int64_t v = begin; v < end; ++v) {
      const F* minus = source + neighbour_row(neighbours[2 * v], first) * stride;
      const F* plus = source + neighbour_row(neighbours[2 * v + 1], first) * stride;
      F* target = out + v * stride + at;
      Row<F, block> value;
      value.read(source + v * stride);
      value.each([minus, plus, target](auto& x, int i) {
        using V = std::decay_t<decltype(x)>;
        store(target + i, multiply_add(broadcast<V>(F(0.5)), load<V>(minus + i) + load<V>(plus + i), x));
      });
    }
  });
}

template <class F>
void add_products(const F* a, const F* b, int points, int64_t stride, F* sums) {
  for_blocks<F>(stride, [&](auto block, int64_t at) {
    constexpr int group = 16;  // sums of sums: one long sum of floats would round at every step
    Row<F, block> sum;
    sum.zero();
    for (int first = 0; first < points; first += group) {
      Row<F, block> part;
      part.zero();
      for (int p = first; p < points && p < first + group; ++p)
        part.add_product(a + p * stride + at, b + p * stride + at);
      sum.add(part);
    }
    sum.add(sums + at);
    sum.write(sums + at);
  });
}

template <class F>
void subtract_diagonal(F* x, const F* y, int points, int64_t stride, const F* diagonal) {
  for (int p = 0; p < points; ++p)
    for (int64_t c = 0; c < stride; ++c) x[p * stride + c] -= diagonal[c] * y[p * stride + c];
}

// Four points share each column of the matrix, so that the loop is bound by arithmetic and not by loads.
template <class F>
void subtract_matrix(F* x, const F* y, int points, int64_t stride, const F* columns, int64_t channels) {
  for_blocks<F>(stride, [&](auto block, int64_t at) {
    constexpr int group = 4;
    for (int p = 0; p < points; p += group) {
      const int n = points - p < group ? points - p : group;
      Row<F, block> sum[group];
      const F* source[group];
      for (int g = 0; g < group; ++g) {
        sum[g].zero();  // the energies of many labels are small beside x: added to it one by one they would round
        source[g] = y + (p + (g < n ? g : 0)) * stride;
      }
      for (int64_t j = 0; j < channels; ++j)
        for (int g = 0; g < group; ++g) sum[g].add_scaled(-source[g][j], columns + j * stride + at);
      for (int g = 0; g < n; ++g) {
        sum[g].add(x + (p + g) * stride + at);
        sum[g].write(x + (p + g) * stride + at);
      }
    }
  });
}

}  // namespace DENSECRF_ISA
}  // namespace densecrf
