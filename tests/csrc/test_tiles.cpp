// The order of points: every point belongs to one place of one tile, and sizes beyond 32 bits do not wrap.
#include "tiles.h"

#include <vector>

#include "check.h"

using densecrf::Tile;
using densecrf::TileGrid;

namespace {

void every_point_is_visited_once(int64_t rows, int64_t cols) {
  const TileGrid grid{rows, cols};
  std::vector<int> visits(grid.points(), 0);
  int64_t next = 0;
  for (int64_t t = 0; t < grid.tiles(); ++t) {
    const Tile tile = grid.tile(t);
    CHECK(tile.first == next);
    CHECK(tile.points() >= 1 && tile.points() <= densecrf::kTilePoints);
    for (int r = 0; r < tile.rows; ++r)
      for (int c = 0; c < tile.cols; ++c) ++visits[grid.raster(tile, r) + c];
    next += tile.points();
  }
  CHECK(next == grid.points());
  for (const int count : visits) CHECK(count == 1);
}

void sizes_beyond_32_bits() {
  const TileGrid image{int64_t{1} << 20, (int64_t{1} << 20) + 5};
  CHECK(image.points() == (int64_t{1} << 40) + 5 * (int64_t{1} << 20));
  const Tile last = image.tile(image.tiles() - 1);
  CHECK(last.first + last.points() == image.points());
  CHECK(image.raster(last, last.rows - 1) + last.cols == image.points());

  const TileGrid line{1, int64_t{1} << 40};
  const Tile end = line.tile(line.tiles() - 1);
  CHECK(end.first + end.points() == line.points());
}

}  // namespace

int main() {
  for (const int64_t rows : {1, 2, 15, 16, 17, 33})
    for (const int64_t cols : {1, 5, 16, 31, 48, 257, 513}) every_point_is_visited_once(rows, cols);
  CHECK((TileGrid{0, 7}.tiles() == 0));
  sizes_beyond_32_bits();
}
