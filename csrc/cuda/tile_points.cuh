// The points of one tile as the threads of a block meet them.
#pragma once

#include "block.cuh"
#include "row_storage.cuh"
#include "splat_slice.h"

namespace densecrf::cuda {

// The caller's number of the point at a position of a tile.
__device__ __forceinline__ int64_t raster_of(const TileGrid& grid, const Tile& tile, int position) {
  return grid.raster(tile, position / tile.cols) + position % tile.cols;
}

// One tile of one image of the values, and where the lattice keeps it.
struct TilePlace {
  Tile tile;
  int64_t image;        // of the values
  int64_t first_point;  // in the tables of the lattice, which may serve several images
  int64_t index;        // in tile_offsets

  template <class T>
  __device__ TilePlace(const LatticeView<T>& lattice, int64_t block) {
    image = block / lattice.grid.tiles();
    const int64_t t = block % lattice.grid.tiles(), own = lattice.image_of(image);
    tile = lattice.grid.tile(t);
    first_point = own * lattice.grid.points() + tile.first;
    index = own * lattice.grid.tiles() + t;
  }

  template <class T>
  __device__ int position(const LatticeView<T>& lattice, int entry) const {
    const int order = lattice.point_order[first_point + entry];
    return order < 0 ? ~order : order;
  }
  __device__ int64_t raster(const TileGrid& grid, int position) const { return raster_of(grid, tile, position); }
};

// a / divisor for a below kTilePoints · divisor and divisors up to kMaxDimension + 1, by one multiplication.
struct SmallDivisor {
  unsigned factor;
  HOST_DEVICE explicit SmallDivisor(int divisor) : factor((1u << 20) / divisor + 1) {}
  HOST_DEVICE int divide(int a) const { return static_cast<int>(static_cast<unsigned>(a) * factor >> 20); }
};

// Vectors of a point's row in shared memory: an odd number, so that rows begin in different banks.
HOST_DEVICE constexpr int tile_stride(int vectors) { return vectors | 1; }

// How many threads share a sum of the splat: as many as keep the block busy, so that the long sums of a flat tile,
// which has few vertices, are divided. The same for every run, because it follows from the lattice alone.
__device__ __forceinline__ int lanes_of_sum(int sums) {
  int lanes = 1;
  while (lanes < kWarpThreads && sums * lanes * 2 <= 4 * kBlockThreads) lanes *= 2;
  return lanes;
}

// Partials of one tile from its points' values in shared memory, each summed in an order that the plan gives. For each
// entry `positions` holds its position in the tile, and for each position `scales` its factor. The whole block calls
// it.
template <class T, class S, int V>
__device__ __forceinline__ void splat_tile(const RowBuffers<T, S>& rows, const TilePlace& place,
                                           const Vector<T, V>* values, const int16_t* positions, const T* scales) {
  const LatticeView<T>& lattice = rows.lattice;
  const int vectors = rows.stride / V, entries = place.tile.points() * lattice.corners();
  const int64_t first_entry = place.first_point * lattice.corners(), first = lattice.tile_offsets[place.index];
  const auto vertices = static_cast<int>(lattice.tile_offsets[place.index + 1] - first);
  const int16_t* order = lattice.splat_plan + first_entry;
  const int16_t* starts = order + lattice.batch * lattice.image_entries();
  const T* weights = lattice.weights + first_entry;
  const SmallDivisor corners(lattice.corners());
  S* partials = rows.partials(place.image) + first * rows.stride;
  const int sums = vertices * vectors, lanes = lanes_of_sum(sums), lane = threadIdx.x % lanes;
  for (int begin = 0; begin < sums; begin += kBlockThreads / lanes) {
    const int own = begin + threadIdx.x / lanes, u = own / vectors, q = own % vectors;
    Vector<T, V> sum{};
    if (own < sums) {
      const int end = u + 1 < vertices ? starts[u + 1] : entries;
#pragma unroll 4
      for (int i = starts[u] + lane; i < end; i += lanes) {
        const int entry = order[i], p = positions[corners.divide(entry)];
        add_scaled(sum, weights[entry] * scales[p], values[p * tile_stride(vectors) + q]);
      }
    }
    for (int step = lanes / 2; step > 0; step /= 2)
      for (int c = 0; c < V; ++c) sum.of[c] += __shfl_xor_sync(kAllLanes, sum.of[c], step);
    if (own < sums && lane == 0) store_row(partials + u * rows.stride + q * V, sum);
  }
}

}  // namespace densecrf::cuda
