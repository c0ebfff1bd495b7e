// The ten tensors of a lattice, checked: what the glue of every device starts from.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "tiles.h"

namespace densecrf {

constexpr int64_t kLatticeTensors = 10;

inline TileGrid grid_of(at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(!shape.empty(), "grid must name at least one axis, got none");
  int64_t rows = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    TORCH_CHECK_VALUE(shape[i] >= 0, "grid must not be negative, got ", shape);
    if (i + 1 < shape.size()) rows *= shape[i];
  }
  return {rows, shape.back()};
}

struct LatticeTensors {
  at::Tensor weights, local_ids, point_order, tile_offsets, tile_vertices, vertex_offsets, vertex_partials, neighbours,
      image_offsets, num_vertices;

  int64_t batch() const { return weights.size(0); }
  int64_t dimension() const { return weights.size(2) - 1; }
  int64_t capacity() const { return neighbours.size(1); }

  static LatticeTensors unpack(at::TensorList tensors, const TileGrid& grid) {
    TORCH_CHECK_VALUE(static_cast<int64_t>(tensors.size()) == kLatticeTensors, "a lattice is ", kLatticeTensors,
                      " tensors, as lattice_build returns them, got ", tensors.size());
    const LatticeTensors lattice{tensors[0], tensors[1], tensors[2], tensors[3], tensors[4],
                                 tensors[5], tensors[6], tensors[7], tensors[8], tensors[9]};
    lattice.check(grid);
    return lattice;
  }

 private:
  void check(const TileGrid& grid) const {
    const auto expect = [](const at::Tensor& tensor, const char* name, std::vector<int64_t> shape,
                           at::ScalarType type) {
      TORCH_CHECK_TYPE(tensor.scalar_type() == type, "lattice tensor ", name, " must be ", type, ", got ",
                       tensor.scalar_type());
      TORCH_CHECK_VALUE(tensor.sizes() == at::IntArrayRef(shape) && tensor.is_contiguous(), "lattice tensor ", name,
                        " must be contiguous of shape ", at::IntArrayRef(shape), ", got ", tensor.sizes());
    };
    TORCH_CHECK_VALUE(weights.dim() == 3 && weights.size(2) >= 2, "lattice weights must be [B, N, d + 1], got ",
                      weights.sizes());
    TORCH_CHECK_VALUE(neighbours.dim() == 3, "lattice neighbours must be [d + 1, capacity, 2], got ",
                      neighbours.sizes());
    const auto type = weights.scalar_type();
    TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, "lattice weights must be float or double, got ", type);
    const int64_t b = batch(), entries = grid.points() * weights.size(2);
    expect(weights, "weights", {b, grid.points(), weights.size(2)}, type);
    expect(local_ids, "local_ids", {b, grid.points(), weights.size(2)}, at::kShort);
    expect(point_order, "point_order", {b, grid.points()}, at::kShort);
    expect(tile_offsets, "tile_offsets", {b * grid.tiles() + 1}, at::kLong);
    expect(tile_vertices, "tile_vertices", {b * entries}, at::kInt);
    expect(vertex_offsets, "vertex_offsets", {capacity() + 1}, at::kLong);
    expect(vertex_partials, "vertex_partials", {b * entries}, at::kLong);
    expect(neighbours, "neighbours", {weights.size(2), capacity(), 2}, at::kInt);
    expect(image_offsets, "image_offsets", {b + 1}, at::kLong);
    expect(num_vertices, "num_vertices", {}, at::kLong);
  }
};

}  // namespace densecrf
