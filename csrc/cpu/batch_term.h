// The pairwise terms of a batch as the operators are given them, checked.
#pragma once

#include <ATen/ops/empty.h>

#include <cmath>
#include <string>
#include <vector>

#include "glue.h"
#include "mean_field_image.h"

namespace densecrf {

// One pairwise term of the whole batch, its tensors in the dtype of the computation.
struct BatchTerm {
  LatticeTensors lattice;
  at::Tensor norm;  // undefined where there is no normalization
  bool scales_splat, scales_slice;
  at::Tensor compat;
};

inline void check_compat(const at::Tensor& compat, int64_t channels) {
  const bool fits = compat.dim() == 0 || (compat.dim() == 1 && compat.size(0) == channels) ||
                    (compat.dim() == 2 && compat.size(0) == channels && compat.size(1) == channels);
  TORCH_CHECK_VALUE(fits, "compat must be a number, [C] or [C, C] with C = ", channels, ", got ", compat.sizes());
  const at::Tensor values = compat.to(at::kDouble).contiguous();
  for (int64_t i = 0; i < values.numel(); ++i)
    TORCH_CHECK_VALUE(std::isfinite(values.const_data_ptr<double>()[i]), "compat must be finite, got ",
                      values.const_data_ptr<double>()[i]);
}

inline BatchTerm parse_term(at::TensorList tensors, const at::Tensor& norm, c10::string_view normalization,
                            const at::Tensor& compat, const TileGrid& grid, int64_t batch, int64_t channels,
                            at::ScalarType type) {
  BatchTerm term{LatticeTensors::unpack(tensors, grid), at::Tensor(), false, false, at::Tensor()};
  TORCH_CHECK_TYPE(term.lattice.weights.scalar_type() == type, "a unary of this dtype needs lattices of dtype ", type,
                   ", got ", term.lattice.weights.scalar_type());
  TORCH_CHECK_VALUE(term.lattice.batch() == 1 || term.lattice.batch() == batch,
                    "the batch of a lattice must be 1 or that of the unary, ", batch, ", got ", term.lattice.batch());
  term.scales_splat = normalization == "before" || normalization == "symmetric";
  term.scales_slice = normalization == "after" || normalization == "symmetric";
  TORCH_CHECK_VALUE(term.scales_splat || term.scales_slice || normalization == "none",
                    "normalization must be none, before, after or symmetric, got ", normalization);
  if (normalization != "none") {
    TORCH_CHECK_VALUE(norm.dim() == 2 && norm.size(1) == grid.points() && norm.size(0) == term.lattice.batch(),
                      "norm must be [", term.lattice.batch(), ", ", grid.points(), "], got ", norm.sizes());
    term.norm = norm.to(type).contiguous();
  }
  check_compat(compat, channels);
  term.compat = compat.to(type).contiguous();
  return term;
}

template <class T>
PairwiseTerm<T> image_term(const BatchTerm& term, const TileGrid& grid, int64_t image) {
  const T* norm = nullptr;
  if (term.norm.defined()) norm = term.norm.const_data_ptr<T>() + (term.norm.size(0) == 1 ? 0 : image) * grid.points();
  const T* compat = term.compat.const_data_ptr<T>();
  const auto form = static_cast<Compatibility>(term.compat.dim());
  return {view_image<T>(term.lattice, grid, image),
          term.scales_splat ? norm : nullptr,
          term.scales_slice ? norm : nullptr,
          form,
          form == Compatibility::potts ? *compat : T(0),
          compat};
}

inline std::vector<BatchTerm> parse_terms(at::TensorList lattices, at::TensorList norms,
                                          const std::vector<std::string>& normalizations, at::TensorList compats,
                                          const TileGrid& grid, int64_t batch, int64_t channels, at::ScalarType type) {
  TORCH_CHECK_VALUE(norms.size() == compats.size() && normalizations.size() == compats.size() &&
                        lattices.size() == kLatticeTensors * compats.size(),
                    "every pairwise term needs ", kLatticeTensors, " lattice tensors, a norm, a normalization and a ",
                    "compat, got ", lattices.size(), ", ", norms.size(), ", ", normalizations.size(), " and ",
                    compats.size());
  std::vector<BatchTerm> terms;
  for (size_t k = 0; k < compats.size(); ++k)
    terms.push_back(parse_term(lattices.slice(k * kLatticeTensors, kLatticeTensors), norms[k], normalizations[k],
                               compats[k], grid, batch, channels, type));
  return terms;
}

template <class T>
std::vector<PairwiseTerm<T>> image_terms(const std::vector<BatchTerm>& terms, const TileGrid& grid, int64_t image) {
  std::vector<PairwiseTerm<T>> result;
  for (const BatchTerm& term : terms) result.push_back(image_term<T>(term, grid, image));
  return result;
}

}  // namespace densecrf
