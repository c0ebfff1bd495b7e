// What the operators of mean field are given, checked and brought to the types that kernels read, on any device. No
// check reads the data of a tensor: that would make a GPU wait.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "lattice_inputs.h"
#include "mean_field_problem.h"

namespace densecrf {

inline Output parse_output(c10::string_view name) {
  if (name == "probabilities") return Output::probabilities;
  if (name == "log_probabilities") return Output::log_probabilities;
  TORCH_CHECK_VALUE(name == "labels", "output must be probabilities, log_probabilities or labels, got ", name);
  return Output::labels;
}

inline Precision parse_precision(c10::string_view name) {
  if (name == "fp32") return Precision::fp32;
  TORCH_CHECK_VALUE(name == "fp16", "precision must be fp32 or fp16, got ", name);
  return Precision::fp16;
}

inline Normalization parse_normalization(c10::string_view name) {
  const Normalization sides{name == "before" || name == "symmetric", name == "after" || name == "symmetric"};
  TORCH_CHECK_VALUE(sides.scales_splat || sides.scales_slice || name == "none",
                    "normalization must be none, before, after or symmetric, got ", name);
  return sides;
}

// One pairwise term of the whole batch, its tensors in the dtype of the computation.
struct BatchTerm {
  LatticeTensors lattice;
  at::Tensor norm;  // [B', N], contiguous; undefined where there is no normalization
  Normalization normalization;
  at::Tensor compat;  // [], [C] or [C, C], contiguous

  Compatibility compatibility() const { return static_cast<Compatibility>(compat.dim()); }
};

inline void check_compat(const at::Tensor& compat, int64_t channels) {
  const bool fits = compat.dim() == 0 || (compat.dim() == 1 && compat.size(0) == channels) ||
                    (compat.dim() == 2 && compat.size(0) == channels && compat.size(1) == channels);
  TORCH_CHECK_VALUE(fits, "compat must be a number, [C] or [C, C] with C = ", channels, ", got ", compat.sizes());
}

inline BatchTerm parse_term(at::TensorList tensors, const at::Tensor& norm, c10::string_view normalization,
                            const at::Tensor& compat, const TileGrid& grid, int64_t batch, int64_t channels,
                            at::ScalarType type) {
  BatchTerm term{LatticeTensors::unpack(tensors, grid), at::Tensor(), parse_normalization(normalization), at::Tensor()};
  TORCH_CHECK_TYPE(term.lattice.weights.scalar_type() == type, "a unary of this dtype needs lattices of dtype ", type,
                   ", got ", term.lattice.weights.scalar_type());
  TORCH_CHECK_VALUE(term.lattice.batch() == 1 || term.lattice.batch() == batch,
                    "the batch of a lattice must be 1 or that of the unary, ", batch, ", got ", term.lattice.batch());
  if (normalization != "none") {
    TORCH_CHECK_VALUE(norm.dim() == 2 && norm.size(1) == grid.points() && norm.size(0) == term.lattice.batch(),
                      "norm must be [", term.lattice.batch(), ", ", grid.points(), "], got ", norm.sizes());
    term.norm = norm.to(type).contiguous();
  }
  check_compat(compat, channels);
  term.compat = compat.to(type).contiguous();
  return term;
}

// `owner`, [B, C, N], says the batch, the labels and the device.
inline std::vector<BatchTerm> parse_terms(at::TensorList lattices, at::TensorList norms,
                                          const std::vector<std::string>& normalizations, at::TensorList compats,
                                          const TileGrid& grid, const at::Tensor& owner, const char* owner_name,
                                          at::ScalarType type) {
  TORCH_CHECK_VALUE(norms.size() == compats.size() && normalizations.size() == compats.size() &&
                        lattices.size() == kLatticeTensors * compats.size(),
                    "every pairwise term needs ", kLatticeTensors, " lattice tensors, a norm, a normalization and a ",
                    "compat, got ", lattices.size(), ", ", norms.size(), ", ", normalizations.size(), " and ",
                    compats.size());
  check_devices(lattices, "lattices", owner, owner_name);
  check_devices(norms, "norms", owner, owner_name);
  check_devices(compats, "compats", owner, owner_name);
  std::vector<BatchTerm> terms;
  for (size_t k = 0; k < compats.size(); ++k)
    terms.push_back(parse_term(lattices.slice(k * kLatticeTensors, kLatticeTensors), norms[k], normalizations[k],
                               compats[k], grid, owner.size(0), owner.size(1), type));
  return terms;
}

// The features of every term, or of none: [B', d, N], contiguous, in the dtype of the computation.
inline std::vector<at::Tensor> parse_features(at::TensorList features, const std::vector<BatchTerm>& terms,
                                              const TileGrid& grid, at::ScalarType type) {
  TORCH_CHECK_VALUE(features.empty() || features.size() == terms.size(),
                    "features must be given for every term or for none, got ", features.size(), " for ", terms.size());
  std::vector<at::Tensor> result;
  for (size_t k = 0; k < features.size(); ++k) {
    check_features(features[k], terms[k].lattice, grid);
    TORCH_CHECK_VALUE(terms[k].compat.dim() < 2, "gradients of features need a compat that is a number or [C], got ",
                      terms[k].compat.sizes());
    result.push_back(features[k].to(type).contiguous());
  }
  return result;
}

// The arguments of mean_field and _mean_field_unrolled.
struct MeanFieldInputs {
  TileGrid grid;
  at::ScalarType type;  // of the computation
  at::Tensor unary;     // [B, C, N] in this type, any strides
  std::vector<BatchTerm> terms;
  int iterations;
  double damping, tolerance;
  Output output;
  Precision precision;

  int64_t batch() const { return unary.size(0); }
  int64_t channels() const { return unary.size(1); }
};

inline MeanFieldInputs parse_mean_field(const at::Tensor& unary, at::TensorList lattices, at::TensorList norms,
                                        const std::vector<std::string>& normalizations, at::TensorList compats,
                                        at::IntArrayRef shape, int64_t iterations, double damping, double tol,
                                        c10::string_view output, c10::string_view precision) {
  const TileGrid grid = grid_of(shape);
  TORCH_CHECK_TYPE(at::isFloatingType(unary.scalar_type()), "unary must have a floating dtype, got ",
                   unary.scalar_type());
  TORCH_CHECK_VALUE(unary.dim() == 3 && unary.size(2) == grid.points(),
                    "unary must be [B, C, N] with N = ", grid.points(), ", got ", unary.sizes());
  TORCH_CHECK_VALUE(iterations >= 0 && iterations < INT32_MAX, "iterations must not be negative, got ", iterations);
  TORCH_CHECK_VALUE(damping >= 0 && damping < 1, "damping must be in [0, 1), got ", damping);
  TORCH_CHECK_VALUE(!std::isnan(tol), "tol must be a number, got ", tol);
  const auto type = unary.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  MeanFieldInputs inputs{grid,
                         type,
                         unary,
                         {},
                         static_cast<int>(iterations),
                         damping,
                         tol,
                         parse_output(output),
                         parse_precision(precision)};
  inputs.terms = parse_terms(lattices, norms, normalizations, compats, grid, unary, "unary", type);
  TORCH_CHECK_VALUE(inputs.output != Output::labels || inputs.channels() > 0 || unary.size(0) * grid.points() == 0,
                    "unary must have at least one label, got ", unary.sizes());
  inputs.unary = unary.to(type);
  return inputs;
}

// The arguments of _mean_field_unrolled; its features only receive gradients.
inline MeanFieldInputs parse_mean_field_unrolled(const at::Tensor& unary, at::TensorList features,
                                                 at::TensorList lattices, at::TensorList norms,
                                                 const std::vector<std::string>& normalizations, at::TensorList compats,
                                                 at::IntArrayRef shape, int64_t iterations, bool logarithm) {
  check_devices(features, "features", unary, "unary");
  return parse_mean_field(unary, lattices, norms, normalizations, compats, shape, iterations, 0.0, -1.0,
                          logarithm ? "log_probabilities" : "probabilities", "fp32");
}

// The arguments of _mean_field_unrolled_backward.
struct MeanFieldBackwardInputs {
  TileGrid grid;
  at::ScalarType type;  // of the computation
  at::Tensor grad;      // [B, C, N] in this type, any strides
  at::Tensor result;    // [B, C, N], contiguous
  at::Tensor history;   // [B, iterations, N, C], contiguous
  std::vector<BatchTerm> terms;
  std::vector<at::Tensor> features;  // as parse_features

  int64_t batch() const { return grad.size(0); }
  int64_t channels() const { return grad.size(1); }
  int iterations() const { return static_cast<int>(history.size(1)); }
};

inline MeanFieldBackwardInputs parse_mean_field_backward(const at::Tensor& grad, const at::Tensor& result,
                                                         const at::Tensor& history, at::TensorList features,
                                                         at::TensorList lattices, at::TensorList norms,
                                                         const std::vector<std::string>& normalizations,
                                                         at::TensorList compats, at::IntArrayRef shape) {
  const TileGrid grid = grid_of(shape);
  const auto type = history.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, "history must be float or double, got ", type);
  TORCH_CHECK_VALUE(grad.dim() == 3 && grad.size(2) == grid.points() && result.sizes() == grad.sizes(),
                    "grad and result must be [B, C, N] with N = ", grid.points(), ", got ", grad.sizes(), " and ",
                    result.sizes());
  TORCH_CHECK_VALUE(history.dim() == 4 && history.size(0) == grad.size(0) && history.size(2) == grid.points() &&
                        history.size(3) == grad.size(1),
                    "history must be [B, iterations, N, C], got ", history.sizes());
  check_device(result, "result", grad, "grad");
  check_device(history, "history", grad, "grad");
  check_devices(features, "features", grad, "grad");
  auto terms = parse_terms(lattices, norms, normalizations, compats, grid, grad, "grad", type);
  auto parsed = parse_features(features, terms, grid, type);
  return {grid,
          type,
          grad.to(type),
          result.to(type).contiguous(),
          history.contiguous(),
          std::move(terms),
          std::move(parsed)};
}

}  // namespace densecrf
