// CPU implementations of lattice_build, lattice_filter and the gradient with respect to features: checks, allocation
// and dispatch; the work is in lattice_build.cpp and lattice_filter.cpp.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "glue.h"
#include "lattice_build.h"
#include "lattice_filter.h"

namespace densecrf {
namespace {

using at::Tensor;
using LatticeTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Images by the kernels' types: halves become floats, which hold them exactly.
Tensor readable_guide(const Tensor& guide) {
  const auto type = guide.scalar_type();
  TORCH_CHECK_TYPE(type == at::kByte || at::isFloatingType(type), "guide must be uint8 or a floating type, got ", type);
  return type == at::kHalf || type == at::kBFloat16 ? guide.to(at::kFloat) : guide;
}

GuideView guide_view(const Tensor& guide, int64_t image) {
  const auto type = guide.scalar_type();
  const auto* data = static_cast<const char*>(guide.const_data_ptr()) + image * guide.stride(0) * guide.element_size();
  return {type == at::kByte    ? GuideType::uint8
          : type == at::kFloat ? GuideType::float32
                               : GuideType::float64,
          data, static_cast<int>(guide.size(1)), guide.stride(1), guide.stride(2)};
}

[[noreturn]] void raise(const BuildError& error, int64_t image, double bandwidth) {
  if (error.kind == BuildError::Kind::not_finite)
    TORCH_CHECK_VALUE(false, "features must be finite, got ", error.feature, " in dimension ", error.dimension,
                      " of point ", error.point, " of image ", image);
  TORCH_CHECK_VALUE(false, "key coordinates must stay below 2^20 in magnitude, but feature dimension ", error.dimension,
                    " is ", error.feature * bandwidth, " / bandwidth ", bandwidth, " = ", error.feature, " at point ",
                    error.point, " of image ", image, ": use a larger bandwidth");
}

template <class T>
LatticeTuple build(const Tensor& guide, const Tensor& bandwidth, at::IntArrayRef shape, bool coordinates,
                   int64_t capacity) {
  const TileGrid grid = grid_of(shape);
  const int64_t batch = guide.size(0), d = bandwidth.numel(), entries = grid.points() * (d + 1);
  const T* widths = bandwidth.const_data_ptr<T>();
  for (int64_t i = 0; i < d; ++i)
    TORCH_CHECK_VALUE(std::isfinite(widths[i]) && widths[i] > 0, "bandwidths must be positive and finite, got ",
                      widths[i], " in dimension ", i);

  const auto options = bandwidth.options();
  const auto integers = options.dtype(at::kLong), ids = options.dtype(at::kInt);
  LatticeTensors out{empty_rows({batch, grid.points(), d + 1}, options),
                     empty_rows({batch, grid.points(), d + 1}, options.dtype(at::kShort)),
                     at::empty({batch, grid.points()}, options.dtype(at::kShort)),
                     at::empty({batch * grid.tiles() + 1}, integers),
                     at::empty({batch * entries}, ids),
                     at::empty({capacity + 1}, integers),
                     at::empty({batch * entries}, integers),
                     at::empty({d + 1, capacity, 2}, ids),
                     at::empty({batch + 1}, integers),
                     at::empty({}, integers)};

  std::vector<ImageVertices> images(batch);
  for_images(batch, [&](int64_t b) {
    const FeatureSource<T> source{guide_view(guide, b), widths, static_cast<int>(d), shape.vec(), coordinates, grid};
    images[b] = embed_image(
        source, aten_pool(),
        {out.weights.mutable_data_ptr<T>() + b * entries, out.local_ids.mutable_data_ptr<int16_t>() + b * entries,
         out.point_order.mutable_data_ptr<int16_t>() + b * grid.points()});
  });

  auto* first_vertex = out.image_offsets.mutable_data_ptr<int64_t>();
  std::vector<int64_t> first_partial(batch + 1, 0);
  first_vertex[0] = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const BuildError& error = images[b].error;
    if (error.kind != BuildError::Kind::none) raise(error, b, widths[error.dimension]);
    first_vertex[b + 1] = first_vertex[b] + images[b].table.size();
    first_partial[b + 1] = first_partial[b] + images[b].tile_vertices.size();
  }
  TORCH_CHECK_VALUE(first_vertex[batch] <= capacity, "the lattice has ", first_vertex[batch],
                    " vertices, more than its capacity ", capacity);
  TORCH_CHECK_VALUE(first_vertex[batch] < INT32_MAX, "a lattice holds at most 2^31 - 2 vertices, got ",
                    first_vertex[batch], ": split the batch");
  for_images(batch, [&](int64_t b) {
    tabulate_image(images[b], static_cast<int>(d), aten_pool(),
                   {first_vertex[b], first_partial[b], out.tile_offsets.mutable_data_ptr<int64_t>() + b * grid.tiles(),
                    out.tile_vertices.mutable_data_ptr<int32_t>() + first_partial[b],
                    out.vertex_offsets.mutable_data_ptr<int64_t>() + first_vertex[b],
                    out.vertex_partials.mutable_data_ptr<int64_t>() + first_partial[b],
                    out.neighbours.mutable_data_ptr<int32_t>() + 2 * first_vertex[b], 2 * capacity});
  });
  out.tile_offsets.mutable_data_ptr<int64_t>()[batch * grid.tiles()] = first_partial[batch];
  out.vertex_offsets.mutable_data_ptr<int64_t>()[first_vertex[batch]] = first_partial[batch];
  *out.num_vertices.mutable_data_ptr<int64_t>() = first_vertex[batch];
  return {out.weights,        out.local_ids,       out.point_order, out.tile_offsets,  out.tile_vertices,
          out.vertex_offsets, out.vertex_partials, out.neighbours,  out.image_offsets, out.num_vertices};
}

LatticeTuple lattice_build(const Tensor& guide, const Tensor& bandwidth, at::IntArrayRef grid, bool coordinates,
                           int64_t capacity) {
  TORCH_CHECK_VALUE(guide.dim() == 3, "guide must be [B, G, N], got ", guide.sizes());
  TORCH_CHECK_VALUE(bandwidth.dim() == 1, "bandwidth must be [d], got ", bandwidth.sizes());
  TORCH_CHECK_VALUE(guide.size(2) == grid_of(grid).points(), "guide must have one column per point of the grid ", grid,
                    ", got ", guide.sizes());
  const int64_t d = guide.size(1) + (coordinates ? static_cast<int64_t>(grid.size()) : 0);
  TORCH_CHECK_VALUE(d >= 1 && d <= kMaxDimension, "a lattice has 1 to ", kMaxDimension, " feature dimensions, got ", d);
  TORCH_CHECK_VALUE(bandwidth.numel() == d, "bandwidth must have one entry per feature dimension, ", d, ", got ",
                    bandwidth.numel());
  TORCH_CHECK_VALUE(capacity >= 0, "capacity must not be negative, got ", capacity);
  const auto type = bandwidth.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, "bandwidth must be float or double, got ", type);
  const Tensor readable = readable_guide(guide), widths = bandwidth.contiguous();
  return type == at::kFloat ? build<float>(readable, widths, grid, coordinates, capacity)
                            : build<double>(readable, widths, grid, coordinates, capacity);
}

// Values, scales and features in the dtype of the lattice; halves are computed in float.
Tensor to_lattice_type(const Tensor& tensor, const char* name, at::ScalarType type) {
  const auto own = tensor.scalar_type();
  TORCH_CHECK_TYPE(own == type || (type == at::kFloat && (own == at::kHalf || own == at::kBFloat16)), name,
                   " must have the dtype of the lattice, ", type, ", or be half or bfloat16 on a float lattice, got ",
                   own);
  return tensor.to(type);
}

void check_batch(int64_t own, int64_t batch, const char* name) {
  TORCH_CHECK_VALUE(own == batch || own == 1, "the batch of the ", name, " must be 1 or ", batch, ", got ", own);
}

Tensor checked_scale(const std::optional<Tensor>& scale, const char* name, const Tensor& values, at::ScalarType type) {
  if (!scale.has_value()) return Tensor();
  TORCH_CHECK_VALUE(scale->dim() == 2 && scale->size(1) == values.size(1), name,
                    " must be [B, N] with N = ", values.size(1), ", got ", scale->sizes());
  check_batch(scale->size(0), values.size(0), name);
  return to_lattice_type(*scale, name, type).contiguous();
}

template <class T>
const T* image_data(const Tensor& tensor, int64_t image) {
  if (!tensor.defined()) return nullptr;
  return tensor.const_data_ptr<T>() + (tensor.size(0) == 1 ? 0 : image) * tensor.stride(0);
}

template <class T>
ValuesView<T> values_view(const Tensor& values, int64_t image) {
  return {values.const_data_ptr<T>() + image * values.stride(0), values.stride(1), values.stride(2)};
}

void check_values(const Tensor& values, const char* name, const LatticeTensors& lattice, const TileGrid& grid) {
  TORCH_CHECK_VALUE(values.dim() == 3 && values.size(1) == grid.points(), name,
                    " must be [B, N, C] with N = ", grid.points(), ", got ", values.sizes());
  check_batch(lattice.batch(), values.size(0), "lattice");
}

template <class T>
void filter(const LatticeTensors& lattice, const TileGrid& grid, const Tensor& values, const Tensor& splat_scale,
            const Tensor& slice_scale, bool reverse, const Tensor& out) {
  for_images(values.size(0), [&](int64_t b) {
    filter_image(view_image<T>(lattice, grid, b), values_view<T>(values, b), values.size(2),
                 image_data<T>(splat_scale, b), image_data<T>(slice_scale, b), reverse, aten_pool(),
                 out.mutable_data_ptr<T>() + b * out.stride(0));
  });
}

void check_features(const Tensor& features, const LatticeTensors& lattice, const TileGrid& grid) {
  const std::vector<int64_t> expected{lattice.batch(), lattice.dimension(), grid.points()};
  TORCH_CHECK_VALUE(features.sizes() == at::IntArrayRef(expected), "features must be ", at::IntArrayRef(expected),
                    ", got ", features.sizes());
}

Tensor lattice_filter(const Tensor& values, const std::optional<Tensor>& features,
                      const std::optional<Tensor>& splat_scale, const std::optional<Tensor>& slice_scale,
                      at::TensorList tensors, at::IntArrayRef shape, bool reverse) {
  const TileGrid grid = grid_of(shape);
  const auto lattice = LatticeTensors::unpack(tensors, grid);
  check_values(values, "values", lattice, grid);
  if (features.has_value()) check_features(*features, lattice, grid);
  const auto type = lattice.weights.scalar_type();
  const Tensor input = to_lattice_type(values, "values", type);
  const Tensor before = checked_scale(splat_scale, "splat_scale", values, type);
  const Tensor after = checked_scale(slice_scale, "slice_scale", values, type);
  const Tensor out = empty_rows(values.sizes(), lattice.weights.options());
  if (out.numel() > 0) {
    if (type == at::kFloat)
      filter<float>(lattice, grid, input, before, after, reverse, out);
    else
      filter<double>(lattice, grid, input, before, after, reverse, out);
  }
  return out.to(values.scalar_type());
}

template <class T>
void feature_grad(const LatticeTensors& lattice, const TileGrid& grid, const Tensor& values, const Tensor& grad,
                  const Tensor& features, const Tensor& out) {
  // Images that share a lattice add up in the same rows, in order.
  const bool shared = out.size(0) == 1;
  const auto one = [&](int64_t b) {
    feature_grad_image(view_image<T>(lattice, grid, b), values_view<T>(values, b), values_view<T>(grad, b),
                       values.size(2), image_data<T>(features, b), aten_pool(),
                       out.mutable_data_ptr<T>() + (shared ? 0 : b) * out.stride(0));
  };
  if (!shared) return for_images(values.size(0), one);
  for (int64_t b = 0; b < values.size(0); ++b) one(b);
}

Tensor lattice_feature_grad(const Tensor& values, const Tensor& grad, const Tensor& features, at::TensorList tensors,
                            at::IntArrayRef shape, bool reverse) {
  const TileGrid grid = grid_of(shape);
  const auto lattice = LatticeTensors::unpack(tensors, grid);
  check_values(values, "values", lattice, grid);
  TORCH_CHECK_VALUE(grad.sizes() == values.sizes(), "grad must have the shape of values, ", values.sizes(), ", got ",
                    grad.sizes());
  check_features(features, lattice, grid);
  const auto type = lattice.weights.scalar_type();
  const Tensor inputs[2] = {to_lattice_type(values, "values", type), to_lattice_type(grad, "grad", type)};
  const Tensor f = to_lattice_type(features, "features", type).contiguous();
  const Tensor out = at::zeros(features.sizes(), lattice.weights.options());
  if (values.numel() > 0) {
    // The adjoint filter pairs the same two with their roles exchanged.
    if (type == at::kFloat)
      feature_grad<float>(lattice, grid, inputs[reverse], inputs[!reverse], f, out);
    else
      feature_grad<double>(lattice, grid, inputs[reverse], inputs[!reverse], f, out);
  }
  return out.to(features.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(densecrf_cuda, CPU, m) {
  m.impl("lattice_build", lattice_build);
  m.impl("lattice_filter", lattice_filter);
  m.impl("_lattice_feature_grad", lattice_feature_grad);
}

}  // namespace densecrf
