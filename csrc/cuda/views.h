// From torch's tensors to what the kernels read.
#pragma once

#include "../lattice_inputs.h"
#include "feature_gradient.h"
#include "scope.h"

namespace densecrf::cuda {

template <class T>
LatticeView<T> view_lattice(const LatticeTensors& lattice, const TileGrid& grid) {
  TORCH_CHECK_VALUE(lattice.has_splat_plan(),
                    "a lattice must be built on the device where it filters, got one without a ", "splat plan");
  return {grid,
          lattice.batch(),
          lattice.capacity(),
          static_cast<int>(lattice.dimension()),
          lattice.weights.const_data_ptr<T>(),
          lattice.local_ids.const_data_ptr<int16_t>(),
          lattice.point_order.const_data_ptr<int16_t>(),
          lattice.tile_offsets.const_data_ptr<int64_t>(),
          lattice.tile_vertices.const_data_ptr<int32_t>(),
          lattice.vertex_offsets.const_data_ptr<int64_t>(),
          lattice.vertex_partials.const_data_ptr<int64_t>(),
          lattice.neighbours.const_data_ptr<int32_t>(),
          lattice.num_vertices.const_data_ptr<int64_t>(),
          lattice.splat_plan.const_data_ptr<int16_t>()};
}

// [B, N, C], any strides.
template <class T>
BatchView<const T> view_values(const at::Tensor& values) {
  return {values.const_data_ptr<T>(), values.stride(0), values.stride(1), values.stride(2)};
}

// [B, C, N], any strides.
template <class T>
BatchView<const T> view_channels(const at::Tensor& values) {
  return {values.const_data_ptr<T>(), values.stride(0), values.stride(2), values.stride(1)};
}

// [B or 1, N], contiguous, or undefined.
template <class T>
PointScale<T> view_scale(const at::Tensor& scale) {
  if (!scale.defined()) return {nullptr, 0};
  return {scale.const_data_ptr<T>(), scale.size(0) == 1 ? 0 : scale.size(1)};
}

// Rows for each vertex of a lattice, with the memory that they take.
template <class T, class S>
struct Rows {
  Rows(const LatticeView<T>& lattice, int64_t images, int64_t stride, const at::Tensor& like)
      : buffers{lattice, images, static_cast<int>(stride), nullptr, nullptr},
        front(workspace(buffers.front_size() * sizeof(S), like)),
        back(workspace(buffers.back_size() * sizeof(S), like)) {
    TORCH_CHECK_VALUE(images * lattice.grid.tiles() < INT32_MAX && images <= kMaxGridRows / kMaxTogether,
                      "a batch holds at most ", kMaxGridRows / kMaxTogether, " images and 2^31 tiles, got ", images,
                      " images: split the batch");
    buffers.front = static_cast<S*>(front.mutable_data_ptr());
    buffers.back = static_cast<S*>(back.mutable_data_ptr());
  }

  // Rows for as many of the channels as pass through the lattice at a time.
  static Rows for_passes(const LatticeView<T>& lattice, int64_t images, int64_t channels, const at::Tensor& like) {
    return Rows(lattice, images, row_stride(min_of(channels, kRowChannels<T>)), like);
  }

  // Splats and gathers the channels of `values` that start at `first`; returns how many they are.
  int64_t gathered(const BatchView<const T>& values, int64_t first, int64_t channels, const PointScale<T>& scale,
                   cudaStream_t stream) {
    const int64_t count = min_of(channels - first, kRowChannels<T>);
    buffers.stride = static_cast<int>(row_stride(count));
    splat(buffers, values.from(first), static_cast<int>(count), scale, stream);
    RowBatch<T, S> batch{{buffers}, 1};
    gather(batch, stream);
    return count;
  }

  // Splats, gathers and blurs the channels of `values` that start at `first`; returns how many they are.
  int64_t pass(const BatchView<const T>& values, int64_t first, int64_t channels, const PointScale<T>& scale,
               bool reverse, cudaStream_t stream) {
    const int64_t count = min_of(channels - first, kRowChannels<T>);
    buffers.stride = static_cast<int>(row_stride(count));
    splat(buffers, values.from(first), static_cast<int>(count), scale, stream);
    RowBatch<T, S> batch{{buffers}, 1};
    gather_and_blur(batch, reverse, stream);
    buffers = batch.of[0];
    return count;
  }

  RowBuffers<T, S> buffers;
  at::Tensor front, back;
};

}  // namespace densecrf::cuda
