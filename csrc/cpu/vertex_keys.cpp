#include <memory>
#include <stdexcept>
#include <vector>

#include "lattice_build.h"
#include "simplex_keys.h"
#include "vertex_rows.h"

namespace densecrf {
namespace {

template <class T>
void tile_keys(const LatticeView<T>& lattice, int64_t t, const TileSimplices<T>& simplices, uint64_t* keys) {
  const int words = key_words(lattice.d);
  const Tile tile = lattice.grid.tile(t);
  const TileEntries<T> entries = tile_entries(lattice, tile);
  const SimplexKeys<0> simplex(lattice.d);
  for (int e = 0; e < entries.points; ++e) {
    if (entries.order[e] < 0) continue;  // of the simplex before
    simplex.each(simplices, entries.order[e], [&](int k, const uint64_t* key) {
      const int64_t partial = lattice.tile_offsets[t] + entries.local_ids[e * entries.vertices_per_point + k];
      const int64_t v = lattice.tile_vertices[partial] - lattice.first_vertex;
      if (lattice.vertex_partials[lattice.vertex_offsets[v]] == partial)  // its first tile: one owner for each key
        std::copy_n(key, words, keys + v * words);
    });
  }
}

}  // namespace

template <class T>
void vertex_keys(const FeatureSource<T>& source, const LatticeView<T>& lattice, const Pool& pool, uint64_t* keys) {
  const int d = lattice.d;
  std::vector<T> scale(d);
  for (int i = 0; i < d; ++i) scale[i] = elevation_scale<T>(i, d);
  pool.parallel_for(lattice.grid.tiles(), 4, [&](int64_t begin, int64_t end) {
    const auto simplices = std::make_unique<TileSimplices<T>>();
    std::vector<T> features(static_cast<size_t>(d) * kTilePoints);
    for (int64_t t = begin; t < end; ++t) {
      const Tile tile = lattice.grid.tile(t);
      source.load(tile, features.data());
      if (!kernels<T>().enclose(features.data(), scale.data(), d, tile.points(), simplices.get()))
        throw std::invalid_argument("features must be those of the lattice: finite, with keys below 2^20 in magnitude");
      tile_keys(lattice, t, *simplices, keys);
    }
  });
}

template void vertex_keys(const FeatureSource<float>&, const LatticeView<float>&, const Pool&, uint64_t*);
template void vertex_keys(const FeatureSource<double>&, const LatticeView<double>&, const Pool&, uint64_t*);

}  // namespace densecrf
