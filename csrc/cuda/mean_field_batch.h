// The order of the steps of mean field and of its backward pass, with the memory they need from torch.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <cuda_fp16.h>

#include <vector>

#include "../mean_field_inputs.h"
#include "mean_field.h"
#include "views.h"

namespace densecrf::cuda {

template <class T>
Term<T> view_term(const BatchTerm& term) {
  const PointScale<T> norm = view_scale<T>(term.norm), none{nullptr, 0};
  return {term.normalization.scales_splat ? norm : none, term.normalization.scales_slice ? norm : none,
          term.compatibility(), term.compat.const_data_ptr<T>(),
          slice_gain<T>(static_cast<int>(term.lattice.dimension()))};
}

// Its transpose: the scales change sides.
template <class T>
Term<T> transposed(Term<T> term) {
  std::swap(term.splat_scale, term.slice_scale);
  return term;
}

// What the energy of y is subtracted with, channel by channel, where it is no matrix.
template <class T>
ChannelFactor<T> energy_factor(const Term<T>& term) {
  if (term.compatibility == Compatibility::potts) return {term.compat, 0, T(1)};
  return {term.compat, 1, T(-1)};
}

// Whether the fused way takes a problem.
template <class T>
bool fuses(const std::vector<BatchTerm>& terms, int64_t channels) {
  return sizeof(T) == 4 && channels <= kFusedChannels && terms.size() <= kMaxTogether;
}

// The terms of a problem with rows for each, as the fused way takes them.
template <class S>
struct TermsTogether {
  TermsTogether(const std::vector<BatchTerm>& batch_terms, const TileGrid& grid, int64_t batch, int64_t channels,
                const at::Tensor& like) {
    for (const BatchTerm& term : batch_terms) {
      rows.emplace_back(view_lattice<float>(term.lattice, grid), batch, ceil_div(channels, kVector) * kVector, like);
      terms.of[terms.rows.count] = view_term<float>(term);
      terms.rows.of[terms.rows.count++] = rows.back().buffers;
    }
  }

  std::vector<Rows<float, S>> rows;  // own the memory
  FusedTerms<S> terms{};
};

// The terms of a problem with rows for each, and what passing values through them takes.
template <class T>
struct SteppedTerms {
  SteppedTerms(const std::vector<BatchTerm>& batch_terms, const TileGrid& grid, int64_t batch, int64_t channels,
               const at::Tensor& like)
      : batch(batch), channels(channels), y(at::empty({batch, grid.points(), channels}, like.options())) {
    rows.reserve(batch_terms.size());
    for (const BatchTerm& term : batch_terms) {
      terms.push_back(view_term<T>(term));
      rows.push_back(Rows<T, T>::for_passes(view_lattice<T>(term.lattice, grid), batch, channels, like));
    }
  }

  // [B, N, C], contiguous
  BatchView<T> view(const at::Tensor& x) const { return {x.mutable_data_ptr<T>(), x.stride(0), x.stride(1), 1}; }
  static BatchView<const T> read(const BatchView<T>& x) {
    return {x.data, x.image_stride, x.point_stride, x.channel_stride};
  }

  // out (+)= factor · filter(values); after each pass through the lattice `inspect(rows, first, count)` may look at it.
  template <class Inspect>
  void filter(size_t k, const Term<T>& term, const BatchView<const T>& values, const ChannelFactor<T>& factor,
              bool reverse, bool accumulate, const BatchView<T>& out, cudaStream_t stream, Inspect inspect) {
    for (int64_t first = 0; first < channels; first += kRowChannels<T>) {
      const int64_t count = rows[k].pass(values, first, channels, term.splat_scale, reverse, stream);
      if (out.data)
        slice(rows[k].buffers, static_cast<int>(count), term.slice_scale, factor.from(first * factor.step), accumulate,
              out.from(first), stream);
      inspect(rows[k].buffers, first, count);
    }
  }

  // x -= compatibility(filter(q))
  void subtract_energy(size_t k, const BatchView<const T>& q, const at::Tensor& x, cudaStream_t stream) {
    const auto nothing = [](const auto&, int64_t, int64_t) {};
    if (terms[k].compatibility != Compatibility::matrix)
      return filter(k, terms[k], q, energy_factor(terms[k]), false, true, view(x), stream, nothing);
    filter(k, terms[k], q, {nullptr, 0, T(1)}, false, false, view(y), stream, nothing);
    subtract_matrix(x.size(0) * x.size(1), static_cast<int>(channels), terms[k].compat, false,
                    y.template const_data_ptr<T>(), x.mutable_data_ptr<T>(), stream);
  }

  int64_t batch, channels;
  at::Tensor y;  // [B, N, C]
  std::vector<Term<T>> terms;
  std::vector<Rows<T, T>> rows;
};

template <class T>
void infer_in_steps(const MeanFieldInputs& inputs, const MeanFieldProblem<T>& problem, const at::Tensor& like,
                    cudaStream_t stream) {
  SteppedTerms<T> terms(inputs.terms, inputs.grid, problem.batch, problem.channels, like);
  const at::Tensor x = at::empty_like(terms.y), own = at::empty_like(terms.y);
  const int64_t image = problem.points() * problem.channels;
  for (int iteration = 0; iteration <= problem.iterations; ++iteration) {
    load_logits(problem, x.mutable_data_ptr<T>(), stream);
    // The backward pass wants Q of every iteration but the last.
    const auto q_of = [&](int i) {
      if (problem.history == nullptr || i == problem.iterations) return terms.view(own);
      return BatchView<T>{problem.history + i * image, problem.iterations * image, problem.channels, 1};
    };
    for (size_t k = 0; k < terms.terms.size() && iteration > 0; ++k)
      terms.subtract_energy(k, terms.read(q_of(iteration - 1)), x, stream);
    update(problem, iteration, x.const_data_ptr<T>(), q_of(iteration), stream);
  }
}

// Both ways back give the gradient of the unary, [B, C, N], and add to the other tensors.
template <class T>
at::Tensor backward_in_steps(const MeanFieldBackwardInputs& inputs, bool logarithm, bool wants_products,
                             const at::Tensor& products, const std::vector<at::Tensor>& grad_features,
                             const std::vector<at::Tensor>& grad_norms, cudaStream_t stream);

at::Tensor backward_together(const MeanFieldBackwardInputs& inputs, bool logarithm, bool wants_products,
                             const at::Tensor& products, cudaStream_t stream);

}  // namespace densecrf::cuda
