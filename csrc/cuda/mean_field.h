// Mean field of a batch of images on a GPU, torch-free. Two ways: fused, one kernel per iteration beside those of the
// lattice, for the number of labels of most data sets; and in steps, for any number of labels and terms.
#pragma once

#include "../mean_field_problem.h"
#include "../status.h"
#include "splat_slice.h"

namespace densecrf::cuda {

template <class T>
struct MeanFieldProblem {
  TileGrid grid;
  int64_t batch;
  int channels;
  BatchView<const T> unary;
  int iterations;
  T damping, tolerance;  // tolerance negative: run all iterations
  Output output;
  T* out;                      // [B, C, N], for probabilities
  int64_t* labels;             // [B, N], for labels
  T* history;                  // [B, iterations, N, C]: Q before each iteration; or null
  T* kept;                     // Q of the update before, where damping or tolerance need it: [B, C, N]; or null
  unsigned long long* change;  // [iterations + 1, B], zero: bits, as double, of the largest change; or null
  unsigned long long* faults;  // [B], zero: kNoFault less the least fault word

  // The output is written by the last update: any may be, where an image stops by itself.
  HOST_DEVICE bool writes(int iteration) const { return iteration == iterations || tolerance >= T(0); }
  HOST_DEVICE int64_t points() const { return grid.points(); }
};

template <class T>
struct Term {
  PointScale<T> splat_scale, slice_scale;
  Compatibility compatibility;
  const T* compat;  // on the device
  T gain;           // of the slice
};

// --- fused ---

constexpr int kFusedChannels = 32;

template <class S>
struct FusedTerms {
  RowBatch<float, S> rows;
  Term<float> of[kMaxTogether];

  bool any_matrix() const {
    for (int t = 0; t < rows.count; ++t)
      if (of[t].compatibility == Compatibility::matrix) return true;
    return false;
  }
};

template <class S>
void infer_fused(const MeanFieldProblem<float>& problem, FusedTerms<S> terms, cudaStream_t stream);

// The backward pass of inference without damping and tolerance, but for what makes the filters.
struct MeanFieldGradient {
  TileGrid grid;
  int64_t batch;
  int channels;
  BatchView<const float> grad, result;  // [B, N, C], any strides
  bool logarithm;                       // whether the result is log Q
  const float* history;                 // [B, iterations, N, C]
  int iterations;
  float* grad_unary;  // [B, C, N]
  float* products;    // [B, tiles, terms, C]: sums over the tile's points, of the last iteration so far; or null
  float* sums;        // [B, terms, C]: and over tiles, added up over iterations
};

// The terms are those of the inference, with their scales exchanged.
void backward_fused(const MeanFieldGradient& problem, FusedTerms<float> terms, cudaStream_t stream);

// --- in steps; rows of pixels are [B, N, C] ---

// x = -unary
template <class T>
void load_logits(const MeanFieldProblem<T>& problem, T* x, cudaStream_t stream);

// x -= A y, or the transpose of A, with A [C, C] row-major
template <class T>
void subtract_matrix(int64_t points, int channels, const T* matrix, bool transposed, const T* y, T* x,
                     cudaStream_t stream);

// x += factor · y
template <class T>
void add_scaled_rows(int64_t points, int channels, const ChannelFactor<T>& factor, const T* y, T* x,
                     cudaStream_t stream);

// One update from the logits x: Q goes to `q` (and to the output where that is due).
template <class T>
void update(const MeanFieldProblem<T>& problem, int iteration, const T* x, const BatchView<T>& q, cudaStream_t stream);

// --- both ---

// Status [B] of each image, 0 or a fault word, and NaN (-1 for labels) all over an image that has one. `lattice_words`
// are num_vertices of the lattices, [B] or [1] each by way of one number for all.
constexpr int kMaxLattices = 64;
struct LatticeWords {
  const int64_t* of[kMaxLattices];
  int count;
};
template <class T>
void finish(const MeanFieldProblem<T>& problem, const LatticeWords& lattices, int64_t* status, cudaStream_t stream);

// --- backward ---

// g = q ∘ (g - <q, g>), or g - q sum(g) with `log_q` given as logarithms; then total += g.
template <class T>
struct SoftmaxGradient {
  int64_t batch, points;
  int channels;
  BatchView<const T> grad;  // of Q; may be g itself
  BatchView<const T> q;
  bool logarithm;  // whether q holds logarithms, and grad is with respect to them
  T* g;            // [B, N, C]
  T* total;        // [B, N, C]
  bool first;      // total = g
};
template <class T>
void softmax_gradient(const SoftmaxGradient<T>& problem, cudaStream_t stream);

// sums[b, c] += sum over `count` rows of parts[b]
template <class T>
void add_parts(int64_t batch, int64_t count, int channels, const T* parts, BatchView<T> sums, cudaStream_t stream);

// sums[b, c] += sum over points of y ∘ q; `parts` has room for product_parts(points) · B · C numbers.
int64_t product_parts(int64_t points);
template <class T>
void add_products(int64_t batch, int64_t points, int channels, const T* y, const BatchView<const T>& q, T* parts,
                  BatchView<T> sums, cudaStream_t stream);

}  // namespace densecrf::cuda
