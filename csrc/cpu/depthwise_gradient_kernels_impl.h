// Bodies of the table in depthwise_gradient_kernels.h. Included by the isa_*.cpp after kernels_impl.h, under the same
// conditions.

namespace densecrf {
namespace DENSECRF_ISA {

// Comparisons with NaN are false, so it stays.
template <Activation pre, class F, class V>
inline V activated(V x) {
  if constexpr (pre != Activation::none) x = x < V{} ? V{} : x;
  if constexpr (pre == Activation::relu6) x = x > broadcast<V>(F(6)) ? broadcast<V>(F(6)) : x;
  return x;
}

template <Activation A>
using ActivationConstant = std::integral_constant<Activation, A>;

template <class Function>
inline void with_activation(Activation activation, Function function) {
  if (activation == Activation::none) return function(ActivationConstant<Activation::none>{});
  if (activation == Activation::relu) return function(ActivationConstant<Activation::relu>{});
  function(ActivationConstant<Activation::relu6>{});
}

// Sum of the last `kept` lanes.
template <int Lanes, class V>
inline auto sum_last(V v, int64_t kept) {
  if constexpr (Lanes == 1) {
    return v;
  } else {
    auto sum = v[Lanes - 1];
    for (int i = Lanes - 2; i >= Lanes - kept; --i) sum += v[i];
    return sum;
  }
}

// Calls function(lanes, vectors, at, fresh) over [0, length): first `Block` vectors at a time, then single ones. The
// last vector may overlap its neighbour; only its last `fresh` lanes are new then. Short lengths get shorter vectors.
template <class F, int Block, int Lanes = kWidth<F>, class Function>
inline void for_lanes(int64_t length, Function function) {
  if constexpr (Lanes > 1) {
    if (length < Lanes) return for_lanes<F, 1, Lanes / 2>(length, function);
  }
  using L = std::integral_constant<int, Lanes>;
  int64_t at = 0;
  for (; at + Block * Lanes <= length; at += Block * Lanes)
    function(L{}, std::integral_constant<int, Block>{}, at, int64_t(Lanes));
  if constexpr (Block > 1)
    for (; at + Lanes <= length; at += Lanes) function(L{}, std::integral_constant<int, 1>{}, at, int64_t(Lanes));
  if (at < length) function(L{}, std::integral_constant<int, 1>{}, length - Lanes, length - at);
}

template <int Lanes, int Vectors, int Lines, bool Broadcast, Activation pre, class F>
inline void gather_block(const GatherTap<F>* taps, int live, int64_t source_at, int64_t source_stride,
                         int64_t weight_at, F* out, int64_t out_stride) {
  using V = Vector<F, Lanes>;
  V sum[Lines][Vectors];
  for (int p = 0; p < Lines; ++p)
    for (int v = 0; v < Vectors; ++v) sum[p][v] = V{};
  for (int t = 0; t < live; ++t) {
    const F* source = taps[t].source + source_at;
    V weight[Vectors];
    for (int v = 0; v < Vectors; ++v)
      if constexpr (Broadcast)
        weight[v] = broadcast<V>(*taps[t].weight);
      else
        weight[v] = load<V>(taps[t].weight + weight_at + v * Lanes);
    for (int p = 0; p < Lines; ++p)
      for (int v = 0; v < Vectors; ++v)
        sum[p][v] =
            multiply_add(weight[v], activated<pre, F>(load<V>(source + p * source_stride + v * Lanes)), sum[p][v]);
  }
  for (int p = 0; p < Lines; ++p)
    for (int v = 0; v < Vectors; ++v) store(out + p * out_stride + v * Lanes, sum[p][v]);
}

template <bool Broadcast, class F>
void gather(const GatherTap<F>* taps, int live, const GatherPanel<F>& panel, Activation activation) {
  with_activation(activation, [&](auto pre) {
    for_lanes<F, 2>(panel.length, [&](auto lanes, auto vectors, int64_t at, int64_t) {
      constexpr int L = decltype(lanes)::value, N = decltype(vectors)::value;
      constexpr Activation A = decltype(pre)::value;
      const int64_t from = panel.source_stride, to = panel.out_stride;
      int64_t p = 0;
      for (; p + 4 <= panel.count; p += 4)
        gather_block<L, N, 4, Broadcast, A>(taps, live, p * from + at, from, at, panel.out + p * to + at, to);
      for (; p < panel.count; ++p)
        gather_block<L, N, 1, Broadcast, A>(taps, live, p * from + at, from, at, panel.out + p * to + at, to);
    });
  });
}

// Calls function(taps, number) for the taps in groups that share the loads of the gradient.
template <class F, class Function>
inline void for_tap_groups(const CorrelateTap<F>* taps, int live, Function function) {
  int t = 0;
  for (; t + 3 <= live; t += 3) function(taps + t, std::integral_constant<int, 3>{});
  for (; t < live; ++t) function(taps + t, std::integral_constant<int, 1>{});
}

// The lanes of a panel whose lines are summed: sums[t][v] = sum over lines of grad · pre(source of tap t).
template <int Taps, int Lanes, int Vectors, Activation pre, class F>
inline void correlate_block(const CorrelateTap<F>* taps, const CorrelatePanel<F>& panel, int64_t at,
                            Vector<F, Lanes> (&sum)[Taps][Vectors]) {
  using V = Vector<F, Lanes>;
  for (int t = 0; t < Taps; ++t)
    for (int v = 0; v < Vectors; ++v) sum[t][v] = V{};
  for (int64_t p = 0; p < panel.count; ++p) {
    V grad[Vectors];
    for (int v = 0; v < Vectors; ++v) grad[v] = load<V>(panel.grad + p * panel.grad_stride + at + v * Lanes);
    for (int t = 0; t < Taps; ++t)
      for (int v = 0; v < Vectors; ++v) {
        const V source = load<V>(taps[t].source + p * panel.source_stride + at + v * Lanes);
        sum[t][v] = multiply_add(grad[v], activated<pre, F>(source), sum[t][v]);
      }
  }
}

template <class F>
void correlate_channels(const CorrelateTap<F>* taps, int live, const CorrelatePanel<F>& panel, Activation activation) {
  with_activation(activation, [&](auto pre) {
    for_lanes<F, 2>(panel.length, [&](auto lanes, auto vectors, int64_t at, int64_t fresh) {
      for_tap_groups(taps, live, [&](const CorrelateTap<F>* group, auto size) {
        constexpr int L = decltype(lanes)::value, N = decltype(vectors)::value, G = decltype(size)::value;
        using V = Vector<F, L>;
        V sum[G][N];
        correlate_block<G, L, N, decltype(pre)::value>(group, panel, at, sum);
        for (int t = 0; t < G; ++t) {
          F* out = group[t].sum + at;
          if (fresh == L) {
            for (int v = 0; v < N; ++v) store(out + v * L, load<V>(out + v * L) + sum[t][v]);
          } else {
            F last[L];
            store(last, sum[t][0]);
            for (int64_t i = L - fresh; i < L; ++i) out[i] += last[i];
          }
        }
      });
    });
  });
}

template <class F>
void correlate_columns(const CorrelateTap<F>* taps, int live, const CorrelatePanel<F>& panel, Activation activation) {
  with_activation(activation, [&](auto pre) {
    for_lanes<F, 1>(panel.length, [&](auto lanes, auto, int64_t at, int64_t fresh) {
      for_tap_groups(taps, live, [&](const CorrelateTap<F>* group, auto size) {
        constexpr int L = decltype(lanes)::value, G = decltype(size)::value;
        Vector<F, L> sum[G][1];
        correlate_block<G, L, 1, decltype(pre)::value>(group, panel, at, sum);
        for (int t = 0; t < G; ++t) *group[t].sum += sum_last<L>(sum[t][0], fresh);
      });
    });
  });
}

// Two passes: the second corrects the rounding of the mean, so that both results are exact to a few roundings.
template <class F>
void moments_channels(const F* lines, int64_t count, int64_t stride, int64_t length, F* mean, F* squares) {
  for_lanes<F, 1>(length, [&](auto lanes, auto, int64_t at, int64_t) {
    using V = Vector<F, decltype(lanes)::value>;
    const V weight = broadcast<V>(1 / static_cast<F>(count));
    V sum{}, rest{}, centred{};
    for (int64_t p = 0; p < count; ++p) sum += load<V>(lines + p * stride + at);
    const V average = sum * weight;
    for (int64_t p = 0; p < count; ++p) {
      const V difference = load<V>(lines + p * stride + at) - average;
      rest += difference;
      centred = multiply_add(difference, difference, centred);
    }
    store(mean + at, V(average + rest * weight));
    store(squares + at,
          activated<Activation::relu, F>(V(centred - rest * rest * weight)));  // rounding alone is negative
  });
}

template <class F>
void moments_columns(const F* numbers, int64_t count, F* mean, F* squares) {
  F sum = F(0), rest = F(0), centred = F(0);
  for_lanes<F, 1>(count, [&](auto lanes, auto, int64_t at, int64_t fresh) {
    constexpr int L = decltype(lanes)::value;
    sum += sum_last<L>(load<Vector<F, L>>(numbers + at), fresh);
  });
  const F average = sum / static_cast<F>(count);
  for_lanes<F, 1>(count, [&](auto lanes, auto, int64_t at, int64_t fresh) {
    constexpr int L = decltype(lanes)::value;
    using V = Vector<F, L>;
    const V difference = load<V>(numbers + at) - broadcast<V>(average);
    rest += sum_last<L>(difference, fresh);
    centred += sum_last<L>(V(difference * difference), fresh);
  });
  *mean = average + rest / static_cast<F>(count);
  *squares = activated<Activation::relu, F>(centred - rest * rest / static_cast<F>(count));
}

template <class F>
const GradientKernels<F>& gradient_table() {
  static const GradientKernels<F> kernels = {gather<false, F>,     gather<true, F>,     correlate_channels<F>,
                                             correlate_columns<F>, moments_channels<F>, moments_columns<F>};
  return kernels;
}
template const GradientKernels<float>& gradient_table<float>();
template const GradientKernels<double>& gradient_table<double>();

}  // namespace DENSECRF_ISA
}  // namespace densecrf
