#include "lattice_build.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "kernels.h"
#include "simplex_keys.h"

namespace densecrf {
namespace {

template <class T, class G>
void load_channel(const TileGrid& grid, const Tile& tile, const G* channel, int64_t stride, T bandwidth, T* out) {
  for (int r = 0; r < tile.rows; ++r, out += tile.cols) {
    const G* source = channel + grid.raster(tile, r) * stride;
    for (int c = 0; c < tile.cols; ++c) out[c] = static_cast<T>(source[c * stride]) / bandwidth;
  }
}

// Coordinate `axis`, counted from the last axis of the shape.
template <class T>
void load_coordinate(const std::vector<int64_t>& shape, const Tile& tile, int axis, T bandwidth, T* out) {
  int64_t below = 1;  // rows of the grid per step along this axis
  for (int a = 1; a < axis; ++a) below *= shape[shape.size() - 1 - a];
  for (int r = 0; r < tile.rows; ++r, out += tile.cols) {
    const int64_t fixed = axis ? (tile.row + r) / below % shape[shape.size() - 1 - axis] : 0;
    for (int c = 0; c < tile.cols; ++c) out[c] = static_cast<T>(axis ? fixed : tile.col + c) / bandwidth;
  }
}

template <class T>
BuildError find_error(const FeatureSource<T>& source, const Tile& tile, const T* features) {
  BuildError error{BuildError::Kind::out_of_range, 0, 0, 0.0};
  for (int p = 0; p < tile.points(); ++p)
    for (int i = 0; i < source.d; ++i) {
      const double f = features[i * kTilePoints + p];
      const int64_t point = source.grid.raster(tile, p / tile.cols) + p % tile.cols;
      if (!std::isfinite(f)) return {BuildError::Kind::not_finite, point, i, f};
      if (std::abs(f) > std::abs(error.feature)) error = {BuildError::Kind::out_of_range, point, i, f};
    }
  return error;
}

// A run of consecutive tiles, hashed by one thread into a table of its own.
struct Run {
  explicit Run(int words) : table(words) {}
  VertexTable table;
  std::vector<int32_t> tile_vertices, counts;
  BuildError error;
  // Per vertex: the last tile that saw it, and its place in that tile's list.
  struct Seen {
    int64_t tile = -1;
    int16_t local = 0;
  };
  std::vector<Seen> seen;
};

// The points of one tile grouped by simplex: groups of most points first, else in order of their first point, and
// points in order inside a group. Sizes that repeat let the processor predict where the loop over a group ends.
class SimplexGroups {
 public:
  int16_t count = 0;                    // simplices in the tile
  int16_t representative[kTilePoints];  // a point of each simplex
  int16_t order[kTilePoints];           // as TileEntries has it
  int16_t simplex[kTilePoints];         // of each entry

  template <class T>
  void group(const TileSimplices<T>& simplices, int points, int d) {
    constexpr int slots = 2 * kTilePoints;
    int16_t table[slots], size[kTilePoints], own[kTilePoints];
    std::fill_n(table, slots, int16_t(-1));
    count = 0;
    for (int p = 0; p < points; ++p) {
      uint32_t at = simplices.hash[p] >> 16;
      while (table[at % slots] >= 0 && !simplices.same(p, representative[table[at % slots]], d)) ++at;
      int16_t& slot = table[at % slots];
      if (slot < 0) {
        representative[count] = static_cast<int16_t>(p);
        size[count] = 0;
        slot = count++;
      }
      own[p] = slot;
      ++size[slot];
    }
    int start[kTilePoints + 1] = {}, next[kTilePoints];  // start: of the groups of each size
    for (int s = 0; s < count; ++s) start[size[s]] += size[s];
    for (int n = points, first = 0; n > 0; --n) first += std::exchange(start[n], first);
    for (int s = 0; s < count; ++s) next[s] = std::exchange(start[size[s]], start[size[s]] + size[s]);
    for (int p = 0; p < points; ++p) {
      const int entry = next[own[p]]++;
      order[entry] = static_cast<int16_t>(representative[own[p]] == p ? p : ~p);
      simplex[entry] = own[p];
    }
  }
};

// Inserts the vertices of the tile's simplices and writes each simplex's places in the tile's list: [count, d + 1].
template <int W, class T>
void hash_tile(const TileSimplices<T>& simplices, const SimplexGroups& groups, int64_t tile, int d, Run& run,
               int16_t* local_ids) {
  const SimplexKeys<W> simplex(d);
  int16_t count = 0;
  for (int s = 0; s < groups.count; ++s)
    simplex.each(simplices, groups.representative[s], [&](int, const uint64_t* key) {
      const int32_t id = run.table.insert<W>(key);
      if (id == static_cast<int32_t>(run.seen.size())) run.seen.push_back({});
      Run::Seen& seen = run.seen[id];
      if (seen.tile != tile) {
        seen = {tile, count++};
        run.tile_vertices.push_back(id);
      }
      *local_ids++ = seen.local;
    });
  run.counts.push_back(count);
}

template <class T>
void embed_run(const FeatureSource<T>& source, int64_t begin, int64_t end, Run& run, const PointTables<T>& out) {
  const int d = source.d, vertices = d + 1;
  const auto simplices = std::make_unique<TileSimplices<T>>();
  const auto groups = std::make_unique<SimplexGroups>();
  std::vector<T> features(static_cast<size_t>(d) * kTilePoints), scale(d);
  std::vector<int16_t> local_ids(static_cast<size_t>(vertices) * kTilePoints);
  for (int i = 0; i < d; ++i) scale[i] = elevation_scale<T>(i, d);
  for (int64_t t = begin; t < end; ++t) {
    const Tile tile = source.grid.tile(t);
    source.load(tile, features.data());
    if (!kernels<T>().enclose(features.data(), scale.data(), d, tile.points(), simplices.get())) {
      run.error = find_error(source, tile, features.data());
      return;
    }
    groups->group(*simplices, tile.points(), d);
    if (d <= kFieldsPerWord)
      hash_tile<1>(*simplices, *groups, t, d, run, local_ids.data());
    else if (d <= 2 * kFieldsPerWord)
      hash_tile<2>(*simplices, *groups, t, d, run, local_ids.data());
    else
      hash_tile<0>(*simplices, *groups, t, d, run, local_ids.data());

    T* weights = out.weights + tile.first * vertices;
    int16_t* ids = out.local_ids + tile.first * vertices;
    for (int e = 0; e < tile.points(); ++e) {
      const int p = TileEntries<T>::position(groups->order[e]);
      for (int k = 0; k < vertices; ++k) *weights++ = simplices->weight[k * kTilePoints + p];
      ids = std::copy_n(local_ids.data() + groups->simplex[e] * vertices, vertices, ids);
    }
    std::copy_n(groups->order, tile.points(), out.order + tile.first);
  }
}

// Ids of a later run's vertices in the table of the image, inserted in that run's own first-touch order.
std::vector<int32_t> merge_run(const Run& run, VertexTable& table) {
  std::vector<int32_t> ids(run.table.size());
  for (int64_t v = 0; v < run.table.size(); ++v) ids[v] = table.insert<0>(run.table.key(v));
  return ids;
}

bool near_limit(const uint64_t* key, int d) {
  for (int i = 0; i < d; ++i)
    if (std::abs(key_coordinate(key, i)) + d >= kKeyLimit) return true;
  return false;
}

template <int W>
void find_neighbours(const VertexTable& table, int d, int64_t begin, int64_t end, const ImageTables& out) {
  uint64_t moved[W ? W : kMaxDimension] = {};
  for (int64_t v = begin; v < end; ++v) {
    const uint64_t* key = table.key(v);
    const bool careful = near_limit(key, d);
    for (int axis = 0; axis <= d; ++axis) {
      if (careful && !key_has_neighbour(key, axis, d)) continue;
      key_neighbour(key, axis, d, moved);
      const int32_t found = table.find<W>(moved);
      if (found < 0) continue;
      int32_t* row = out.neighbours + axis * out.neighbour_stride;
      row[2 * v + 1] = static_cast<int32_t>(found + out.first_vertex);
      row[2 * static_cast<int64_t>(found)] = static_cast<int32_t>(v + out.first_vertex);
    }
  }
}

}  // namespace

template <class T>
void FeatureSource<T>::load(const Tile& tile, T* features) const {
  const int points = tile.points();
  const int first_channel = d - guide.channels;
  for (int i = 0; i < d; ++i, features += kTilePoints) {
    if (i < first_channel) {
      load_coordinate(shape, tile, i, bandwidth[i], features);
    } else {
      const int64_t offset = (i - first_channel) * guide.channel_stride;
      if (guide.type == GuideType::uint8)
        load_channel(grid, tile, static_cast<const uint8_t*>(guide.data) + offset, guide.point_stride, bandwidth[i],
                     features);
      else if (guide.type == GuideType::float32)
        load_channel(grid, tile, static_cast<const float*>(guide.data) + offset, guide.point_stride, bandwidth[i],
                     features);
      else
        load_channel(grid, tile, static_cast<const double*>(guide.data) + offset, guide.point_stride, bandwidth[i],
                     features);
    }
    std::fill(features + points, features + kTilePoints, features[points - 1]);
  }
}

template <class T>
ImageVertices embed_image(const FeatureSource<T>& source, const Pool& pool, const PointTables<T>& out) {
  const int64_t tiles = source.grid.tiles();
  const int64_t count = std::max<int64_t>(1, std::min<int64_t>(pool.threads, tiles));
  std::vector<Run> runs(count, Run(key_words(source.d)));
  pool.parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) embed_run(source, r * tiles / count, (r + 1) * tiles / count, runs[r], out);
  });

  ImageVertices image;
  image.tile_offsets.assign(1, 0);
  for (const Run& run : runs) {
    if (image.error.kind == BuildError::Kind::none) image.error = run.error;
    for (const int32_t n : run.counts) image.tile_offsets.push_back(image.tile_offsets.back() + n);
  }
  if (image.error.kind != BuildError::Kind::none) return image;
  image.table = std::move(runs[0].table);
  image.tile_vertices = std::move(runs[0].tile_vertices);
  for (int64_t r = 1; r < count; ++r) {
    const std::vector<int32_t> ids = merge_run(runs[r], image.table);
    for (const int32_t v : runs[r].tile_vertices) image.tile_vertices.push_back(ids[v]);
  }
  return image;
}

void tabulate_image(const ImageVertices& image, int d, const Pool& pool, const ImageTables& out) {
  const int64_t vertices = image.table.size();
  const auto partials = static_cast<int64_t>(image.tile_vertices.size());
  constexpr int64_t grain = 1024;
  pool.parallel_for(vertices, grain, [&](int64_t begin, int64_t end) {
    for (int axis = 0; axis <= d; ++axis)
      std::fill(out.neighbours + axis * out.neighbour_stride + 2 * begin,
                out.neighbours + axis * out.neighbour_stride + 2 * end, -1);
  });
  pool.parallel_for(vertices, grain, [&](int64_t begin, int64_t end) {
    if (d <= kFieldsPerWord)
      find_neighbours<1>(image.table, d, begin, end, out);
    else if (d <= 2 * kFieldsPerWord)
      find_neighbours<2>(image.table, d, begin, end, out);
    else
      find_neighbours<0>(image.table, d, begin, end, out);
  });

  for (size_t t = 0; t + 1 < image.tile_offsets.size(); ++t)
    out.tile_offsets[t] = out.first_partial + image.tile_offsets[t];
  for (int64_t i = 0; i < partials; ++i)
    out.tile_vertices[i] = static_cast<int32_t>(image.tile_vertices[i] + out.first_vertex);

  // Counting sort of the partials by vertex, ascending within each vertex.
  std::vector<int64_t> next(vertices + 1, 0);
  for (const int32_t v : image.tile_vertices) ++next[v + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  for (int64_t v = 0; v < vertices; ++v) out.vertex_offsets[v] = out.first_partial + next[v];
  for (int64_t i = 0; i < partials; ++i) out.vertex_partials[next[image.tile_vertices[i]]++] = out.first_partial + i;
}

template struct FeatureSource<float>;
template struct FeatureSource<double>;
template ImageVertices embed_image(const FeatureSource<float>&, const Pool&, const PointTables<float>&);
template ImageVertices embed_image(const FeatureSource<double>&, const Pool&, const PointTables<double>&);

}  // namespace densecrf
