// Building the lattice of a batch of images on a GPU, torch-free and without waiting: every size but the capacity stays
// on the device.
#pragma once

#include "../guide.h"
#include "../lattice.h"
#include "../status.h"
#include "../tiles.h"
#include "launch.h"

namespace densecrf::cuda {

template <class T>
struct BuildProblem {
  TileGrid grid;
  int64_t batch;
  int d;
  int axes;                      // coordinates of the grid that are features, before the channels of the guide
  int64_t shape[kMaxDimension];  // of the grid, from its last axis on
  GuideType guide_type;
  const void* guide;  // [B, d - axes, N] with these strides, in elements
  int64_t image_stride, channel_stride, point_stride;
  const T* bandwidth;  // [d], on the device
  int64_t capacity;

  HOST_DEVICE int64_t image_entries() const { return grid.points() * (d + 1); }
  HOST_DEVICE int64_t tiles() const { return batch * grid.tiles(); }
};

// The tensors of a lattice, as schemas.def lists them.
template <class T>
struct LatticeOutputs {
  T* weights;                // [B, N, d + 1]
  int16_t* local_ids;        // [B, N, d + 1]
  int16_t* point_order;      // [B, N]
  int64_t* tile_offsets;     // [B · tiles + 1]
  int32_t* tile_vertices;    // [B · N (d + 1)]
  int64_t* vertex_offsets;   // [capacity + 1]
  int64_t* vertex_partials;  // [B · N (d + 1)]
  int32_t* neighbours;       // [d + 1, capacity, 2]
  int64_t* image_offsets;    // [B + 1]
  int64_t* num_vertices;     // []; minus a fault word where the lattice cannot be built
  int16_t* splat_plan;  // [2, B · N (d + 1)], each tile at the place of its entries: entries sorted by local vertex,
                        // and where those of each local vertex start
};

// Places of entries are 32 bits wide, and one number stands for none; ids of vertices have a sign.
HOST_DEVICE constexpr bool fits_tables(int64_t entries, int64_t capacity) {
  return entries < UINT32_MAX && capacity < INT32_MAX;
}

// Bytes that build_lattice needs beside its outputs; 16-byte aligned.
template <class T>
int64_t build_workspace(const BuildProblem<T>& problem);

template <class T>
void build_lattice(const BuildProblem<T>& problem, const LatticeOutputs<T>& out, void* workspace, cudaStream_t stream);

}  // namespace densecrf::cuda
