// CPU implementations of mean_field and of its differentiable form: checks, allocation and dispatch; the work is in
// mean_field_image.cpp and mean_field_gradient.cpp.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "batch_term.h"
#include "mean_field_image.h"

namespace densecrf {
namespace {

using at::Tensor;

Output parse_output(c10::string_view name) {
  if (name == "probabilities") return Output::probabilities;
  if (name == "log_probabilities") return Output::log_probabilities;
  TORCH_CHECK_VALUE(name == "labels", "output must be probabilities, log_probabilities or labels, got ", name);
  return Output::labels;
}

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

// The result and, where the backward pass will want it, Q before each iteration.
std::tuple<Tensor, Tensor> infer(const Tensor& unary, at::TensorList lattices, at::TensorList norms,
                                 const std::vector<std::string>& normalizations, at::TensorList compats,
                                 at::IntArrayRef shape, int64_t iterations, double damping, double tol,
                                 c10::string_view output_name, bool keeps_history) {
  const TileGrid grid = grid_of(shape);
  TORCH_CHECK_TYPE(at::isFloatingType(unary.scalar_type()), "unary must have a floating dtype, got ",
                   unary.scalar_type());
  TORCH_CHECK_VALUE(unary.dim() == 3 && unary.size(2) == grid.points(),
                    "unary must be [B, C, N] with N = ", grid.points(), ", got ", unary.sizes());
  TORCH_CHECK_VALUE(iterations >= 0 && iterations < INT32_MAX, "iterations must not be negative, got ", iterations);
  TORCH_CHECK_VALUE(damping >= 0 && damping < 1, "damping must be in [0, 1), got ", damping);
  TORCH_CHECK_VALUE(!std::isnan(tol), "tol must be a number, got ", tol);
  const Output output = parse_output(output_name);
  const int64_t batch = unary.size(0), channels = unary.size(1);
  const auto type = unary.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto terms = parse_terms(lattices, norms, normalizations, compats, grid, batch, channels, type);

  const Tensor input = unary.to(type);
  const Tensor out = output == Output::labels ? at::empty({batch, grid.points()}, unary.options().dtype(at::kLong))
                                              : empty_rows(unary.sizes(), input.options());
  const Tensor history = empty_rows({batch, keeps_history ? iterations : 0, grid.points(), channels}, input.options());
  if (out.numel() > 0) {
    TORCH_CHECK_VALUE(channels > 0, "unary must have at least one label, got ", unary.sizes());
    dispatch(type, [&](auto zero) {
      using T = decltype(zero);
      for_images(batch, [&](int64_t b) {
        MeanFieldProblem<T> problem{};
        problem.grid = grid;
        problem.channels = channels;
        problem.unary = input.const_data_ptr<T>() + b * input.stride(0);
        problem.channel_stride = input.stride(1);
        problem.point_stride = input.stride(2);
        problem.iterations = static_cast<int>(iterations);
        problem.damping = static_cast<T>(damping);
        problem.tolerance = static_cast<T>(tol);
        problem.output = output;
        if (output == Output::labels)
          problem.labels = out.mutable_data_ptr<int64_t>() + b * out.stride(0);
        else
          problem.out = out.mutable_data_ptr<T>() + b * out.stride(0);
        if (keeps_history) problem.history = history.mutable_data_ptr<T>() + b * history.stride(0);
        check_result(mean_field_image(problem, image_terms<T>(terms, grid, b), aten_pool()), problem, b);
      });
    });
  }
  return {output == Output::labels ? out : out.to(unary.scalar_type()), history};
}

Tensor mean_field(const Tensor& unary, at::TensorList lattices, at::TensorList norms,
                  const std::vector<std::string>& normalizations, at::TensorList compats, at::IntArrayRef shape,
                  int64_t iterations, double damping, double tol, c10::string_view output) {
  return std::get<0>(
      infer(unary, lattices, norms, normalizations, compats, shape, iterations, damping, tol, output, false));
}

std::tuple<Tensor, Tensor> mean_field_unrolled(const Tensor& unary, at::TensorList /*features*/,
                                               at::TensorList lattices, at::TensorList norms,
                                               const std::vector<std::string>& normalizations, at::TensorList compats,
                                               at::IntArrayRef shape, int64_t iterations, bool logarithm) {
  return infer(unary, lattices, norms, normalizations, compats, shape, iterations, 0.0, -1.0,
               logarithm ? "log_probabilities" : "probabilities", true);
}

// Gradients of features and norms, each in the shape of what it belongs to; empty lists where no features are given.
struct FilterGradients {
  FilterGradients(at::TensorList features, const std::vector<BatchTerm>& terms, const TileGrid& grid,
                  at::ScalarType type) {
    TORCH_CHECK_VALUE(features.empty() || features.size() == terms.size(),
                      "features must be given for every term or for none, got ", features.size(), " for ",
                      terms.size());
    for (size_t k = 0; k < features.size(); ++k) {
      const LatticeTensors& lattice = terms[k].lattice;
      const std::vector<int64_t> expected{lattice.batch(), lattice.dimension(), grid.points()};
      TORCH_CHECK_VALUE(features[k].sizes() == at::IntArrayRef(expected), "features must be ",
                        at::IntArrayRef(expected), ", got ", features[k].sizes());
      TORCH_CHECK_VALUE(terms[k].compat.dim() < 2, "gradients of features need a compat that is a number or [C], got ",
                        terms[k].compat.sizes());
      values.push_back(features[k].to(type).contiguous());
      grads.push_back(at::zeros(features[k].sizes(), lattice.weights.options()));
      norms.push_back(
          at::zeros({terms[k].norm.defined() ? lattice.batch() : 0, grid.points()}, lattice.weights.options()));
      shared = shared || lattice.batch() == 1;
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
  const TileGrid grid = grid_of(shape);
  const auto type = history.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, "history must be float or double, got ", type);
  TORCH_CHECK_VALUE(grad.dim() == 3 && grad.size(2) == grid.points() && result.sizes() == grad.sizes(),
                    "grad and result must be [B, C, N] with N = ", grid.points(), ", got ", grad.sizes(), " and ",
                    result.sizes());
  const int64_t batch = grad.size(0), channels = grad.size(1);
  TORCH_CHECK_VALUE(
      history.dim() == 4 && history.size(0) == batch && history.size(2) == grid.points() && history.size(3) == channels,
      "history must be [B, iterations, N, C], got ", history.sizes());
  const auto terms = parse_terms(lattices, norms, normalizations, compats, grid, batch, channels, type);
  const FilterGradients filters(features, terms, grid, type);
  const Tensor g = grad.to(type), r = result.to(type).contiguous(), h = history.contiguous();
  const Tensor grad_unary = empty_rows(grad.sizes(), history.options());
  const Tensor products = at::zeros({batch, static_cast<int64_t>(terms.size()), channels}, history.options());
  if (grad.numel() > 0)
    dispatch(type, [&](auto zero) {
      using T = decltype(zero);
      const auto one = [&](int64_t b) {
        MeanFieldGradient<T> problem{};
        problem.grid = grid;
        problem.channels = channels;
        problem.grad = g.const_data_ptr<T>() + b * g.stride(0);
        problem.channel_stride = g.stride(1);
        problem.point_stride = g.stride(2);
        problem.result = r.const_data_ptr<T>() + b * r.stride(0);
        problem.logarithm = logarithm;
        problem.history = h.const_data_ptr<T>() + b * h.stride(0);
        problem.iterations = static_cast<int>(h.size(1));
        problem.grad_unary = grad_unary.mutable_data_ptr<T>() + b * grad_unary.stride(0);
        problem.filters = filters.of_image<T>(b);
        if (wants_products) problem.products = products.mutable_data_ptr<T>() + b * products.stride(0);
        mean_field_gradient(problem, image_terms<T>(terms, grid, b), aten_pool());
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
