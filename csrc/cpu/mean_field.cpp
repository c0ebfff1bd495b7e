// CPU implementations of mean_field and of its differentiable form: checks, allocation and dispatch; the work is in
// mean_field_image.cpp and mean_field_gradient.cpp.

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>
#include <string>
#include <tuple>

#include "batch_term.h"
#include "mean_field_image.h"

namespace densecrf {
namespace {

using at::Tensor;

template <class T>
void check_result(const MeanFieldError& error, const MeanFieldProblem<T>& problem, int64_t image) {
  if (!error.found) return;
  if (error.iteration == 0) {
    for (int64_t c = 0; c < problem.channels; ++c) {
      const T u = problem.unary[c * problem.channel_stride + error.point * problem.point_stride];
      TORCH_CHECK_VALUE(u > -std::numeric_limits<T>::infinity(), "unary must not be NaN or -infinity, got ", u,
                        " for label ", c, " at point ", error.point, " of image ", image);
    }
    TORCH_CHECK_VALUE(false, "unary must allow at least one label, got +infinity for all of them at point ",
                      error.point, " of image ", image);
  }
  TORCH_CHECK_VALUE(false, "the energies overflow ", sizeof(T) == 4 ? "float" : "double", " in iteration ",
                    error.iteration, " at point ", error.point, " of image ", image, ": compat or unary is too large");
}

// The result, and Q before each iteration where the backward pass will want it.
std::tuple<Tensor, Tensor> infer(const MeanFieldInputs& inputs, at::TensorList compats, at::ScalarType result_type,
                                 bool keeps_history) {
  check_finite(compats);
  const TileGrid& grid = inputs.grid;
  const Tensor& unary = inputs.unary;
  const int64_t batch = inputs.batch(), channels = inputs.channels();
  const bool labels = inputs.output == Output::labels;
  const Tensor out = labels ? at::empty({batch, grid.points()}, unary.options().dtype(at::kLong))
                            : empty_rows(unary.sizes(), unary.options());
  const Tensor history =
      empty_rows({batch, keeps_history ? inputs.iterations : 0, grid.points(), channels}, unary.options());
  if (out.numel() > 0)
    dispatch(inputs.type, [&](auto zero) {
      using T = decltype(zero);
      for_images(batch, [&](int64_t b) {
        MeanFieldProblem<T> problem{};
        problem.grid = grid;
        problem.channels = channels;
        problem.unary = unary.const_data_ptr<T>() + b * unary.stride(0);
        problem.channel_stride = unary.stride(1);
        problem.point_stride = unary.stride(2);
        problem.iterations = inputs.iterations;
        problem.damping = static_cast<T>(inputs.damping);
        problem.tolerance = static_cast<T>(inputs.tolerance);
        problem.output = inputs.output;
        if (labels)
          problem.labels = out.mutable_data_ptr<int64_t>() + b * out.stride(0);
        else
          problem.out = out.mutable_data_ptr<T>() + b * out.stride(0);
        if (keeps_history) problem.history = history.mutable_data_ptr<T>() + b * history.stride(0);
        check_result(mean_field_image(problem, image_terms<T>(inputs.terms, grid, b), aten_pool()), problem, b);
      });
    });
  return {labels ? out : out.to(result_type), history};
}

// Nothing is left to report: what the data can get wrong has been raised.
Tensor no_fault(const Tensor& unary) { return at::zeros({unary.size(0)}, unary.options().dtype(at::kLong)); }

// The CPU computes in full precision whatever is asked for.
std::tuple<Tensor, Tensor> mean_field(const Tensor& unary, at::TensorList lattices, at::TensorList norms,
                                      const std::vector<std::string>& normalizations, at::TensorList compats,
                                      at::IntArrayRef shape, int64_t iterations, double damping, double tol,
                                      c10::string_view output, c10::string_view precision) {
  const MeanFieldInputs inputs = parse_mean_field(unary, lattices, norms, normalizations, compats, shape, iterations,
                                                  damping, tol, output, precision);
  return {std::get<0>(infer(inputs, compats, unary.scalar_type(), false)), no_fault(unary)};
}

std::tuple<Tensor, Tensor, Tensor> mean_field_unrolled(const Tensor& unary, at::TensorList features,
                                                       at::TensorList lattices, at::TensorList norms,
                                                       const std::vector<std::string>& normalizations,
                                                       at::TensorList compats, at::IntArrayRef shape,
                                                       int64_t iterations, bool logarithm) {
  const MeanFieldInputs inputs = parse_mean_field_unrolled(unary, features, lattices, norms, normalizations, compats,
                                                           shape, iterations, logarithm);
  const auto [result, history] = infer(inputs, compats, unary.scalar_type(), true);
  return {result, history, no_fault(unary)};
}

// Gradients of features and norms, each in the shape of what it belongs to; empty lists where no features are given.
struct FilterGradients {
  explicit FilterGradients(const MeanFieldBackwardInputs& inputs) : values(inputs.features) {
    for (size_t k = 0; k < values.size(); ++k) {
      const BatchTerm& term = inputs.terms[k];
      const auto options = term.lattice.weights.options();
      grads.push_back(at::zeros(values[k].sizes(), options));
      norms.push_back(at::zeros({term.norm.defined() ? term.lattice.batch() : 0, inputs.grid.points()}, options));
      shared = shared || term.lattice.batch() == 1;
    }
  }

  template <class T>
  std::vector<FilterGradient<T>> of_image(int64_t image) const {
    std::vector<FilterGradient<T>> result;
    for (size_t k = 0; k < values.size(); ++k) {
      const int64_t b = values[k].size(0) == 1 ? 0 : image;
      T* norm = norms[k].size(0) ? norms[k].mutable_data_ptr<T>() + b * norms[k].stride(0) : nullptr;
      result.push_back({values[k].const_data_ptr<T>() + b * values[k].stride(0),
                        grads[k].mutable_data_ptr<T>() + b * grads[k].stride(0), norm});
    }
    return result;
  }

  std::vector<Tensor> values, grads, norms;
  bool shared = false;  // some images add up in the same place
};

std::tuple<Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>> mean_field_unrolled_backward(
    const Tensor& grad, const Tensor& result, const Tensor& history, at::TensorList features, at::TensorList lattices,
    at::TensorList norms, const std::vector<std::string>& normalizations, at::TensorList compats, at::IntArrayRef shape,
    bool logarithm, bool wants_products) {
  const MeanFieldBackwardInputs inputs =
      parse_mean_field_backward(grad, result, history, features, lattices, norms, normalizations, compats, shape);
  check_finite(compats);
  const int64_t batch = inputs.batch(), channels = inputs.channels();
  const auto options = history.options();
  const FilterGradients filters(inputs);
  const Tensor grad_unary = empty_rows(grad.sizes(), options);
  const Tensor products = at::zeros({batch, static_cast<int64_t>(inputs.terms.size()), channels}, options);
  if (grad.numel() > 0)
    dispatch(inputs.type, [&](auto zero) {
      using T = decltype(zero);
      const auto one = [&](int64_t b) {
        MeanFieldGradient<T> problem{};
        problem.grid = inputs.grid;
        problem.channels = channels;
        problem.grad = inputs.grad.const_data_ptr<T>() + b * inputs.grad.stride(0);
        problem.channel_stride = inputs.grad.stride(1);
        problem.point_stride = inputs.grad.stride(2);
        problem.result = inputs.result.const_data_ptr<T>() + b * inputs.result.stride(0);
        problem.logarithm = logarithm;
        problem.history = inputs.history.const_data_ptr<T>() + b * inputs.history.stride(0);
        problem.iterations = inputs.iterations();
        problem.grad_unary = grad_unary.mutable_data_ptr<T>() + b * grad_unary.stride(0);
        problem.filters = filters.of_image<T>(b);
        if (wants_products) problem.products = products.mutable_data_ptr<T>() + b * products.stride(0);
        mean_field_gradient(problem, image_terms<T>(inputs.terms, inputs.grid, b), aten_pool());
      };
      if (!filters.shared) return for_images(batch, one);
      for (int64_t b = 0; b < batch; ++b) one(b);
    });
  return {grad_unary.to(grad.scalar_type()), products.sum(0), filters.grads, filters.norms};
}

}  // namespace

TORCH_LIBRARY_IMPL(densecrf_cuda, CPU, m) {
  m.impl("mean_field", mean_field);
  m.impl("_mean_field_unrolled", mean_field_unrolled);
  m.impl("_mean_field_unrolled_backward", mean_field_unrolled_backward);
}

}  // namespace densecrf
