// The inner loops of the separable convolution's forward pass as a table of functions, compiled once per instruction
// set (isa_*.cpp). The matrix product is made of blocks of `rows` x two vectors that stay in registers.
#pragma once

#include "depthwise_gradient_kernels.h"

namespace densecrf {

// One tap of one vector of neighbouring output pixels: lane l reads source + l · step where its bit is set.
struct PixelTap {
  int tap;
  uint32_t lanes;
  int64_t source;  // from the first pixel of the channel
};

// Channels of a tile of pixels. Vector v has the taps first[v] … first[v + 1] - 1, and is written to
// out + channel · out_stride + v / 2 · panel_stride + v % 2 · lanes.
template <class T>
struct PixelTile {
  const PixelTap* taps;
  const int32_t* first;
  int64_t vectors, last_lanes;  // of the last vector, the lanes that exist in `out`
  int64_t channels;
  const T* source;
  int64_t source_stride;  // from channel to channel
  int step;               // 1 or 2
  const T* weight;        // [channels, kernel²]
  int64_t kernel_taps;
  Activation pre;
  Affine<T> affine;
  T* out;
  int64_t out_stride, panel_stride;
};

// sums[r, n] = sum over k of a[r · a_stride + k] · b[k, n], with rows of two vectors in b, of which `vectors` are used.
// Meanwhile depth · ahead_step numbers from `ahead` on are fetched: what later blocks will read for the first time.
template <class T>
struct ProductBlock {
  int rows, vectors;
  int64_t depth;
  const T* a;
  int64_t a_stride;
  const T* b;
  const T* ahead;
  int64_t ahead_step;
};

// out = activation(scale · sums + shift + residual), with a scale and a shift for each column or for each row.
template <class T>
struct FinishBlock {
  int64_t rows, columns;
  Affine<T> affine;
  bool by_column;
  const T* residual;  // or null
  int64_t residual_stride;
  T* out;
  int64_t out_stride;
};

template <class T>
struct SeparableKernels {
  int rows, lanes;

  // out = activation(scale · (sum over taps of weight · pre(source)) + shift), channels next to each other
  void (*depthwise_channels)(const GatherTap<T>* taps, int live, const GatherPanel<T>& panel, Activation pre,
                             const Affine<T>& affine);
  // the same with pixels next to each other
  void (*depthwise_pixels)(const PixelTile<T>& tile);
  // panel [depth, two vectors] = matrix [columns, depth] transposed, with zeros where there are fewer columns
  void (*pack)(const T* matrix, int64_t depth, int64_t columns, T* panel);
  void (*multiply)(const ProductBlock<T>& product, const FinishBlock<T>& finish);
  // the same with `out` for the sums
  void (*finish)(const FinishBlock<T>& block);
};

// The best table for this processor.
template <class T>
const SeparableKernels<T>& separable_kernels();

}  // namespace densecrf
