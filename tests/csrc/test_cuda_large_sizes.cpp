// Index arithmetic for a picture of 30,000 x 30,000 points: places, rows and memory of the kernels of CUDA.
#include "check.h"
#include "cuda/lattice_build.h"
#include "cuda/lattice_rows.h"
#include "cuda/splat_slice.h"
#include "cuda/tile_points.cuh"

using namespace densecrf;
using namespace densecrf::cuda;

namespace {

constexpr int64_t kSide = 30000, kPoints = kSide * kSide;
constexpr int kDimension = 5, kCorners = kDimension + 1;
const TileGrid kGrid{kSide, kSide};

// An address that is only reckoned with.
template <class T>
T* nowhere() {
  return reinterpret_cast<T*>(uintptr_t{1} << 20);
}

BuildProblem<float> problem(const TileGrid& grid) {
  BuildProblem<float> result{};
  result.grid = grid;
  result.batch = 1;
  result.d = kDimension;
  result.capacity = grid.points();
  return result;
}

void the_whole_has_more_places_than_numbers() {
  CHECK(problem(kGrid).image_entries() == 5400000000 && problem(kGrid).tiles() == 1875 * 1875);
  CHECK(!fits_tables(problem(kGrid).image_entries(), kPoints));
  CHECK(fits_tables(3 * kPoints, kPoints));             // two dimensions
  CHECK(fits_tables(kCorners * 512 * kSide, kPoints));  // a strip
  CHECK(!fits_tables(5, INT32_MAX));
}

// 2^33 slots, keys of two words, four words of 32 bits for places and vertices: 277 GB, none of it wrapped.
void workspace_is_counted_in_64_bits() {
  const int64_t entries = kPoints * kCorners, slots = int64_t{1} << 33;
  const int64_t expected = 8 * slots + 16 * entries + 8 * entries + 8 * kPoints;
  const int64_t small = 64 * kGrid.tiles();  // four arrays of the tiles
  CHECK(build_workspace(problem(kGrid)) > expected);
  CHECK(build_workspace(problem(kGrid)) < expected + small);
}

void rows_of_vertices() {
  LatticeView<float> lattice{};
  lattice.grid = kGrid;
  lattice.batch = 1;
  lattice.capacity = kPoints;
  lattice.d = kDimension;
  const RowBuffers<float, float> rows{lattice, 1, 24, nowhere<float>(), nowhere<float>()};
  CHECK(rows.max_partials() == 5400000000);
  CHECK(rows.back_size() == 5400000000 * 24 && rows.front_size() == 5400000000 * 24);
  lattice.d = 2;
  const RowBuffers<float, float> shared{lattice, 2, 24, nowhere<float>(), nowhere<float>()};
  CHECK(shared.back_size() == 2 * 3 * kPoints * 24 && shared.front_size() == 2 * kPoints * 24);
  CHECK(shared.vertices(1) - shared.vertices(0) == kPoints * 24);
}

void the_last_tile() {
  LatticeView<float> lattice{};
  lattice.grid = kGrid;
  lattice.batch = 1;
  lattice.d = kDimension;
  const TilePlace place(lattice, kGrid.tiles() - 1);
  CHECK(place.first_point == kPoints - 256 && place.raster(kGrid, 255) == kPoints - 1);
  const TilePlace next(lattice, 2 * kGrid.tiles() - 1);  // of the second image, which shares the lattice
  CHECK(next.image == 1 && next.first_point == kPoints - 256);
  const BatchView<char> planes{nowhere<char>(), 21 * kPoints, 1, kPoints};
  CHECK(planes.from(20).at(1, kPoints - 1) - planes.data == 42 * kPoints - 1);
}

}  // namespace

int main() {
  the_whole_has_more_places_than_numbers();
  workspace_is_counted_in_64_bits();
  rows_of_vertices();
  the_last_tile();
}
