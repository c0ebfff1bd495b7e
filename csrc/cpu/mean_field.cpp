// CPU implementation of mean_field: checks, allocation and dispatch; the work is in mean_field_image.cpp.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <string>

#include "glue.h"
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

// One pairwise term of the whole batch, its tensors in the dtype of the computation.
struct BatchTerm {
  LatticeTensors lattice;
  Tensor norm;  // undefined where there is no normalization
  bool scales_splat, scales_slice;
  Tensor compat;
};

void check_compat(const Tensor& compat, int64_t channels) {
  const bool fits = compat.dim() == 0 || (compat.dim() == 1 && compat.size(0) == channels) ||
                    (compat.dim() == 2 && compat.size(0) == channels && compat.size(1) == channels);
  TORCH_CHECK_VALUE(fits, "compat must be a number, [C] or [C, C] with C = ", channels, ", got ", compat.sizes());
  const Tensor values = compat.to(at::kDouble).contiguous();
  for (int64_t i = 0; i < values.numel(); ++i)
    TORCH_CHECK_VALUE(std::isfinite(values.const_data_ptr<double>()[i]), "compat must be finite, got ",
                      values.const_data_ptr<double>()[i]);
}

BatchTerm parse_term(at::TensorList tensors, const Tensor& norm, c10::string_view normalization, const Tensor& compat,
                     const TileGrid& grid, const Tensor& unary, at::ScalarType type) {
  BatchTerm term{LatticeTensors::unpack(tensors, grid), Tensor(), false, false, Tensor()};
  TORCH_CHECK_TYPE(term.lattice.weights.scalar_type() == type, "a unary of dtype ", unary.scalar_type(),
                   " needs lattices of dtype ", type, ", got ", term.lattice.weights.scalar_type());
  TORCH_CHECK_VALUE(term.lattice.batch() == 1 || term.lattice.batch() == unary.size(0),
                    "the batch of a lattice must be 1 or that of the unary, ", unary.size(0), ", got ",
                    term.lattice.batch());
  term.scales_splat = normalization == "before" || normalization == "symmetric";
  term.scales_slice = normalization == "after" || normalization == "symmetric";
  TORCH_CHECK_VALUE(term.scales_splat || term.scales_slice || normalization == "none",
                    "normalization must be none, before, after or symmetric, got ", normalization);
  if (normalization != "none") {
    TORCH_CHECK_VALUE(norm.dim() == 2 && norm.size(1) == grid.points() && norm.size(0) == term.lattice.batch(),
                      "norm must be [", term.lattice.batch(), ", ", grid.points(), "], got ", norm.sizes());
    term.norm = norm.to(type).contiguous();
  }
  check_compat(compat, unary.size(1));
  term.compat = compat.to(type).contiguous();
  return term;
}

template <class T>
PairwiseTerm<T> image_term(const BatchTerm& term, const TileGrid& grid, int64_t image) {
  const T* norm = nullptr;
  if (term.norm.defined())
    norm = term.norm.const_data_ptr<T>() + (term.norm.size(0) == 1 ? 0 : image) * grid.points();
  const T* compat = term.compat.const_data_ptr<T>();
  const auto form = static_cast<Compatibility>(term.compat.dim());
  return {view_image<T>(term.lattice, grid, image),
          term.scales_splat ? norm : nullptr,
          term.scales_slice ? norm : nullptr,
          form,
          form == Compatibility::potts ? *compat : T(0),
          compat};
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
                    error.iteration, " at point ", error.point, " of image ", image,
                    ": compat or unary is too large");
}

template <class T>
void infer(const Tensor& unary, const std::vector<BatchTerm>& terms, const TileGrid& grid, int64_t iterations,
           double damping, double tol, Output output, const Tensor& out) {
  for_images(unary.size(0), [&](int64_t b) {
    std::vector<PairwiseTerm<T>> image_terms;
    for (const BatchTerm& term : terms) image_terms.push_back(image_term<T>(term, grid, b));
    MeanFieldProblem<T> problem{grid,
                                unary.size(1),
                                unary.const_data_ptr<T>() + b * unary.stride(0),
                                unary.stride(1),
                                unary.stride(2),
                                static_cast<int>(iterations),
                                static_cast<T>(damping),
                                static_cast<T>(tol),
                                output,
                                nullptr,
                                nullptr};
    if (output == Output::labels)
      problem.labels = out.mutable_data_ptr<int64_t>() + b * out.stride(0);
    else
      problem.out = out.mutable_data_ptr<T>() + b * out.stride(0);
    check_result(mean_field_image(problem, image_terms, aten_pool()), problem, b);
  });
}

Tensor mean_field(const Tensor& unary, at::TensorList lattices, at::TensorList norms,
                  const std::vector<std::string>& normalizations, at::TensorList compats, at::IntArrayRef shape,
                  int64_t iterations, double damping, double tol, c10::string_view output_name) {
  const TileGrid grid = grid_of(shape);
  TORCH_CHECK_TYPE(at::isFloatingType(unary.scalar_type()), "unary must have a floating dtype, got ",
                   unary.scalar_type());
  TORCH_CHECK_VALUE(unary.dim() == 3 && unary.size(2) == grid.points(), "unary must be [B, C, N] with N = ",
                    grid.points(), ", got ", unary.sizes());
  TORCH_CHECK_VALUE(iterations >= 0 && iterations < INT32_MAX, "iterations must not be negative, got ", iterations);
  TORCH_CHECK_VALUE(damping >= 0 && damping < 1, "damping must be in [0, 1), got ", damping);
  TORCH_CHECK_VALUE(!std::isnan(tol), "tol must be a number, got ", tol);
  TORCH_CHECK_VALUE(norms.size() == compats.size() && normalizations.size() == compats.size() &&
                        lattices.size() == kLatticeTensors * compats.size(),
                    "every pairwise term needs ", kLatticeTensors, " lattice tensors, a norm, a normalization and a ",
                    "compat, got ", lattices.size(), ", ", norms.size(), ", ", normalizations.size(), " and ",
                    compats.size());
  const Output output = parse_output(output_name);
  const auto type = unary.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  std::vector<BatchTerm> terms;
  for (size_t k = 0; k < compats.size(); ++k)
    terms.push_back(parse_term(lattices.slice(k * kLatticeTensors, kLatticeTensors), norms[k], normalizations[k],
                               compats[k], grid, unary, type));

  const Tensor input = unary.to(type);
  const Tensor out = output == Output::labels
                         ? at::empty({unary.size(0), grid.points()}, unary.options().dtype(at::kLong))
                         : at::empty(unary.sizes(), unary.options().dtype(type));
  if (out.numel() > 0) {
    TORCH_CHECK_VALUE(unary.size(1) > 0, "unary must have at least one label, got ", unary.sizes());
    if (type == at::kFloat)
      infer<float>(input, terms, grid, iterations, damping, tol, output, out);
    else
      infer<double>(input, terms, grid, iterations, damping, tol, output, out);
  }
  return output == Output::labels ? out : out.to(unary.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(densecrf_cuda, CPU, m) { m.impl("mean_field", mean_field); }

}  // namespace densecrf
