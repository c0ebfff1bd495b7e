// Mean field inference on one image on the CPU, torch-free.
#pragma once

#include <vector>

#include "../mean_field_problem.h"
#include "kernels.h"
#include "parallel.h"

namespace densecrf {

// One pairwise term. Scales are in the caller's order; null where the normalization has none on that side.
template <class T>
struct PairwiseTerm {
  LatticeView<T> lattice;
  const T* splat_scale;
  const T* slice_scale;
  Compatibility compatibility;
  T weight;             // potts: energy -weight · y
  const T* parameters;  // diagonal [C]: energy v · y; matrix [C, C] row-major: energy A y
};

template <class T>
struct MeanFieldProblem {
  TileGrid grid;
  int64_t channels;
  const T* unary;  // [C, N] with these strides
  int64_t channel_stride, point_stride;
  int iterations;
  T damping;
  T tolerance;  // negative: run all iterations
  Output output;
  T* out;           // [C, N], for probabilities
  int64_t* labels;  // [N], for labels
  T* history;       // [iterations][N, C]: Q before each iteration, for the backward pass; or null
};

// A pixel whose distribution is not a number: at iteration 0 the unary is to blame, later an overflow.
struct MeanFieldError {
  bool found = false;
  int64_t point = 0;
  int iteration = 0;
};

// Gradients of what makes the filter of one term; each adds up.
template <class T>
struct FilterGradient {
  const T* features;  // [d, N]
  T* grad_features;   // [d, N]
  T* grad_norm;       // [N], or null
};

// The backward pass of inference without damping or tolerance. From the products follow the gradients of Potts weights
// and diagonals: the filter is linear, so <gradient, K Q> = <K transposed · gradient, Q>.
template <class T>
struct MeanFieldGradient {
  TileGrid grid;
  int64_t channels;
  const T* grad;  // of the result, [C, N] with these strides
  int64_t channel_stride, point_stride;
  const T* result;   // [C, N], contiguous
  bool logarithm;    // whether the result is log Q
  const T* history;  // [iterations][N, C]
  int iterations;
  T* grad_unary;  // [C, N], contiguous
  // By term, where the gradients of features and norms are wanted, else empty; not for a matrix of compatibilities.
  std::vector<FilterGradient<T>> filters;
  T* products;  // [terms, C]: sums over points and iterations of (K transposed · gradient of the logits) ∘ Q; or null
};

template <class T>
void mean_field_gradient(const MeanFieldGradient<T>& problem, const std::vector<PairwiseTerm<T>>& terms,
                         const Pool& pool);

template <class T>
MeanFieldError mean_field_image(const MeanFieldProblem<T>& problem, const std::vector<PairwiseTerm<T>>& terms,
                                const Pool& pool);

}  // namespace densecrf
