// CUDA implementations of mean_field and of its differentiable form: checks, allocation and dispatch; the work is in
// mean_field.cu, mean_field_steps.cu and what they are made of.

#include <algorithm>

#include "../mean_field_inputs.h"
#include "mean_field_batch.h"
#include "register.h"

namespace densecrf::cuda {
namespace {

using at::Tensor;

struct Inference {
  Tensor result, history, status;
};

// Halves end at 65504: only the symmetric norm on both sides keeps the mass of every vertex far below. Of the two ways
// the fused one alone has them, because the other is for labels so many, or precision so high, that rows are no matter.
bool fit_halves(const std::vector<BatchTerm>& terms) {
  return std::all_of(terms.begin(), terms.end(), [](const BatchTerm& term) {
    return term.normalization.scales_splat && term.normalization.scales_slice;
  });
}

template <class T>
void run(const MeanFieldInputs& inputs, MeanFieldProblem<T> problem, const Tensor& like, const Tensor& status,
         cudaStream_t stream) {
  const auto longs = like.options().dtype(at::kLong);
  const Tensor faults = at::zeros({problem.batch}, longs);
  problem.faults = reinterpret_cast<unsigned long long*>(faults.mutable_data_ptr<int64_t>());
  Tensor kept, change;
  if (inputs.damping > 0 || inputs.tolerance >= 0) {
    kept = at::empty({problem.batch, problem.channels, problem.points()}, like.options());
    problem.kept = kept.mutable_data_ptr<T>();
  }
  if (inputs.tolerance >= 0) {
    change = at::zeros({inputs.iterations + 1, problem.batch}, longs);
    problem.change = reinterpret_cast<unsigned long long*>(change.mutable_data_ptr<int64_t>());
  }
  const bool together = fuses<T>(inputs.terms, problem.channels);
  if constexpr (sizeof(T) == 4) {
    if (together && inputs.precision == Precision::fp16 && fit_halves(inputs.terms))
      infer_fused(problem,
                  TermsTogether<__half>(inputs.terms, inputs.grid, problem.batch, problem.channels, like).terms,
                  stream);
    else if (together)
      infer_fused(problem, TermsTogether<float>(inputs.terms, inputs.grid, problem.batch, problem.channels, like).terms,
                  stream);
  }
  if (!together) infer_in_steps<T>(inputs, problem, like, stream);
  LatticeWords words{};
  for (const BatchTerm& term : inputs.terms) {
    TORCH_CHECK_VALUE(words.count < kMaxLattices, "at most ", kMaxLattices, " pairwise terms, got ",
                      inputs.terms.size());
    words.of[words.count++] = term.lattice.num_vertices.const_data_ptr<int64_t>();
  }
  finish(problem, words, status.mutable_data_ptr<int64_t>(), stream);
}

Inference infer(const MeanFieldInputs& inputs, at::ScalarType result_type, bool keeps_history,
                const DeviceScope& scope) {
  const auto options = inputs.unary.options();
  const int64_t batch = inputs.batch(), channels = inputs.channels(), points = inputs.grid.points();
  const bool labels = inputs.output == Output::labels;
  const Tensor out =
      labels ? at::empty({batch, points}, options.dtype(at::kLong)) : at::empty(inputs.unary.sizes(), options);
  const Tensor history = at::empty({batch, keeps_history ? inputs.iterations : 0, points, channels}, options);
  const Tensor status = at::zeros({batch}, options.dtype(at::kLong));
  if (out.numel() > 0)
    dispatch(inputs.type, [&](auto zero) {
      using T = decltype(zero);
      MeanFieldProblem<T> problem{};
      problem.grid = inputs.grid;
      problem.batch = batch;
      problem.channels = static_cast<int>(channels);
      problem.unary = view_channels<T>(inputs.unary);
      problem.iterations = inputs.iterations;
      problem.damping = static_cast<T>(inputs.damping);
      problem.tolerance = static_cast<T>(inputs.tolerance);
      problem.output = inputs.output;
      if (labels)
        problem.labels = out.mutable_data_ptr<int64_t>();
      else
        problem.out = out.mutable_data_ptr<T>();
      if (keeps_history) problem.history = history.mutable_data_ptr<T>();
      run<T>(inputs, problem, history, status, scope.stream());
    });
  return {labels ? out : out.to(result_type), history, status};
}

std::tuple<Tensor, Tensor> mean_field(const Tensor& unary, at::TensorList lattices, at::TensorList norms,
                                      const std::vector<std::string>& normalizations, at::TensorList compats,
                                      at::IntArrayRef shape, int64_t iterations, double damping, double tol,
                                      c10::string_view output, c10::string_view precision) {
  const DeviceScope scope(unary);
  const Inference inference = infer(parse_mean_field(unary, lattices, norms, normalizations, compats, shape, iterations,
                                                     damping, tol, output, precision),
                                    unary.scalar_type(), false, scope);
  return {inference.result, inference.status};
}

std::tuple<Tensor, Tensor, Tensor> mean_field_unrolled(const Tensor& unary, at::TensorList features,
                                                       at::TensorList lattices, at::TensorList norms,
                                                       const std::vector<std::string>& normalizations,
                                                       at::TensorList compats, at::IntArrayRef shape,
                                                       int64_t iterations, bool logarithm) {
  const DeviceScope scope(unary);
  const Inference inference = infer(parse_mean_field_unrolled(unary, features, lattices, norms, normalizations, compats,
                                                              shape, iterations, logarithm),
                                    unary.scalar_type(), true, scope);
  return {inference.result, inference.history, inference.status};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>> mean_field_unrolled_backward(
    const Tensor& grad, const Tensor& result, const Tensor& history, at::TensorList features, at::TensorList lattices,
    at::TensorList norms, const std::vector<std::string>& normalizations, at::TensorList compats, at::IntArrayRef shape,
    bool logarithm, bool wants_products) {
  const DeviceScope scope(history);
  const MeanFieldBackwardInputs inputs =
      parse_mean_field_backward(grad, result, history, features, lattices, norms, normalizations, compats, shape);
  std::vector<Tensor> grad_features, grad_norms;
  for (size_t k = 0; k < inputs.features.size(); ++k) {
    const LatticeTensors& lattice = inputs.terms[k].lattice;
    grad_features.push_back(at::zeros(inputs.features[k].sizes(), lattice.weights.options()));
    grad_norms.push_back(at::zeros({inputs.terms[k].norm.defined() ? lattice.batch() : 0, inputs.grid.points()},
                                   lattice.weights.options()));
  }
  const auto terms = static_cast<int64_t>(inputs.terms.size());
  const Tensor products = at::zeros({inputs.batch(), terms, inputs.channels()}, history.options());
  Tensor grad_unary = at::zeros(grad.sizes(), history.options());
  if (grad.numel() > 0)
    dispatch(inputs.type, [&](auto zero) {
      using T = decltype(zero);
      // What makes the filters gets its gradients in steps alone.
      grad_unary = fuses<T>(inputs.terms, inputs.channels()) && grad_features.empty()
                       ? backward_together(inputs, logarithm, wants_products, products, scope.stream())
                       : backward_in_steps<T>(inputs, logarithm, wants_products, products, grad_features, grad_norms,
                                              scope.stream());
    });
  return {grad_unary.to(grad.scalar_type()), products.sum(0), grad_features, grad_norms};
}

}  // namespace

}  // namespace densecrf::cuda

namespace densecrf {

void register_mean_field(torch::Library& library) {
  library.impl("mean_field", cuda::mean_field);
  library.impl("_mean_field_unrolled", cuda::mean_field_unrolled);
  library.impl("_mean_field_unrolled_backward", cuda::mean_field_unrolled_backward);
}

}  // namespace densecrf
