// The pairwise terms of a batch, image by image.
#pragma once

#include <cmath>
#include <vector>

#include "../mean_field_inputs.h"
#include "glue.h"
#include "mean_field_image.h"

namespace densecrf {

inline void check_finite(at::TensorList compats) {
  for (const at::Tensor& compat : compats) {
    const at::Tensor values = compat.to(at::kDouble).contiguous();
    for (int64_t i = 0; i < values.numel(); ++i)
      TORCH_CHECK_VALUE(std::isfinite(values.const_data_ptr<double>()[i]), "compat must be finite, got ",
                        values.const_data_ptr<double>()[i]);
  }
}

template <class T>
PairwiseTerm<T> image_term(const BatchTerm& term, const TileGrid& grid, int64_t image) {
  const T* norm = nullptr;
  if (term.norm.defined()) norm = term.norm.const_data_ptr<T>() + (term.norm.size(0) == 1 ? 0 : image) * grid.points();
  const T* compat = term.compat.const_data_ptr<T>();
  const Compatibility form = term.compatibility();
  return {view_image<T>(term.lattice, grid, image),         term.normalization.scales_splat ? norm : nullptr,
          term.normalization.scales_slice ? norm : nullptr, form,
          form == Compatibility::potts ? *compat : T(0),    compat};
}

template <class T>
std::vector<PairwiseTerm<T>> image_terms(const std::vector<BatchTerm>& terms, const TileGrid& grid, int64_t image) {
  std::vector<PairwiseTerm<T>> result;
  for (const BatchTerm& term : terms) result.push_back(image_term<T>(term, grid, image));
  return result;
}

}  // namespace densecrf
