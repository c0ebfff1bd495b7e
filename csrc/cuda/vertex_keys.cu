#include "vertex_keys.h"

#include "tile_embedding.cuh"
#include "tile_points.cuh"

namespace densecrf::cuda {
namespace {

// One thread for each simplex of a tile; a key is written by the tile of the vertex's first partial.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    keys_kernel(BuildProblem<T> problem, Scales<T> scales, LatticeView<T> lattice, uint64_t* keys, uint64_t* fault) {
  if (lattice.failed()) return;
  const TilePlace place(lattice, blockIdx.x);
  const int e = threadIdx.x, d = problem.d;
  if (e >= place.tile.points() || lattice.point_order[place.first_point + e] < 0) return;
  const int p = place.position(lattice, e);
  Simplex<T, kMaxDimension> simplex;
  enclose_point<T, 0>(problem, scales, place.image, place.tile.row + p / place.tile.cols,
                      place.tile.col + p % place.tile.cols, d, simplex, fault);
  const int16_t* local_ids = lattice.local_ids + (place.first_point + e) * lattice.corners();
  for (int k = 0; k <= d; ++k) {
    const int64_t partial = lattice.tile_offsets[place.index] + local_ids[k];
    const int64_t v = lattice.tile_vertices[partial];
    if (lattice.vertex_partials[lattice.vertex_offsets[v]] != partial) continue;
    for (int w = 0; w < key_words(d); ++w) {
      uint64_t key = static_cast<uint64_t>(k) * key_ones(w, d);
      for (int i = w * kFieldsPerWord; i < d && i < (w + 1) * kFieldsPerWord; ++i) {
        key += static_cast<uint64_t>(static_cast<int32_t>(simplex.remainder[i]) + kKeyLimit) * key_field(i);
        if (simplex.rank[i] > d - k) key -= static_cast<uint64_t>(d + 1) * key_field(i);
      }
      keys[v * key_words(d) + w] = key;
    }
  }
}

}  // namespace

template <class T>
void vertex_keys(const BuildProblem<T>& problem, const LatticeView<T>& lattice, uint64_t* keys, uint64_t* fault,
                 cudaStream_t stream) {
  Scales<T> scales{};
  for (int i = 0; i < problem.d; ++i) scales.of[i] = elevation_scale<T>(i, problem.d);
  launch(keys_kernel<T>, {problem.tiles()}, stream, problem, scales, lattice, keys, fault);
}

template void vertex_keys(const BuildProblem<float>&, const LatticeView<float>&, uint64_t*, uint64_t*, cudaStream_t);
template void vertex_keys(const BuildProblem<double>&, const LatticeView<double>&, uint64_t*, uint64_t*, cudaStream_t);

}  // namespace densecrf::cuda
