// Building the lattice of one image on the CPU, torch-free: embed and hash the points, then tabulate the neighbours of
// every vertex and the partials that it gathers.
#pragma once

#include <cstdint>
#include <vector>

#include "../guide.h"
#include "../tiles.h"
#include "lattice_view.h"
#include "parallel.h"
#include "vertex_table.h"

namespace densecrf {

// Features of a point: its grid coordinates from the last axis on, where wanted, then its guide channels, each divided
// by its bandwidth.
template <class T>
struct FeatureSource {
  GuideView guide;
  const T* bandwidth;
  int d;
  std::vector<int64_t> shape;
  bool coordinates;
  TileGrid grid;

  // Fills features[d][kTilePoints] for one tile; entries past its last point repeat that point.
  void load(const Tile& tile, T* features) const;
};

// What the data can get wrong; `feature` is already divided by the bandwidth.
struct BuildError {
  enum class Kind { none, not_finite, out_of_range } kind = Kind::none;
  int64_t point = 0;
  int dimension = 0;
  double feature = 0;
};

// The vertices of one image and each tile's list of them, with ids that count from this image's first vertex.
struct ImageVertices {
  VertexTable table{1};
  std::vector<int64_t> tile_offsets;
  std::vector<int32_t> tile_vertices;
  BuildError error;
};

// What is written per point of one image, in the order that TileEntries describes.
template <class T>
struct PointTables {
  T* weights;          // [N, d + 1]
  int16_t* local_ids;  // [N, d + 1]
  int16_t* order;      // [N]
};

// Writes the tables of the points and returns the vertices. The result does not depend on the number of
// threads: each takes a run of tiles, and runs are merged in order, so ids stay in first-touch order.
template <class T>
ImageVertices embed_image(const FeatureSource<T>& source, const Pool& pool, const PointTables<T>& out);

// Where one image's tables go in those of the batch.
struct ImageTables {
  int64_t first_vertex, first_partial;
  int64_t* tile_offsets;     // [tiles] of this image
  int32_t* tile_vertices;    // [partials] of this image
  int64_t* vertex_offsets;   // [vertices] of this image
  int64_t* vertex_partials;  // [partials] of this image
  int32_t* neighbours;       // this image's first vertex on axis 0
  int64_t neighbour_stride;  // from axis to axis
};

void tabulate_image(const ImageVertices& image, int d, const Pool& pool, const ImageTables& out);

// Keys [vertices, words] of the vertices of one image, from the features that its lattice was built from: where the
// lattices of several parts of a picture meet, equal keys are one vertex.
template <class T>
void vertex_keys(const FeatureSource<T>& source, const LatticeView<T>& lattice, const Pool& pool, uint64_t* keys);

}  // namespace densecrf
