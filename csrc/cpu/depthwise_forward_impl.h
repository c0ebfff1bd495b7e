// The depthwise kernels of the table in separable_kernels.h. Included by the isa_*.cpp after
// depthwise_gradient_kernels_impl.h, under the same conditions.

namespace densecrf {
namespace DENSECRF_ISA {

// An activation as bounds: one body for all of them, where it is applied once a pixel. Comparisons with NaN are false,
// so it stays.
template <class F>
struct Bounds {
  explicit Bounds(Activation activation)
      : low(activation == Activation::none ? -std::numeric_limits<F>::infinity() : F(0)),
        high(activation == Activation::relu6 ? F(6) : std::numeric_limits<F>::infinity()) {}

  template <class V>
  inline V operator()(V x) const {
    x = x < broadcast<V>(low) ? broadcast<V>(low) : x;
    return x > broadcast<V>(high) ? broadcast<V>(high) : x;
  }

  F low, high;
};

struct NoBounds {
  template <class V>
  inline V operator()(V x) const {
    return x;
  }
};

// Calls function with what is applied once a tap, which is nothing at all where there is no activation.
template <class F, class Function>
inline void with_bounds(Activation activation, Function function) {
  if (activation == Activation::none) return function(NoBounds{});
  function(Bounds<F>(activation));
}

// The next channels of each line are fetched on the way: lines are too far apart for the processor to foresee that.
template <int Lanes, int Vectors, int Lines, class F, class Pre, class Finish>
inline void depthwise_block(const GatherTap<F>* taps, int live, const GatherPanel<F>& panel, int64_t line, int64_t at,
                            Pre pre, Finish finish) {
  using V = Vector<F, Lanes>;
  V sum[Lines][Vectors];
  for (int p = 0; p < Lines; ++p)
    for (int v = 0; v < Vectors; ++v) sum[p][v] = V{};
  for (int t = 0; t < live; ++t) {
    const F* source = taps[t].source + line * panel.source_stride + at;
    V weight[Vectors];
    for (int v = 0; v < Vectors; ++v) weight[v] = load<V>(taps[t].weight + at + v * Lanes);
    for (int p = 0; p < Lines; ++p)
      for (int v = 0; v < Vectors; ++v)
        __builtin_prefetch(source + p * panel.source_stride + (Vectors + v) * Lanes, 0, 3);
    for (int p = 0; p < Lines; ++p)
      for (int v = 0; v < Vectors; ++v)
        sum[p][v] = multiply_add(weight[v], pre(load<V>(source + p * panel.source_stride + v * Lanes)), sum[p][v]);
  }
  for (int v = 0; v < Vectors; ++v)
    for (int p = 0; p < Lines; ++p)
      store(panel.out + (line + p) * panel.out_stride + at + v * Lanes, finish(sum[p][v], at + v * Lanes));
}

template <class F>
void depthwise_channels(const GatherTap<F>* taps, int live, const GatherPanel<F>& panel, Activation activation,
                        const Affine<F>& affine) {
  const Bounds<F> bounds(affine.activation);
  with_bounds<F>(activation, [&](auto pre) {
    for_lanes<F, 2>(panel.length, [&](auto lanes, auto vectors, int64_t at, int64_t) {
      constexpr int L = decltype(lanes)::value, N = decltype(vectors)::value;
      const auto finish = [&](auto sum, int64_t channel) {
        using V = decltype(sum);
        if (affine.scale) sum *= load<V>(affine.scale + channel);
        if (affine.shift) sum += load<V>(affine.shift + channel);
        return bounds(sum);
      };
      int64_t line = 0;
      for (; line + 4 <= panel.count; line += 4) depthwise_block<L, N, 4>(taps, live, panel, line, at, pre, finish);
      for (; line < panel.count; ++line) depthwise_block<L, N, 1>(taps, live, panel, line, at, pre, finish);
    });
  });
}

// Zero in the lanes whose bit is not set; their memory is not touched.
template <class V, class F>
inline V load_lanes(const F* p, uint32_t lanes) {
#if DENSECRF_VECTOR_BYTES == 64
  if constexpr (sizeof(F) == 4)
    return (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), p);
  else
    return (V)_mm512_maskz_loadu_pd(static_cast<__mmask8>(lanes), p);
#elif DENSECRF_HAS_FMA
  if constexpr (sizeof(F) == 4) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(lanes)), bits);
    return (V)_mm256_maskload_ps(p, _mm256_cmpeq_epi32(set, bits));
  } else {
    const __m256i bits = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi64x(static_cast<int64_t>(lanes)), bits);
    return (V)_mm256_maskload_pd(p, _mm256_cmpeq_epi64(set, bits));
  }
#else
  constexpr int count = sizeof(V) / sizeof(F);
  if (lanes == (uint32_t(1) << count) - 1) return load<V>(p);
  V result{};
  for (int l = 0; l < count; ++l)
    if (lanes >> l & 1) result[l] = p[l];
  return result;
#endif
}

// Moves the lower half of the bits to the even places.
inline uint32_t spread_bits(uint32_t x) {
  x = (x | x << 8) & 0x00FF00FFu;
  x = (x | x << 4) & 0x0F0F0F0Fu;
  x = (x | x << 2) & 0x33333333u;
  return (x | x << 1) & 0x55555555u;
}

template <class V, int... I>
inline V even_lanes(V low, V high, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(low, high, (2 * I)...);
}

template <int Step, class V, class F>
inline V load_pixels(const F* p, uint32_t lanes) {
  constexpr int count = sizeof(V) / sizeof(F);
  if constexpr (Step == 1) {
    return load_lanes<V>(p, lanes);
  } else {
    const uint32_t low = spread_bits(lanes & ((1u << count / 2) - 1)), high = spread_bits(lanes >> count / 2);
    return even_lanes(load_lanes<V>(p, low), load_lanes<V>(p + count, high), std::make_integer_sequence<int, count>{});
  }
}

// `ahead` is the next channel, whose pixels are fetched on the way.
template <int Step, class F, class Pre>
inline Vector<F, kWidth<F>> depthwise_vector(const PixelTap* tap, const PixelTap* end, const F* source, const F* ahead,
                                             const F* weight, Pre pre) {
  using V = Vector<F, kWidth<F>>;
  V sum{};
  for (; tap != end; ++tap) {
    __builtin_prefetch(ahead + tap->source, 0, 3);
    sum =
        multiply_add(broadcast<V>(weight[tap->tap]), pre(load_pixels<Step, V>(source + tap->source, tap->lanes)), sum);
  }
  return sum;
}

template <int Step, class F, class Pre>
inline void depthwise_tile(const PixelTile<F>& tile, Pre pre) {
  using V = Vector<F, kWidth<F>>;
  const Bounds<F> bounds(tile.affine.activation);
  for (int64_t c = 0; c < tile.channels; ++c) {
    const F* source = tile.source + c * tile.source_stride;
    const F* ahead = source + tile.source_stride;
    const F* weight = tile.weight + c * tile.kernel_taps;
    const V scale = broadcast<V>(tile.affine.scale ? tile.affine.scale[c] : F(1));
    const V shift = broadcast<V>(tile.affine.shift ? tile.affine.shift[c] : F(0));
    F* out = tile.out + c * tile.out_stride;
    for (int64_t v = 0; v < tile.vectors; ++v) {
      const V sum =
          depthwise_vector<Step>(tile.taps + tile.first[v], tile.taps + tile.first[v + 1], source, ahead, weight, pre);
      const V result = bounds(V(scale * sum + shift));
      F* to = out + v / 2 * tile.panel_stride + v % 2 * kWidth<F>;
      if (v + 1 < tile.vectors || tile.last_lanes == kWidth<F>) {
        store(to, result);
      } else {
        for (int l = 0; l < tile.last_lanes; ++l) to[l] = result[l];
      }
    }
  }
}

template <class F>
void depthwise_pixels(const PixelTile<F>& tile) {
  with_bounds<F>(tile.pre,
                 [&](auto pre) { tile.step == 1 ? depthwise_tile<1>(tile, pre) : depthwise_tile<2>(tile, pre); });
}

}  // namespace DENSECRF_ISA
}  // namespace densecrf
