// CPU implementations of the operators of the lattice: checks, allocation and dispatch; the work is in
// lattice_build.cpp and lattice_filter.cpp.

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>

#include "glue.h"
#include "lattice_build.h"
#include "lattice_filter.h"

namespace densecrf {
namespace {

using at::Tensor;
[[noreturn]] void raise(const BuildError& error, int64_t image, double bandwidth) {
  if (error.kind == BuildError::Kind::not_finite)
    TORCH_CHECK_VALUE(false, "features must be finite, got ", error.feature, " in dimension ", error.dimension,
                      " of point ", error.point, " of image ", image);
  TORCH_CHECK_VALUE(false, "key coordinates must stay below 2^20 in magnitude, but feature dimension ", error.dimension,
                    " is ", error.feature * bandwidth, " / bandwidth ", bandwidth, " = ", error.feature, " at point ",
                    error.point, " of image ", image, ": use a larger bandwidth");
}

template <class T>
FeatureSource<T> feature_source(const BuildInputs& inputs, int64_t image) {
  return {guide_view(inputs.guide, image),
          inputs.bandwidth.const_data_ptr<T>(),
          static_cast<int>(inputs.dimension()),
          inputs.shape,
          inputs.coordinates,
          inputs.grid};
}

template <class T>
LatticeTensors build(const BuildInputs& inputs) {
  const TileGrid& grid = inputs.grid;
  const int64_t batch = inputs.batch(), d = inputs.dimension(), entries = grid.points() * (d + 1);
  const T* widths = inputs.bandwidth.const_data_ptr<T>();
  for (int64_t i = 0; i < d; ++i)
    TORCH_CHECK_VALUE(std::isfinite(widths[i]) && widths[i] > 0, "bandwidths must be positive and finite, got ",
                      widths[i], " in dimension ", i);

  const auto out = LatticeTensors::empty(batch, grid, d, inputs.capacity, inputs.bandwidth.options(), false);
  with_huge_pages(out.weights);
  with_huge_pages(out.local_ids);
  std::vector<ImageVertices> images(batch);
  for_images(batch, [&](int64_t b) {
    images[b] = embed_image(
        feature_source<T>(inputs, b), aten_pool(),
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
  TORCH_CHECK_VALUE(first_vertex[batch] <= inputs.capacity, "the lattice has ", first_vertex[batch],
                    " vertices, more than its capacity ", inputs.capacity);
  TORCH_CHECK_VALUE(first_vertex[batch] < INT32_MAX, "a lattice holds at most 2^31 - 2 vertices, got ",
                    first_vertex[batch], ": split the batch");
  for_images(batch, [&](int64_t b) {
    tabulate_image(images[b], static_cast<int>(d), aten_pool(),
                   {first_vertex[b], first_partial[b], out.tile_offsets.mutable_data_ptr<int64_t>() + b * grid.tiles(),
                    out.tile_vertices.mutable_data_ptr<int32_t>() + first_partial[b],
                    out.vertex_offsets.mutable_data_ptr<int64_t>() + first_vertex[b],
                    out.vertex_partials.mutable_data_ptr<int64_t>() + first_partial[b],
                    out.neighbours.mutable_data_ptr<int32_t>() + 2 * first_vertex[b], 2 * inputs.capacity});
  });
  out.tile_offsets.mutable_data_ptr<int64_t>()[batch * grid.tiles()] = first_partial[batch];
  out.vertex_offsets.mutable_data_ptr<int64_t>()[first_vertex[batch]] = first_partial[batch];
  *out.num_vertices.mutable_data_ptr<int64_t>() = first_vertex[batch];
  return out;
}

LatticeTuple lattice_build(const Tensor& guide, const Tensor& bandwidth, at::IntArrayRef shape, bool coordinates,
                           int64_t capacity) {
  const BuildInputs inputs = parse_build(guide, bandwidth, shape, coordinates, capacity);
  return (inputs.type() == at::kFloat ? build<float>(inputs) : build<double>(inputs)).tuple();
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

template <class T>
void filter(const FilterInputs& inputs, bool reverse, const Tensor& out) {
  const Tensor& values = inputs.values;
  for_images(values.size(0), [&](int64_t b) {
    filter_image(view_image<T>(inputs.lattice, inputs.grid, b), values_view<T>(values, b), values.size(2),
                 image_data<T>(inputs.splat_scale, b), image_data<T>(inputs.slice_scale, b), reverse, aten_pool(),
                 out.mutable_data_ptr<T>() + b * out.stride(0));
  });
}

Tensor lattice_filter(const Tensor& values, const std::optional<Tensor>& features,
                      const std::optional<Tensor>& splat_scale, const std::optional<Tensor>& slice_scale,
                      at::TensorList tensors, at::IntArrayRef shape, bool reverse) {
  const FilterInputs inputs = parse_filter(values, features, splat_scale, slice_scale, tensors, shape);
  const Tensor out = empty_rows(values.sizes(), inputs.lattice.weights.options());
  if (out.numel() > 0) dispatch(inputs.type(), [&](auto zero) { filter<decltype(zero)>(inputs, reverse, out); });
  return out.to(values.scalar_type());
}

// Rows of vertices that there is room for but that no image has are zero.
Tensor lattice_splat(const Tensor& values, const std::optional<Tensor>& splat_scale, at::TensorList tensors,
                     at::IntArrayRef shape) {
  const FilterInputs inputs = parse_splat(values, splat_scale, tensors, shape);
  const int64_t channels = values.size(2);
  const Tensor rows = at::zeros({inputs.lattice.capacity(), channels}, inputs.lattice.weights.options());
  if (values.numel() > 0)
    dispatch(inputs.type(), [&](auto zero) {
      using T = decltype(zero);
      for_images(values.size(0), [&](int64_t b) {
        const auto lattice = view_image<T>(inputs.lattice, inputs.grid, b);
        splat_image(lattice, values_view<T>(inputs.values, b), channels, image_data<T>(inputs.splat_scale, b),
                    aten_pool(), rows.mutable_data_ptr<T>() + lattice.first_vertex * channels);
      });
    });
  return rows.to(values.scalar_type());
}

Tensor lattice_slice(const Tensor& rows, const std::optional<Tensor>& slice_scale, at::TensorList tensors,
                     at::IntArrayRef shape) {
  const SliceInputs inputs = parse_slice(rows, slice_scale, tensors, shape);
  const int64_t channels = inputs.channels();
  const Tensor out = empty_rows(inputs.result_shape(), inputs.lattice.weights.options());
  if (out.numel() > 0)
    dispatch(inputs.type(), [&](auto zero) {
      using T = decltype(zero);
      for_images(out.size(0), [&](int64_t b) {
        const auto lattice = view_image<T>(inputs.lattice, inputs.grid, b);
        slice_image(lattice, inputs.rows.const_data_ptr<T>() + lattice.first_vertex * channels, channels,
                    image_data<T>(inputs.scale, b), aten_pool(), out.mutable_data_ptr<T>() + b * out.stride(0));
      });
    });
  return out.to(rows.scalar_type());
}

Tensor lattice_keys(const Tensor& guide, const Tensor& bandwidth, at::TensorList tensors, at::IntArrayRef shape,
                    bool coordinates) {
  const KeysInputs inputs = parse_keys(guide, bandwidth, tensors, shape, coordinates);
  const int d = static_cast<int>(inputs.build.dimension()), words = key_words(d);
  const Tensor keys = at::zeros({inputs.lattice.capacity(), words}, bandwidth.options().dtype(at::kLong));
  dispatch(inputs.build.type(), [&](auto zero) {
    using T = decltype(zero);
    for_images(inputs.build.batch(), [&](int64_t b) {
      const auto lattice = view_image<T>(inputs.lattice, inputs.build.grid, b);
      const FeatureSource<T> source = feature_source<T>(inputs.build, b);
      vertex_keys(source, lattice, aten_pool(),
                  reinterpret_cast<uint64_t*>(keys.mutable_data_ptr<int64_t>()) + lattice.first_vertex * words);
    });
  });
  return keys;
}

template <class T>
void feature_grad(const FeatureGradInputs& inputs, const Tensor& out) {
  // Images that share a lattice add up in the same rows, in order.
  const Tensor &values = inputs.values, &grad = inputs.grad;
  const bool shared = out.size(0) == 1;
  const auto one = [&](int64_t b) {
    feature_grad_image(view_image<T>(inputs.lattice, inputs.grid, b), values_view<T>(values, b),
                       values_view<T>(grad, b), values.size(2), image_data<T>(inputs.features, b), aten_pool(),
                       out.mutable_data_ptr<T>() + (shared ? 0 : b) * out.stride(0));
  };
  if (!shared) return for_images(values.size(0), one);
  for (int64_t b = 0; b < values.size(0); ++b) one(b);
}

Tensor lattice_feature_grad(const Tensor& values, const Tensor& grad, const Tensor& features, at::TensorList tensors,
                            at::IntArrayRef shape, bool reverse) {
  const FeatureGradInputs inputs = parse_feature_grad(values, grad, features, tensors, shape, reverse);
  const Tensor out = at::zeros(features.sizes(), inputs.lattice.weights.options());
  if (values.numel() > 0) dispatch(inputs.type(), [&](auto zero) { feature_grad<decltype(zero)>(inputs, out); });
  return out.to(features.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(densecrf_cuda, CPU, m) {
  m.impl("lattice_build", lattice_build);
  m.impl("lattice_filter", lattice_filter);
  m.impl("_lattice_feature_grad", lattice_feature_grad);
  m.impl("_lattice_splat", lattice_splat);
  m.impl("_lattice_slice", lattice_slice);
  m.impl("_lattice_keys", lattice_keys);
}

}  // namespace densecrf
