// The lattice of one image as the kernels read it, and the arguments of the per-tile kernels.
#pragma once

#include <cstdint>

#include "../tiles.h"

namespace densecrf {

template <class T>
struct LatticeView {
  int d;
  TileGrid grid;
  const T* weights;                // [N, d + 1]  barycentric, internal order
  const int16_t* local_ids;        // [N, d + 1]  vertex in the tile's own list
  const int16_t* order;            // [N]         position in the tile, see TileEntries
  const int64_t* tile_offsets;     // [tiles + 1] into tile_vertices, of the whole batch
  const int32_t* tile_vertices;    // [partials]  of the whole batch; ids count from the first image
  const int64_t* vertex_offsets;   // [vertices + 1] of this image, into vertex_partials of the whole batch
  const int64_t* vertex_partials;  // [partials]  of the whole batch
  const int32_t* neighbours;       // [d + 1][capacity][2] of this image's first vertex
  int64_t neighbour_stride;        // 2 · capacity
  int64_t first_vertex;
  int64_t vertices;

  int64_t first_partial() const { return tile_offsets[0]; }
  int64_t partials() const { return tile_offsets[grid.tiles()] - tile_offsets[0]; }
};

// The points of one tile, those of one simplex next to each other: its rows are then read and written once for all of
// them. The simplices of most points come first. order[e] is the position in the tile of entry e, or ~position where e
// shares the simplex of the entry before.
template <class T>
struct TileEntries {
  int points;
  int vertices_per_point;    // d + 1
  const T* weights;          // [points, d + 1]
  const int16_t* local_ids;  // [points, d + 1]
  const int16_t* order;      // [points]

  static int position(int16_t order) { return order < 0 ? ~order : order; }
};

}  // namespace densecrf
