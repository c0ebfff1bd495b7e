// What the CPU glue of every operator shares: ATen's threads, and one image's view of a batched lattice.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "../lattice_inputs.h"
#include "buffer.h"
#include "lattice_view.h"
#include "parallel.h"

namespace densecrf {

inline Pool aten_pool() {
  return {[](int64_t count, int64_t grain, Pool::Body body, void* context) {
            at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
          },
          at::in_parallel_region() ? 1 : at::get_num_threads()};
}

// Calls function(image) for the images of a batch: one image a thread where there are enough of them, otherwise each
// image on all threads. Either way gives the same bits.
template <class Function>
void for_images(int64_t batch, Function function) {
  const int64_t grain = batch >= at::get_num_threads() ? 1 : batch;
  at::parallel_for(0, batch, std::max<int64_t>(grain, 1), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) function(b);
  });
}

inline at::Tensor with_huge_pages(at::Tensor tensor) {
  if (tensor.numel() > 0) prefer_huge_pages(tensor.mutable_data_ptr(), static_cast<int64_t>(tensor.nbytes()));
  return tensor;
}

inline at::Tensor empty_rows(at::IntArrayRef shape, const at::TensorOptions& options) {
  return with_huge_pages(at::empty(shape, options));
}

// A lattice of batch 1 serves every image.
template <class T>
LatticeView<T> view_image(const LatticeTensors& lattice, const TileGrid& grid, int64_t image) {
  const int64_t b = lattice.batch() == 1 ? 0 : image;
  const int64_t entries = grid.points() * (lattice.dimension() + 1);
  const int64_t* images = lattice.image_offsets.const_data_ptr<int64_t>();
  const int64_t first = images[b];
  return {static_cast<int>(lattice.dimension()),
          grid,
          lattice.weights.const_data_ptr<T>() + b * entries,
          lattice.local_ids.const_data_ptr<int16_t>() + b * entries,
          lattice.point_order.const_data_ptr<int16_t>() + b * grid.points(),
          lattice.tile_offsets.const_data_ptr<int64_t>() + b * grid.tiles(),
          lattice.tile_vertices.const_data_ptr<int32_t>(),
          lattice.vertex_offsets.const_data_ptr<int64_t>() + first,
          lattice.vertex_partials.const_data_ptr<int64_t>(),
          lattice.neighbours.const_data_ptr<int32_t>() + 2 * first,
          2 * lattice.capacity(),
          first,
          images[b + 1] - first};
}

}  // namespace densecrf
