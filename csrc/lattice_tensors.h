// The eleven tensors of a lattice, allocated and checked: what the glue of every device starts from.
#pragma once

#include <ATen/ops/empty.h>

#include <tuple>
#include <vector>

#include "tensor_checks.h"
#include "tiles.h"

namespace densecrf {

constexpr int64_t kLatticeTensors = 11;

using LatticeTuple = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

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
      image_offsets, num_vertices, splat_plan;

  int64_t batch() const { return weights.size(0); }
  int64_t dimension() const { return weights.size(2) - 1; }
  int64_t capacity() const { return neighbours.size(1); }
  bool has_splat_plan() const { return splat_plan.size(1) == local_ids.numel(); }

  // Uninitialised. `options` are those of the weights.
  static LatticeTensors empty(int64_t batch, const TileGrid& grid, int64_t dimension, int64_t capacity,
                              const at::TensorOptions& options, bool plans_splat) {
    const auto longs = options.dtype(at::kLong), ints = options.dtype(at::kInt), shorts = options.dtype(at::kShort);
    const int64_t entries = batch * grid.points() * (dimension + 1);
    return {at::empty({batch, grid.points(), dimension + 1}, options),
            at::empty({batch, grid.points(), dimension + 1}, shorts),
            at::empty({batch, grid.points()}, shorts),
            at::empty({batch * grid.tiles() + 1}, longs),
            at::empty({entries}, ints),
            at::empty({capacity + 1}, longs),
            at::empty({entries}, longs),
            at::empty({dimension + 1, capacity, 2}, ints),
            at::empty({batch + 1}, longs),
            at::empty({}, longs),
            at::empty({2, plans_splat ? entries : 0}, shorts)};
  }

  LatticeTuple tuple() const {
    return {weights,         local_ids,  point_order,   tile_offsets, tile_vertices, vertex_offsets,
            vertex_partials, neighbours, image_offsets, num_vertices, splat_plan};
  }

  static LatticeTensors unpack(at::TensorList tensors, const TileGrid& grid) {
    TORCH_CHECK_VALUE(static_cast<int64_t>(tensors.size()) == kLatticeTensors, "a lattice is ", kLatticeTensors,
                      " tensors, as lattice_build returns them, got ", tensors.size());
    const LatticeTensors lattice{tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], tensors[5],
                                 tensors[6], tensors[7], tensors[8], tensors[9], tensors[10]};
    lattice.check(grid);
    return lattice;
  }

 private:
  void check(const TileGrid& grid) const {
    const auto expect = [this](const at::Tensor& tensor, const char* name, std::vector<int64_t> shape,
                               at::ScalarType type) {
      TORCH_CHECK_VALUE(tensor.device() == weights.device(), "lattice tensor ", name,
                        " must be on the device of lattice weights, ", weights.device(), ", got ", tensor.device());
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
    // A list may be cut to the partials that there are.
    TORCH_CHECK_VALUE(tile_vertices.numel() <= b * entries, "lattice tensor tile_vertices must have at most ",
                      b * entries, " entries, got ", tile_vertices.sizes());
    expect(tile_vertices, "tile_vertices", {tile_vertices.numel()}, at::kInt);
    expect(vertex_offsets, "vertex_offsets", {capacity() + 1}, at::kLong);
    expect(vertex_partials, "vertex_partials", {tile_vertices.numel()}, at::kLong);
    expect(neighbours, "neighbours", {weights.size(2), capacity(), 2}, at::kInt);
    expect(image_offsets, "image_offsets", {b + 1}, at::kLong);
    expect(num_vertices, "num_vertices", {}, at::kLong);
    // Only some devices plan the splat; a lattice that comes from another one lacks the plan.
    const bool planned = splat_plan.dim() == 2 && splat_plan.size(1) > 0;
    expect(splat_plan, "splat_plan", {2, planned ? b * entries : 0}, at::kShort);
  }
};

}  // namespace densecrf
