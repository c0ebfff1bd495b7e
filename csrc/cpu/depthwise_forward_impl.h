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

// Some lines by some vectors, numbered I. The sums are an array whose indices are constants from the start: a loop over
// them, unrolled late, would keep the array in memory. The next channels of each line are fetched on the way, for lines
// are too far apart for the processor to foresee that.
template <int Lanes, int Vectors, class F, class Pre, class Finish, int... I>
inline void depthwise_block(const GatherTap<F>* taps, int live, const GatherPanel<F>& panel, int64_t line, int64_t at,
                            Pre pre, Finish finish, std::integer_sequence<int, I...>) {
  using V = Vector<F, Lanes>;
  V sum[sizeof...(I)] = {};
  const auto add_tap = [&](const F* source, const F* weight, V& total) {
    __builtin_prefetch(source + Vectors * Lanes, 0, 3);
    total = multiply_add(load<V>(weight), pre(load<V>(source)), total);
  };
  for (const GatherTap<F>* tap = taps; tap != taps + live; ++tap) {
    const F* source = tap->source + line * panel.source_stride + at;
    const F* weight = tap->weight + at;
    (add_tap(source + I / Vectors * panel.source_stride + I % Vectors * Lanes, weight + I % Vectors * Lanes, sum[I]),
     ...);
  }
  F* out = panel.out + line * panel.out_stride + at;
  (store(out + I / Vectors * panel.out_stride + I % Vectors * Lanes, finish(sum[I], at + I % Vectors * Lanes)), ...);
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
      for (; line + 4 <= panel.count; line += 4)
        depthwise_block<L, N>(taps, live, panel, line, at, pre, finish, std::make_integer_sequence<int, 4 * N>{});
      for (; line < panel.count; ++line)
        depthwise_block<L, N>(taps, live, panel, line, at, pre, finish, std::make_integer_sequence<int, N>{});
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

// Neighbouring channels, numbered I, share the look at each tap. The channels after them are fetched on the way.
template <int Step, class F, class Pre, int... I>
inline void depthwise_planes(const PixelTile<F>& tile, int64_t channel, Pre pre, std::integer_sequence<int, I...>) {
  using V = Vector<F, kWidth<F>>;
  const Bounds<F> bounds(tile.affine.activation);
  const int64_t ahead = sizeof...(I) * tile.source_stride;
  const F* source = tile.source + channel * tile.source_stride;
  const F* weight = tile.weight + channel * tile.kernel_taps;
  const auto add_tap = [&](const F* pixels, uint32_t lanes, F factor, V& total) {
    __builtin_prefetch(pixels + ahead, 0, 3);
    total = multiply_add(broadcast<V>(factor), pre(load_pixels<Step, V>(pixels, lanes)), total);
  };
  for (int64_t v = 0; v < tile.vectors; ++v) {
    const int64_t count = v + 1 < tile.vectors ? kWidth<F> : tile.last_lanes;
    F* out = tile.out + channel * tile.out_stride + v / 2 * tile.panel_stride + v % 2 * kWidth<F>;
    const auto finish = [&](V total, int64_t c) {
      if (tile.affine.scale) total *= broadcast<V>(tile.affine.scale[channel + c]);
      if (tile.affine.shift) total += broadcast<V>(tile.affine.shift[channel + c]);
      total = bounds(total);
      if (count == kWidth<F>) return store(out + c * tile.out_stride, total);
      for (int64_t l = 0; l < count; ++l) out[c * tile.out_stride + l] = total[l];
    };
    V sum[sizeof...(I)] = {};
    const PixelTap* end = tile.taps + tile.first[v + 1];
    for (const PixelTap* tap = tile.taps + tile.first[v]; tap != end; ++tap) {
      const F* pixels = source + tap->source;
      const F* factor = weight + tap->tap;
      (add_tap(pixels + I * tile.source_stride, tap->lanes, factor[I * tile.kernel_taps], sum[I]), ...);
    }
    (finish(sum[I], I), ...);
  }
}

template <int Step, class F, class Pre>
inline void depthwise_tile(const PixelTile<F>& tile, Pre pre) {
  int64_t c = 0;
  for (; c + 4 <= tile.channels; c += 4) depthwise_planes<Step>(tile, c, pre, std::make_integer_sequence<int, 4>{});
  for (; c < tile.channels; ++c) depthwise_planes<Step>(tile, c, pre, std::make_integer_sequence<int, 1>{});
}

template <class F>
void depthwise_pixels(const PixelTile<F>& tile) {
  with_bounds<F>(tile.pre,
                 [&](auto pre) { tile.step == 1 ? depthwise_tile<1>(tile, pre) : depthwise_tile<2>(tile, pre); });
}

}  // namespace DENSECRF_ISA
}  // namespace densecrf
