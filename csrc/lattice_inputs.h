// What the operators of the lattice are given, checked and brought to the types that kernels read, on any device. No
// check reads the data of a tensor: that would make a GPU wait.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "guide.h"
#include "lattice_tensors.h"

namespace densecrf {

// Images by the kernels' types: halves become floats, which hold them exactly.
inline at::Tensor readable_guide(const at::Tensor& guide) {
  const auto type = guide.scalar_type();
  TORCH_CHECK_TYPE(type == at::kByte || at::isFloatingType(type), "guide must be uint8 or a floating type, got ", type);
  return type == at::kHalf || type == at::kBFloat16 ? guide.to(at::kFloat) : guide;
}

// One image of a readable guide [B, G, N].
inline GuideView guide_view(const at::Tensor& guide, int64_t image) {
  const auto type = guide.scalar_type();
  const auto* data = static_cast<const char*>(guide.const_data_ptr()) + image * guide.stride(0) * guide.element_size();
  return {type == at::kByte    ? GuideType::uint8
          : type == at::kFloat ? GuideType::float32
                               : GuideType::float64,
          data, static_cast<int>(guide.size(1)), guide.stride(1), guide.stride(2)};
}

// The arguments of lattice_build.
struct BuildInputs {
  at::Tensor guide;      // [B, G, N] uint8, float or double, any strides
  at::Tensor bandwidth;  // [d], contiguous, in the type of the lattice
  std::vector<int64_t> shape;
  TileGrid grid;
  bool coordinates;
  int64_t capacity;

  int64_t batch() const { return guide.size(0); }
  int64_t dimension() const { return bandwidth.numel(); }
  at::ScalarType type() const { return bandwidth.scalar_type(); }
};

inline BuildInputs parse_build(const at::Tensor& guide, const at::Tensor& bandwidth, at::IntArrayRef shape,
                               bool coordinates, int64_t capacity) {
  TORCH_CHECK_VALUE(guide.dim() == 3, "guide must be [B, G, N], got ", guide.sizes());
  TORCH_CHECK_VALUE(bandwidth.dim() == 1, "bandwidth must be [d], got ", bandwidth.sizes());
  check_device(bandwidth, "bandwidth", guide, "guide");
  const TileGrid grid = grid_of(shape);
  TORCH_CHECK_VALUE(guide.size(2) == grid.points(), "guide must have one column per point of the grid ", shape,
                    ", got ", guide.sizes());
  const int64_t d = guide.size(1) + (coordinates ? static_cast<int64_t>(shape.size()) : 0);
  TORCH_CHECK_VALUE(d >= 1 && d <= kMaxDimension, "a lattice has 1 to ", kMaxDimension, " feature dimensions, got ", d);
  TORCH_CHECK_VALUE(bandwidth.numel() == d, "bandwidth must have one entry per feature dimension, ", d, ", got ",
                    bandwidth.numel());
  TORCH_CHECK_VALUE(capacity >= 0, "capacity must not be negative, got ", capacity);
  const auto type = bandwidth.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, "bandwidth must be float or double, got ", type);
  return {readable_guide(guide), bandwidth.contiguous(), shape.vec(), grid, coordinates, capacity};
}

// Values, scales and features in the dtype of the lattice; halves are computed in float.
inline at::Tensor to_lattice_type(const at::Tensor& tensor, const char* name, const LatticeTensors& lattice) {
  const auto type = lattice.weights.scalar_type(), own = tensor.scalar_type();
  check_device(tensor, name, lattice.weights, "the lattice");
  TORCH_CHECK_TYPE(own == type || (type == at::kFloat && (own == at::kHalf || own == at::kBFloat16)), name,
                   " must have the dtype of the lattice, ", type, ", or be half or bfloat16 on a float lattice, got ",
                   own);
  return tensor.to(type);
}

inline void check_batch(int64_t own, int64_t batch, const char* name) {
  TORCH_CHECK_VALUE(own == batch || own == 1, "the batch of the ", name, " must be 1 or ", batch, ", got ", own);
}

inline void check_values(const at::Tensor& values, const char* name, const LatticeTensors& lattice,
                         const TileGrid& grid) {
  TORCH_CHECK_VALUE(values.dim() == 3 && values.size(1) == grid.points(), name,
                    " must be [B, N, C] with N = ", grid.points(), ", got ", values.sizes());
  check_batch(lattice.batch(), values.size(0), "lattice");
}

// Contiguous and in the dtype of the lattice; undefined where there is none.
inline at::Tensor checked_scale(const std::optional<at::Tensor>& scale, const char* name, const at::Tensor& values,
                                const LatticeTensors& lattice) {
  if (!scale.has_value()) return at::Tensor();
  TORCH_CHECK_VALUE(scale->dim() == 2 && scale->size(1) == values.size(1), name,
                    " must be [B, N] with N = ", values.size(1), ", got ", scale->sizes());
  check_batch(scale->size(0), values.size(0), name);
  return to_lattice_type(*scale, name, lattice).contiguous();
}

inline void check_features(const at::Tensor& features, const LatticeTensors& lattice, const TileGrid& grid) {
  const std::vector<int64_t> expected{lattice.batch(), lattice.dimension(), grid.points()};
  TORCH_CHECK_VALUE(features.sizes() == at::IntArrayRef(expected), "features must be ", at::IntArrayRef(expected),
                    ", got ", features.sizes());
  check_device(features, "features", lattice.weights, "the lattice");
}

// The arguments of lattice_filter, in the type of the lattice; its features only receive gradients.
struct FilterInputs {
  TileGrid grid;
  LatticeTensors lattice;
  at::Tensor values;                    // [B, N, C], any strides
  at::Tensor splat_scale, slice_scale;  // [B or 1, N], contiguous; undefined where there is none

  at::ScalarType type() const { return lattice.weights.scalar_type(); }
};

inline FilterInputs parse_filter(const at::Tensor& values, const std::optional<at::Tensor>& features,
                                 const std::optional<at::Tensor>& splat_scale,
                                 const std::optional<at::Tensor>& slice_scale, at::TensorList tensors,
                                 at::IntArrayRef shape) {
  const TileGrid grid = grid_of(shape);
  const auto lattice = LatticeTensors::unpack(tensors, grid);
  check_values(values, "values", lattice, grid);
  if (features.has_value()) check_features(*features, lattice, grid);
  return {grid, lattice, to_lattice_type(values, "values", lattice),
          checked_scale(splat_scale, "splat_scale", values, lattice),
          checked_scale(slice_scale, "slice_scale", values, lattice)};
}

// The arguments of _lattice_splat: those of lattice_filter for values of the lattice's own batch, so that every vertex
// has one row.
inline FilterInputs parse_splat(const at::Tensor& values, const std::optional<at::Tensor>& splat_scale,
                                at::TensorList tensors, at::IntArrayRef shape) {
  FilterInputs inputs = parse_filter(values, {}, splat_scale, {}, tensors, shape);
  TORCH_CHECK_VALUE(values.size(0) == inputs.lattice.batch(), "values must have the batch of the lattice, ",
                    inputs.lattice.batch(), ", got ", values.sizes());
  return inputs;
}

// The arguments of _lattice_slice, in the type of the lattice.
struct SliceInputs {
  TileGrid grid;
  LatticeTensors lattice;
  at::Tensor rows;   // [capacity, C], contiguous
  at::Tensor scale;  // [B or 1, N], contiguous; undefined where there is none

  at::ScalarType type() const { return lattice.weights.scalar_type(); }
  int64_t channels() const { return rows.size(1); }
  std::vector<int64_t> result_shape() const { return {lattice.batch(), grid.points(), channels()}; }
};

inline SliceInputs parse_slice(const at::Tensor& rows, const std::optional<at::Tensor>& slice_scale,
                               at::TensorList tensors, at::IntArrayRef shape) {
  const TileGrid grid = grid_of(shape);
  const auto lattice = LatticeTensors::unpack(tensors, grid);
  TORCH_CHECK_VALUE(rows.dim() == 2 && rows.size(0) == lattice.capacity(), "rows must be [capacity, C] with capacity ",
                    lattice.capacity(), ", got ", rows.sizes());
  SliceInputs inputs{grid, lattice, to_lattice_type(rows, "rows", lattice).contiguous(), at::Tensor()};
  if (!slice_scale.has_value()) return inputs;
  TORCH_CHECK_VALUE(slice_scale->dim() == 2 && slice_scale->size(1) == grid.points(),
                    "slice_scale must be [B, N] with N = ", grid.points(), ", got ", slice_scale->sizes());
  check_batch(slice_scale->size(0), lattice.batch(), "slice_scale");
  inputs.scale = to_lattice_type(*slice_scale, "slice_scale", lattice).contiguous();
  return inputs;
}

// The arguments of _lattice_keys: those that the lattice was built from, and the lattice.
struct KeysInputs {
  BuildInputs build;
  LatticeTensors lattice;
};

inline KeysInputs parse_keys(const at::Tensor& guide, const at::Tensor& bandwidth, at::TensorList tensors,
                             at::IntArrayRef shape, bool coordinates) {
  KeysInputs inputs{parse_build(guide, bandwidth, shape, coordinates, 0),
                    LatticeTensors::unpack(tensors, grid_of(shape))};
  const at::Tensor& weights = inputs.lattice.weights;
  check_device(guide, "guide", weights, "the lattice");
  TORCH_CHECK_VALUE(inputs.lattice.batch() == guide.size(0) && inputs.lattice.dimension() == bandwidth.size(0),
                    "guide and bandwidth must be those of the lattice, with ", inputs.lattice.batch(), " images and ",
                    inputs.lattice.dimension(), " dimensions, got ", guide.sizes(), " and ", bandwidth.sizes());
  TORCH_CHECK_TYPE(bandwidth.scalar_type() == weights.scalar_type(), "bandwidth must have the dtype of the lattice, ",
                   weights.scalar_type(), ", got ", bandwidth.scalar_type());
  inputs.build.capacity = inputs.lattice.capacity();
  return inputs;
}

// The arguments of _lattice_feature_grad, in the type of the lattice. The adjoint filter pairs the same two rows with
// their roles exchanged, so for `reverse` values and grad have changed places.
struct FeatureGradInputs {
  TileGrid grid;
  LatticeTensors lattice;
  at::Tensor values, grad;  // [B, N, C], any strides
  at::Tensor features;      // [B', d, N], contiguous

  at::ScalarType type() const { return lattice.weights.scalar_type(); }
};

inline FeatureGradInputs parse_feature_grad(const at::Tensor& values, const at::Tensor& grad,
                                            const at::Tensor& features, at::TensorList tensors, at::IntArrayRef shape,
                                            bool reverse) {
  const TileGrid grid = grid_of(shape);
  const auto lattice = LatticeTensors::unpack(tensors, grid);
  check_values(values, "values", lattice, grid);
  TORCH_CHECK_VALUE(grad.sizes() == values.sizes(), "grad must have the shape of values, ", values.sizes(), ", got ",
                    grad.sizes());
  check_features(features, lattice, grid);
  FeatureGradInputs inputs{grid, lattice, to_lattice_type(values, "values", lattice),
                           to_lattice_type(grad, "grad", lattice),
                           to_lattice_type(features, "features", lattice).contiguous()};
  if (reverse) std::swap(inputs.values, inputs.grad);
  return inputs;
}

}  // namespace densecrf
