// The matrix kernels of the table in separable_kernels.h, and the table. Included by the isa_*.cpp after
// depthwise_forward_impl.h, under the same conditions.

namespace densecrf {
namespace DENSECRF_ISA {

// Rows of a block: with two vectors each, two for b and one for a, as many sums as there are registers.
#if DENSECRF_VECTOR_BYTES == 64
constexpr int kBlockRows = 14;
#elif DENSECRF_HAS_FMA
constexpr int kBlockRows = 6;
#else
constexpr int kBlockRows = 3;
#endif

// Rows of b that are fetched into the first cache in advance.
constexpr int kRowsAhead = 8;

// The sums are an array whose indices are constants from the start: a loop over them, unrolled late, would keep the
// array in memory.
template <class F, int Vectors, int... I>
inline __attribute__((always_inline)) void multiply_block(const ProductBlock<F>& block, F* sums,
                                                          std::integer_sequence<int, I...>) {
  constexpr int width = kWidth<F>;
  using V = Vector<F, width>;
  V sum[sizeof...(I)] = {};
  const F* b = block.b;
  const F* ahead = block.ahead;
  for (int64_t k = 0; k < block.depth; ++k, b += 2 * width, ahead += block.ahead_step) {
    __builtin_prefetch(b + kRowsAhead * 2 * width, 0, 3);
    __builtin_prefetch(ahead, 0, 2);
    ((sum[I] = multiply_add(broadcast<V>(block.a[I / Vectors * block.a_stride + k]), load<V>(b + I % Vectors * width),
                            sum[I])),
     ...);
  }
  (store(sums + (I / Vectors * 2 + I % Vectors) * width, sum[I]), ...);
}

template <class F, int Rows, int Vectors>
void multiply_rows(const ProductBlock<F>& block, F* sums) {
  multiply_block<F, Vectors>(block, sums, std::make_integer_sequence<int, Rows * Vectors>{});
}

template <class F, int... I>
inline void multiply_any(const ProductBlock<F>& block, F* sums, std::integer_sequence<int, I...>) {
  using Function = void (*)(const ProductBlock<F>&, F*);
  static constexpr Function one[] = {multiply_rows<F, I + 1, 1>...}, two[] = {multiply_rows<F, I + 1, 2>...};
  (block.vectors == 1 ? one : two)[block.rows - 1](block, sums);
}

template <int Half, class V, int... I>
inline V interleave(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int count = sizeof...(I);
  return __builtin_shufflevector(a, b, ((I % 2) * count + Half * (count / 2) + I / 2)...);
}

// Perfect shuffles: after log2(width) of them rows have become columns.
template <int Round, class V, int... I>
inline __attribute__((always_inline)) void transpose(V* x, std::integer_sequence<int, I...> lanes) {
  constexpr int count = sizeof...(I);
  if constexpr ((1 << Round) < count) {
    const V y[count] = {interleave<I % 2>(x[I / 2], x[I / 2 + count / 2], lanes)...};
    ((x[I] = y[I]), ...);
    transpose<Round + 1>(x, lanes);
  }
}

template <class F, int... I>
inline void pack_block(const F* matrix, int64_t depth, F* panel, std::integer_sequence<int, I...> lanes) {
  constexpr int width = sizeof...(I);
  using V = Vector<F, width>;
  V x[width] = {load<V>(matrix + I * depth)...};
  transpose<0>(x, lanes);
  (store(panel + I * 2 * width, x[I]), ...);
}

template <class F>
void pack(const F* matrix, int64_t depth, int64_t columns, F* panel) {
  constexpr int width = kWidth<F>;
  for (int half = 0; half < 2; ++half, matrix += width * depth, panel += width, columns -= width) {
    int64_t k = 0;
    if (columns >= width)
      for (; k + width <= depth; k += width)
        pack_block(matrix + k, depth, panel + k * 2 * width, std::make_integer_sequence<int, width>{});
    for (; k < depth; ++k)
      for (int n = 0; n < width; ++n) panel[k * 2 * width + n] = n < columns ? matrix[n * depth + k] : F(0);
  }
}

// Calls function(lanes, at) over [0, length) with ever shorter vectors, none of which overlap.
template <class F, int Lanes, class Function>
inline void for_parts(int64_t length, int64_t at, Function function) {
  for (; at + Lanes <= length; at += Lanes) function(std::integral_constant<int, Lanes>{}, at);
  if constexpr (Lanes > 1) for_parts<F, Lanes / 2>(length, at, function);
}

template <class F>
inline void finish_sums(const F* sums, int64_t sums_stride, const FinishBlock<F>& block) {
  const Bounds<F> bounds(block.affine.activation);
  const F* scale = block.affine.scale;
  const F* shift = block.affine.shift;
  for (int64_t r = 0; r < block.rows; ++r, sums += sums_stride) {
    const F* residual = block.residual ? block.residual + r * block.residual_stride : nullptr;
    F* out = block.out + r * block.out_stride;
    for_parts<F, kWidth<F>>(block.columns, 0, [&](auto lanes, int64_t at) {
      using V = Vector<F, decltype(lanes)::value>;
      V x = load<V>(sums + at);
      if (scale) x *= block.by_column ? load<V>(scale + at) : broadcast<V>(scale[r]);
      if (shift) x += block.by_column ? load<V>(shift + at) : broadcast<V>(shift[r]);
      if (residual) x += load<V>(residual + at);
      store(out + at, bounds(x));
    });
  }
}

template <class F>
void finish(const FinishBlock<F>& block) {
  finish_sums(block.out, block.out_stride, block);
}

template <class F>
void multiply(const ProductBlock<F>& product, const FinishBlock<F>& block) {
  constexpr int columns = 2 * kWidth<F>;
  for (int64_t r = 0; r < block.rows; ++r) {
    __builtin_prefetch(block.out + r * block.out_stride, 1, 3);
    __builtin_prefetch(block.out + r * block.out_stride + block.columns - 1, 1, 3);
  }
  alignas(64) F sums[kBlockRows * columns];
  multiply_any(product, sums, std::make_integer_sequence<int, kBlockRows>{});
  finish_sums(sums, columns, block);
}

template <class F>
const SeparableKernels<F>& separable_table() {
  static const SeparableKernels<F> kernels = {
      kBlockRows, kWidth<F>, depthwise_channels<F>, depthwise_pixels<F>, pack<F>, multiply<F>, finish<F>};
  return kernels;
}
template const SeparableKernels<float>& separable_table<float>();
template const SeparableKernels<double>& separable_table<double>();

}  // namespace DENSECRF_ISA
}  // namespace densecrf
