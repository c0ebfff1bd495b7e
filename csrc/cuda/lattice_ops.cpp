// CUDA implementations of the operators of the lattice: checks, allocation and dispatch; the work is in the .cu files
// beside.

#include <ATen/ops/zeros.h>

#include "lattice_build.h"
#include "register.h"
#include "vertex_keys.h"
#include "views.h"

namespace densecrf::cuda {
namespace {

using at::Tensor;

template <class T>
BuildProblem<T> build_problem(const BuildInputs& inputs) {
  BuildProblem<T> problem{};
  problem.grid = inputs.grid;
  problem.batch = inputs.batch();
  problem.d = static_cast<int>(inputs.dimension());
  problem.axes = inputs.coordinates ? static_cast<int>(inputs.shape.size()) : 0;
  for (int a = 0; a < problem.axes; ++a) problem.shape[a] = inputs.shape[inputs.shape.size() - 1 - a];
  const GuideView guide = guide_view(inputs.guide, 0);
  problem.guide_type = guide.type;
  problem.guide = guide.data;
  problem.image_stride = inputs.guide.stride(0);
  problem.channel_stride = guide.channel_stride;
  problem.point_stride = guide.point_stride;
  problem.bandwidth = inputs.bandwidth.const_data_ptr<T>();
  problem.capacity = inputs.capacity;
  return problem;
}

template <class T>
void build(const BuildInputs& inputs, const LatticeTensors& out, const DeviceScope& scope) {
  const BuildProblem<T> problem = build_problem<T>(inputs);
  const LatticeOutputs<T> outputs{out.weights.mutable_data_ptr<T>(),
                                  out.local_ids.mutable_data_ptr<int16_t>(),
                                  out.point_order.mutable_data_ptr<int16_t>(),
                                  out.tile_offsets.mutable_data_ptr<int64_t>(),
                                  out.tile_vertices.mutable_data_ptr<int32_t>(),
                                  out.vertex_offsets.mutable_data_ptr<int64_t>(),
                                  out.vertex_partials.mutable_data_ptr<int64_t>(),
                                  out.neighbours.mutable_data_ptr<int32_t>(),
                                  out.image_offsets.mutable_data_ptr<int64_t>(),
                                  out.num_vertices.mutable_data_ptr<int64_t>(),
                                  out.splat_plan.mutable_data_ptr<int16_t>()};
  const Tensor memory = workspace(build_workspace(problem), inputs.bandwidth);
  build_lattice(problem, outputs, memory.mutable_data_ptr(), scope.stream());
}

LatticeTuple lattice_build(const Tensor& guide, const Tensor& bandwidth, at::IntArrayRef shape, bool coordinates,
                           int64_t capacity) {
  const DeviceScope scope(guide);
  const BuildInputs inputs = parse_build(guide, bandwidth, shape, coordinates, capacity);
  const int64_t entries = inputs.batch() * inputs.grid.points() * (inputs.dimension() + 1);
  TORCH_CHECK_VALUE(fits_tables(entries, capacity), "a lattice holds at most 2^32 - 2 entries and 2^31 - 2 ",
                    "vertices, got ", entries, " entries and capacity ", capacity,
                    ": split the batch, or the picture with max_memory");
  const auto out = LatticeTensors::empty(inputs.batch(), inputs.grid, inputs.dimension(), capacity,
                                         inputs.bandwidth.options(), true);
  dispatch(inputs.type(), [&](auto zero) { build<decltype(zero)>(inputs, out, scope); });
  return out.tuple();
}

Tensor lattice_filter(const Tensor& values, const std::optional<Tensor>& features,
                      const std::optional<Tensor>& splat_scale, const std::optional<Tensor>& slice_scale,
                      at::TensorList tensors, at::IntArrayRef shape, bool reverse) {
  const DeviceScope scope(values);
  const FilterInputs inputs = parse_filter(values, features, splat_scale, slice_scale, tensors, shape);
  const Tensor out = at::empty(values.sizes(), inputs.lattice.weights.options());
  if (out.numel() > 0)
    dispatch(inputs.type(), [&](auto zero) {
      using T = decltype(zero);
      const int64_t channels = values.size(2);
      const auto lattice = view_lattice<T>(inputs.lattice, inputs.grid);
      auto rows = Rows<T, T>::for_passes(lattice, values.size(0), channels, out);
      const BatchView<T> to{out.mutable_data_ptr<T>(), out.stride(0), out.stride(1), 1};
      for (int64_t first = 0; first < channels; first += kRowChannels<T>) {
        const int64_t count = rows.pass(view_values<T>(inputs.values), first, channels,
                                        view_scale<T>(inputs.splat_scale), reverse, scope.stream());
        slice(rows.buffers, static_cast<int>(count), view_scale<T>(inputs.slice_scale),
              ChannelFactor<T>{nullptr, 0, T(1)}, false, to.from(first), scope.stream());
      }
    });
  return out.to(values.scalar_type());
}

// Rows of vertices that there is room for but that no image has are zero.
Tensor lattice_splat(const Tensor& values, const std::optional<Tensor>& splat_scale, at::TensorList tensors,
                     at::IntArrayRef shape) {
  const DeviceScope scope(values);
  const FilterInputs inputs = parse_splat(values, splat_scale, tensors, shape);
  const int64_t channels = values.size(2);
  const Tensor rows = at::zeros({inputs.lattice.capacity(), channels}, inputs.lattice.weights.options());
  if (values.numel() > 0)
    dispatch(inputs.type(), [&](auto zero) {
      using T = decltype(zero);
      auto own = Rows<T, T>::for_passes(view_lattice<T>(inputs.lattice, inputs.grid), values.size(0), channels, rows);
      for (int64_t first = 0; first < channels; first += kRowChannels<T>) {
        const auto count = static_cast<int>(own.gathered(view_values<T>(inputs.values), first, channels,
                                                         view_scale<T>(inputs.splat_scale), scope.stream()));
        copy_rows(own.buffers.lattice, own.buffers.front, own.buffers.stride, count, rows.mutable_data_ptr<T>() + first,
                  channels, count, scope.stream());
      }
    });
  return rows.to(values.scalar_type());
}

Tensor lattice_slice(const Tensor& rows, const std::optional<Tensor>& slice_scale, at::TensorList tensors,
                     at::IntArrayRef shape) {
  const DeviceScope scope(rows);
  const SliceInputs inputs = parse_slice(rows, slice_scale, tensors, shape);
  const int64_t channels = inputs.channels();
  const Tensor out = at::empty(inputs.result_shape(), inputs.lattice.weights.options());
  if (out.numel() > 0)
    dispatch(inputs.type(), [&](auto zero) {
      using T = decltype(zero);
      const auto lattice = view_lattice<T>(inputs.lattice, inputs.grid);
      const int64_t width = row_stride(min_of(channels, kRowChannels<T>));
      const Tensor padded = at::empty({lattice.capacity, width}, out.options());
      const BatchView<T> to{out.mutable_data_ptr<T>(), out.stride(0), out.stride(1), 1};
      for (int64_t first = 0; first < channels; first += kRowChannels<T>) {
        const auto count = static_cast<int>(min_of(channels - first, kRowChannels<T>));
        const auto stride = static_cast<int>(row_stride(count));
        copy_rows(lattice, inputs.rows.const_data_ptr<T>() + first, channels, count, padded.mutable_data_ptr<T>(),
                  stride, stride, scope.stream());
        const RowBuffers<T, T> own{lattice, out.size(0), stride, padded.mutable_data_ptr<T>(), nullptr};
        slice(own, count, view_scale<T>(inputs.scale), ChannelFactor<T>{nullptr, 0, T(1)}, false, to.from(first),
              scope.stream());
      }
    });
  return out.to(rows.scalar_type());
}

Tensor lattice_keys(const Tensor& guide, const Tensor& bandwidth, at::TensorList tensors, at::IntArrayRef shape,
                    bool coordinates) {
  const DeviceScope scope(guide);
  const KeysInputs inputs = parse_keys(guide, bandwidth, tensors, shape, coordinates);
  const auto longs = bandwidth.options().dtype(at::kLong);
  const Tensor keys =
      at::zeros({inputs.lattice.capacity(), key_words(static_cast<int>(inputs.build.dimension()))}, longs);
  const Tensor fault = at::empty({1}, longs);
  dispatch(inputs.build.type(), [&](auto zero) {
    using T = decltype(zero);
    vertex_keys(build_problem<T>(inputs.build), view_lattice<T>(inputs.lattice, inputs.build.grid),
                reinterpret_cast<uint64_t*>(keys.mutable_data_ptr<int64_t>()),
                reinterpret_cast<uint64_t*>(fault.mutable_data_ptr<int64_t>()), scope.stream());
  });
  return keys;
}

Tensor lattice_feature_grad(const Tensor& values, const Tensor& grad, const Tensor& features, at::TensorList tensors,
                            at::IntArrayRef shape, bool reverse) {
  const DeviceScope scope(values);
  const FeatureGradInputs inputs = parse_feature_grad(values, grad, features, tensors, shape, reverse);
  const Tensor out = at::zeros(features.sizes(), inputs.lattice.weights.options());
  if (values.numel() > 0)
    dispatch(inputs.type(), [&](auto zero) {
      using T = decltype(zero);
      const int64_t channels = values.size(2);
      const auto lattice = view_lattice<T>(inputs.lattice, inputs.grid);
      const Tensor weight_grad = at::zeros(inputs.lattice.weights.sizes(), out.options());
      auto rows = Rows<T, T>::for_passes(lattice, values.size(0), channels, out);
      // At the slice grad is paired with the blurred values of each vertex, at the splat values with grad blurred
      // backwards.
      const BatchView<const T> sides[2] = {view_values<T>(inputs.values), view_values<T>(inputs.grad)};
      for (int side = 0; side < 2; ++side)
        for (int64_t first = 0; first < channels; first += kRowChannels<T>) {
          const int64_t count = rows.pass(sides[side], first, channels, {nullptr, 0}, side == 1, scope.stream());
          pair(rows.buffers, sides[1 - side].from(first), static_cast<int>(count), ChannelFactor<T>{nullptr, 0, T(1)},
               weight_grad.mutable_data_ptr<T>(), scope.stream());
        }
      weights_to_features(lattice, weight_grad.const_data_ptr<T>(), inputs.features.const_data_ptr<T>(),
                          out.mutable_data_ptr<T>(), scope.stream());
    });
  return out.to(features.scalar_type());
}

}  // namespace

}  // namespace densecrf::cuda

namespace densecrf {

void register_lattice(torch::Library& library) {
  library.impl("lattice_build", cuda::lattice_build);
  library.impl("lattice_filter", cuda::lattice_filter);
  library.impl("_lattice_feature_grad", cuda::lattice_feature_grad);
  library.impl("_lattice_splat", cuda::lattice_splat);
  library.impl("_lattice_slice", cuda::lattice_slice);
  library.impl("_lattice_keys", cuda::lattice_keys);
}

}  // namespace densecrf
