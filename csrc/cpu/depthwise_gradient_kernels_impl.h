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

// Calls function(lines, first) over [first, count): as many lines at a time as possible, then half as many, ...
template <int Lines, class Function>
inline void for_lines(int64_t first, int64_t count, Function function) {
  for (; first + Lines <= count; first += Lines) function(std::integral_constant<int, Lines>{}, first);
  if constexpr (Lines > 1) for_lines<Lines / 2>(first, count, function);
}

template <int Lanes, int Vectors, int Lines, bool Broadcast, Activation pre, class F>
inline void gather_block(const Panel& panel, const F* weights, const F* source, F* map) {
  using V = Vector<F, Lanes>;
  V sum[Lines][Vectors];
  for (int p = 0; p < Lines; ++p)
    for (int v = 0; v < Vectors; ++v) sum[p][v] = V{};
  for (int t = 0; t < panel.live; ++t) {
    const F* from = source + panel.source[t];
    V weight[Vectors];
    for (int v = 0; v < Vectors; ++v)
      if constexpr (Broadcast)
        weight[v] = broadcast<V>(weights[panel.weight[t]]);
      else
        weight[v] = load<V>(weights + panel.weight[t] + v * Lanes);
    for (int p = 0; p < Lines; ++p)
      for (int v = 0; v < Vectors; ++v)
        sum[p][v] =
            multiply_add(weight[v], activated<pre, F>(load<V>(from + p * panel.source_stride + v * Lanes)), sum[p][v]);
  }
  for (int p = 0; p < Lines; ++p)
    for (int v = 0; v < Vectors; ++v) store(map + p * panel.stride + v * Lanes, sum[p][v]);
}

// Lines are the outer loop, for memory is then read in its order.
template <class F>
void gather_channels(const Panel* panels, int64_t number, int64_t channels, const F* weight, const F* source, F* map,
                     Activation activation) {
  with_activation(activation, [&](auto pre) {
    for (const Panel* panel = panels; panel < panels + number; ++panel)
      for_lines<4>(0, panel->count, [&](auto lines, int64_t p) {
        for_lanes<F, 2>(channels, [&](auto lanes, auto vectors, int64_t at, int64_t) {
          constexpr int P = decltype(lines)::value, L = decltype(lanes)::value, N = decltype(vectors)::value;
          gather_block<L, N, P, false, decltype(pre)::value>(
              *panel, weight + at, source + p * panel->source_stride + at, map + panel->at + p * panel->stride + at);
        });
      });
  });
}

// Lines are the inner loop: rows of one image are short, and all of them stay in the first cache.
template <class F>
void gather_columns(const Panel* panels, int64_t number, const F* weight, const F* source, F* map,
                    Activation activation) {
  with_activation(activation, [&](auto pre) {
    for (const Panel* panel = panels; panel < panels + number; ++panel)
      for_lanes<F, 2>(panel->length, [&](auto lanes, auto vectors, int64_t at, int64_t) {
        for_lines<4>(0, panel->count, [&](auto lines, int64_t p) {
          constexpr int P = decltype(lines)::value, L = decltype(lanes)::value, N = decltype(vectors)::value;
          gather_block<L, N, P, true, decltype(pre)::value>(*panel, weight, source + p * panel->source_stride + at,
                                                            map + panel->at + p * panel->stride + at);
        });
      });
  });
}

// Calls add(t, sum over a few lines of map · pre(source of tap t)) for each tap; the map stays in registers.
template <int Lanes, int Lines, Activation pre, class F, class Add>
inline void correlate_block(const Panel& panel, const F* map, const F* source, Add add) {
  using V = Vector<F, Lanes>;
  V grad[Lines];
  for (int p = 0; p < Lines; ++p) grad[p] = load<V>(map + p * panel.stride);
  for (int t = 0; t < panel.live; ++t) {
    const F* from = source + panel.source[t];
    V sum{};
    for (int p = 0; p < Lines; ++p)
      sum = multiply_add(grad[p], activated<pre, F>(load<V>(from + p * panel.source_stride)), sum);
    add(t, sum);
  }
}

// Lines are the outer loop, for memory is then read in its order.
template <class F>
void correlate_channels(const Panel* panels, int64_t number, int64_t channels, const F* map, const F* source, F* sums,
                        Activation activation) {
  with_activation(activation, [&](auto pre) {
    for (const Panel* panel = panels; panel < panels + number; ++panel)
      for_lines<8>(0, panel->count, [&](auto lines, int64_t p) {
        for_lanes<F, 1>(channels, [&](auto lanes, auto, int64_t at, int64_t fresh) {
          constexpr int P = decltype(lines)::value, L = decltype(lanes)::value;
          correlate_block<L, P, decltype(pre)::value>(*panel, map + panel->at + p * panel->stride + at,
                                                      source + p * panel->source_stride + at,
                                                      [&](int t, Vector<F, L> sum) {
                                                        F* out = sums + panel->weight[t] + at;
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

// Zero in all lanes but the last `kept`; a choice and no product, for what is dropped may be NaN.
template <class F, int Lanes>
inline Vector<F, Lanes> keep_last(Vector<F, Lanes> v, int64_t kept) {
  if constexpr (Lanes == 1) {
    return v;
  } else {
    Vector<F, Lanes> lane;
    for (int i = 0; i < Lanes; ++i) lane[i] = static_cast<F>(Lanes - i);
    return lane > broadcast<Vector<F, Lanes>>(static_cast<F>(kept)) ? Vector<F, Lanes>{} : v;
  }
}

// Lanes of all panels are added up first, and to one another at the end. Vectors of L lanes have places L ... 2 L - 1
// to themselves: reading a long vector where short ones have just been written would wait for them.
template <class F>
void correlate_columns(const Panel* panels, int64_t number, const F* map, const F* source, F* sums, int taps,
                       Activation activation) {
  constexpr int places = 2 * kWidth<F>;
  F lane_sums[kMaxTaps * places];
  for (int i = 0; i < taps * places; ++i) lane_sums[i] = F(0);
  with_activation(activation, [&](auto pre) {
    for (const Panel* panel = panels; panel < panels + number; ++panel)
      for_lanes<F, 1>(panel->length, [&](auto lanes, auto, int64_t at, int64_t fresh) {
        constexpr int L = decltype(lanes)::value;
        using V = Vector<F, L>;
        for_lines<8>(0, panel->count, [&](auto lines, int64_t p) {
          correlate_block<L, decltype(lines)::value, decltype(pre)::value>(
              *panel, map + panel->at + p * panel->stride + at, source + p * panel->source_stride + at,
              [&](int t, V sum) {
                F* out = lane_sums + panel->weight[t] * places + L;
                store(out, V(load<V>(out) + (fresh < L ? keep_last<F, L>(sum, fresh) : sum)));
              });
        });
      });
  });
  using W = Vector<F, kWidth<F>>;
  for (int t = 0; t < taps; ++t) {
    const F* halves = lane_sums + t * places;
    sums[t] += sum_last<kWidth<F>>(W(load<W>(halves) + load<W>(halves + kWidth<F>)), kWidth<F>);
  }
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
