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

// Calls function(lines, first) over [first, count): as many lines at a time as possible, then half as many, ...
template <int Lines, class Function>
inline void for_lines(int64_t first, int64_t count, Function function) {
  for (; first + Lines <= count; first += Lines) function(std::integral_constant<int, Lines>{}, first);
  if constexpr (Lines > 1) for_lines<Lines / 2>(first, count, function);
}

// Lines are the outer loop, for memory is then read in its order.
template <class F>
void gather_channels(const GatherTap<F>* taps, int live, const GatherPanel<F>& panel, Activation activation) {
  with_activation(activation, [&](auto pre) {
    const int64_t from = panel.source_stride, to = panel.out_stride;
    for_lines<4>(0, panel.count, [&](auto lines, int64_t p) {
      for_lanes<F, 2>(panel.length, [&](auto lanes, auto vectors, int64_t at, int64_t) {
        constexpr int P = decltype(lines)::value, L = decltype(lanes)::value, N = decltype(vectors)::value;
        gather_block<L, N, P, false, decltype(pre)::value>(taps, live, p * from + at, from, at, panel.out + p * to + at,
                                                           to);
      });
    });
  });
}

// Lines are the inner loop: rows of one image are short, and all of them stay in the first cache.
template <class F>
void gather_columns(const GatherTap<F>* taps, int live, const GatherPanel<F>& panel, Activation activation) {
  with_activation(activation, [&](auto pre) {
    const int64_t from = panel.source_stride, to = panel.out_stride;
    for_lanes<F, 2>(panel.length, [&](auto lanes, auto vectors, int64_t at, int64_t) {
      for_lines<4>(0, panel.count, [&](auto lines, int64_t p) {
        constexpr int P = decltype(lines)::value, L = decltype(lanes)::value, N = decltype(vectors)::value;
        gather_block<L, N, P, true, decltype(pre)::value>(taps, live, p * from + at, from, at, panel.out + p * to + at,
                                                          to);
      });
    });
  });
}

// Calls add(t, sum over a few lines of grad · pre(source of tap t)) for each tap; the gradient stays in registers.
template <int Lanes, int Lines, Activation pre, class F, class Add>
inline void correlate_block(const CorrelateTap<F>* taps, int live, const CorrelatePanel<F>& panel, int64_t first,
                            int64_t at, Add add) {
  using V = Vector<F, Lanes>;
  V grad[Lines];
  for (int p = 0; p < Lines; ++p) grad[p] = load<V>(panel.grad + (first + p) * panel.grad_stride + at);
  for (int t = 0; t < live; ++t) {
    const F* source = taps[t].source + first * panel.source_stride + at;
    V sum{};
    for (int p = 0; p < Lines; ++p)
      sum = multiply_add(grad[p], activated<pre, F>(load<V>(source + p * panel.source_stride)), sum);
    add(t, sum);
  }
}

// Lines are the outer loop, for memory is then read in its order.
template <class F>
void correlate_channels(const CorrelateTap<F>* taps, int live, const CorrelatePanel<F>& panel, Activation activation) {
  with_activation(activation, [&](auto pre) {
    for_lines<8>(0, panel.count, [&](auto lines, int64_t p) {
      for_lanes<F, 1>(panel.length, [&](auto lanes, auto, int64_t at, int64_t fresh) {
        constexpr int P = decltype(lines)::value, L = decltype(lanes)::value;
        correlate_block<L, P, decltype(pre)::value>(taps, live, panel, p, at, [&](int t, Vector<F, L> sum) {
          F* out = taps[t].sum + at;
          if (fresh == L) {
            store(out, load<Vector<F, L>>(out) + sum);
          } else {
            F last[L];
            store(last, sum);
            for (int64_t i = L - fresh; i < L; ++i) out[i] += last[i];
          }
        });
      });
    });
  });
}

// Lines are the inner loop, so that lanes are summed once.
template <class F>
void correlate_columns(const CorrelateTap<F>* taps, int live, const CorrelatePanel<F>& panel, Activation activation) {
  with_activation(activation, [&](auto pre) {
    for_lanes<F, 1>(panel.length, [&](auto lanes, auto, int64_t at, int64_t fresh) {
      constexpr int L = decltype(lanes)::value;
      using V = Vector<F, L>;
      V sums[kMaxTaps];
      for (int t = 0; t < live; ++t) sums[t] = V{};
      for_lines<8>(0, panel.count, [&](auto lines, int64_t p) {
        correlate_block<L, decltype(lines)::value, decltype(pre)::value>(taps, live, panel, p, at,
                                                                         [&](int t, V sum) { sums[t] += sum; });
      });
      for (int t = 0; t < live; ++t) *taps[t].sum += sum_last<L>(sums[t], fresh);
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

// Sum of function(v) over the vectors v of neighbouring numbers.
template <class F, class Function>
inline F sum_columns(const F* numbers, int64_t count, Function function) {
  Vector<F, kWidth<F>> sum{};
  F rest = F(0);
  for_lanes<F, 1>(count, [&](auto lanes, auto, int64_t at, int64_t fresh) {
    constexpr int L = decltype(lanes)::value;
    const Vector<F, L> v = function(load<Vector<F, L>>(numbers + at));
    if constexpr (L == kWidth<F>)
      if (fresh == L) {
        sum += v;
        return;
      }
    rest += sum_last<L>(v, fresh);
  });
  return sum_last<kWidth<F>>(sum, kWidth<F>) + rest;
}

template <class F>
void moments_columns(const F* numbers, int64_t count, F* mean, F* squares) {
  const F n = static_cast<F>(count);
  const F average = sum_columns(numbers, count, [](auto v) { return v; }) / n;
  const auto centred = [average](auto v) { return v - broadcast<decltype(v)>(average); };
  const F rest = sum_columns(numbers, count, centred);
  const F sum = sum_columns(numbers, count, [centred](auto v) {
    const auto difference = centred(v);
    return difference * difference;
  });
  *mean = average + rest / n;
  *squares = activated<Activation::relu, F>(sum - rest * rest / n);
}

template <class F>
const GradientKernels<F>& gradient_table() {
  static const GradientKernels<F> kernels = {gather_channels<F>,   gather_columns<F>,   correlate_channels<F>,
                                             correlate_columns<F>, moments_channels<F>, moments_columns<F>};
  return kernels;
}
template const GradientKernels<float>& gradient_table<float>();
template const GradientKernels<double>& gradient_table<double>();

}  // namespace DENSECRF_ISA
}  // namespace densecrf
