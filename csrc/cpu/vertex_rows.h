// The rows of a lattice's vertices while one filter runs: partial sums of tiles, then the two sides of the blur.
#pragma once

#include <algorithm>
#include <utility>

#include "buffer.h"
#include "kernels.h"
#include "parallel.h"
#include "tile_rows.h"

namespace densecrf {

template <class T>
TileEntries<T> tile_entries(const LatticeView<T>& lattice, const Tile& tile) {
  const int64_t first = tile.first * (lattice.d + 1);
  return {tile.points(), lattice.d + 1, lattice.weights + first, lattice.local_ids + first, lattice.order + tile.first};
}

template <class T>
class VertexRows {
 public:
  VertexRows(const LatticeView<T>& lattice, int64_t stride)
      : lattice_(lattice),
        stride_(stride),
        partials_(lattice.partials() * stride),
        front_((lattice.vertices + 1) * stride) {
    std::fill_n(front_.data(), stride, T(0));
  }

  // The tile's own rows, to be cleared and splatted to by whoever owns the tile.
  T* tile_partials(int64_t tile) const {
    return partials_.data() + (lattice_.tile_offsets[tile] - lattice_.first_partial()) * stride_;
  }
  void clear_tile(int64_t tile) const {
    std::fill_n(tile_partials(tile), (lattice_.tile_offsets[tile + 1] - lattice_.tile_offsets[tile]) * stride_, T(0));
  }
  const int32_t* tile_vertices(int64_t tile) const { return lattice_.tile_vertices + lattice_.tile_offsets[tile]; }

  // Rows by vertex id as tile_vertices has it, after blur().
  const T* rows() const { return front_.data() + (1 - lattice_.first_vertex) * stride_; }

  // Fetches ahead what the slice of a tile will read: its rows are scattered, and the slice's branches, which nobody
  // can predict, keep the processor from running ahead to them by itself.
  void prefetch_tile(int64_t tile) const {
    if (tile >= lattice_.grid.tiles()) return;
    const int32_t* end = tile_vertices(tile + 1);
    for (const int32_t* v = tile_vertices(tile); v < end; ++v) {
      const char* row = reinterpret_cast<const char*>(rows() + *v * stride_);
      for (int64_t at = 0; at < stride_ * static_cast<int64_t>(sizeof(T)); at += 64) __builtin_prefetch(row + at, 0, 2);
    }
  }

  // Sums the partials of every vertex; that is all where other vertices than this lattice's are to be blurred, too.
  void gather(const Pool& pool) {
    pool.parallel_for(lattice_.vertices, kGrain, [this](int64_t begin, int64_t end) { gather(begin, end); });
  }

  // Sums the partials of every vertex, then blurs along the axes in turn, or in the opposite order: the adjoint.
  // Several lattices go together, so that one parallel region serves each step.
  static void gather_and_blur(VertexRows* lattices, int count, bool reverse, const Pool& pool) {
    int64_t vertices = 0;
    int axes = 0;
    for (int i = 0; i < count; ++i) {
      lattices[i].make_back();
      vertices += lattices[i].lattice_.vertices;
      axes = std::max(axes, lattices[i].lattice_.d + 1);
    }
    const auto each = [&](auto step) {
      pool.parallel_for(vertices, kGrain, [&](int64_t begin, int64_t end) {
        for (int i = 0; i < count && end > 0; ++i) {
          const int64_t size = lattices[i].lattice_.vertices;
          if (begin < size) step(lattices[i], begin, std::min(end, size));
          begin = std::max<int64_t>(0, begin - size);
          end -= size;
        }
      });
    };
    each([](VertexRows& v, int64_t begin, int64_t end) { v.gather(begin, end); });
    for (int axis = 0; axis < axes; ++axis) {
      each([axis, reverse](VertexRows& v, int64_t begin, int64_t end) {
        if (axis <= v.lattice_.d) v.blur(reverse ? v.lattice_.d - axis : axis, begin, end);
      });
      for (int i = 0; i < count; ++i)
        if (axis <= lattices[i].lattice_.d) std::swap(lattices[i].front_, lattices[i].back_);
    }
  }

 private:
  static constexpr int64_t kGrain = 512;

  void make_back() {
    if (back_.data() != nullptr) return;
    back_ = Buffer<T>((lattice_.vertices + 1) * stride_);
    std::fill_n(back_.data(), stride_, T(0));
  }

  void gather(int64_t begin, int64_t end) {
    kernels<T>().gather(begin, end, lattice_.vertex_offsets, lattice_.vertex_partials, lattice_.first_partial(),
                        partials_.data(), stride_, front_.data() + stride_);
  }
  void blur(int axis, int64_t begin, int64_t end) {
    kernels<T>().blur(begin, end, lattice_.neighbours + axis * lattice_.neighbour_stride, lattice_.first_vertex,
                      front_.data() + stride_, stride_, back_.data() + stride_);
  }

  const LatticeView<T>& lattice_;
  int64_t stride_;
  Buffer<T> partials_, front_, back_;
};

}  // namespace densecrf
