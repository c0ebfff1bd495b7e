// What the steps of a build hand to one another in global memory.
#pragma once

#include "lattice_build.h"

namespace densecrf::cuda {

// A vertex of the list of one tile is known by its place: that of the tile's entries plus its place in the list.
using Place = uint32_t;
constexpr uint64_t kEmptySlot = ~uint64_t(0);

struct BuildTables {
  uint64_t* slots;  // [slots] table of vertices: 32 bits of hash, then the least place
  uint64_t slot_mask;
  uint64_t* keys;           // [entries][words] by place
  uint32_t* slot_of;        // [entries] by place; later the partials of each vertex, in any order
  int32_t* id_of;           // [entries] by place, where it is the vertex's first
  int32_t* tile_counts;     // [tiles] vertices of each tile's list
  int32_t* tile_new;        // [tiles] those that no tile before has
  int64_t* tile_first;      // [tiles + 1] id of the first new vertex
  int64_t* tile_sums;       // [tiles + 1] partials of the new vertices, then where they start
  int32_t* partial_counts;  // [capacity] partials of each vertex
  Place* place_of;          // [capacity] first place of each vertex
  uint64_t* fault;          // [1]
  char* tile_work;          // work of each block, where it does not fit shared memory
  int64_t tile_work_bytes;
};

}  // namespace densecrf::cuda
