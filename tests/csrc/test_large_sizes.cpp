// Index arithmetic for a picture of 30,000 x 30,000 points: the kernels of the CPU at its last tile. Its tables are
// mapped but never touched elsewhere, so that addresses are real and memory is not needed.
#include <sys/mman.h>

#include <cmath>
#include <cstdio>
#include <vector>

#include "check.h"
#include "lattice_build.h"
#include "tile_rows.h"
#include "vertex_rows.h"

using namespace densecrf;

namespace {

constexpr int64_t kSide = 30000;
constexpr int kDimension = 5, kCorners = kDimension + 1, kChannels = 21;
const TileGrid kGrid{kSide, kSide};

// Room for `size` elements, zero; only pages that are written take memory.
template <class T>
class Sparse {
 public:
  explicit Sparse(int64_t size) : bytes_(static_cast<size_t>(size) * sizeof(T)) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    data_ = memory == MAP_FAILED ? nullptr : static_cast<T*>(memory);
  }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  ~Sparse() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  T* data() const { return data_; }

 private:
  size_t bytes_;
  T* data_;
};

void tiles_of_the_picture() {
  CHECK(kGrid.points() == 900000000 && kGrid.points() * kCorners == 5400000000);
  CHECK(kGrid.tiles() == 1875 * 1875);
  const Tile last = kGrid.tile(kGrid.tiles() - 1);
  CHECK(last.row == 29984 && last.col == 29984 && last.rows == 16 && last.cols == 16);
  CHECK(last.first == 900000000 - 256 && kGrid.raster(last, 15) + 16 == 900000000);
}

void features_of_the_last_tile() {
  const Sparse<uint8_t> image(3 * kGrid.points());
  if (image.data() == nullptr)
    return std::puts("skipped: this system promises no memory that it does not have"), void();
  for (int c = 0; c < 3; ++c) image.data()[(c + 1) * kGrid.points() - 1] = static_cast<uint8_t>(200 + c);
  const float bandwidth[kDimension] = {2, 2, 1, 1, 1};
  const FeatureSource<float> source{
      {GuideType::uint8, image.data(), 3, kGrid.points(), 1}, bandwidth, kDimension, {kSide, kSide}, true, kGrid};
  std::vector<float> features(kDimension * kTilePoints);
  source.load(kGrid.tile(kGrid.tiles() - 1), features.data());
  const float expected[kDimension] = {29999.0f / 2, 29999.0f / 2, 200, 201, 202};
  for (int i = 0; i < kDimension; ++i) CHECK(features[i * kTilePoints + kTilePoints - 1] == expected[i]);
  CHECK(features[0] == 29984.0f / 2 && features[kTilePoints] == 29984.0f / 2 && features[2 * kTilePoints] == 0);
}

// One point with all its weight on one vertex: what is splatted there, at the end of every table, is sliced again.
void splat_and_slice_the_last_tile() {
  const int64_t last = kGrid.tiles() - 1, points = kGrid.points(), stride = row_stride<float>(kChannels);
  const Tile tile = kGrid.tile(last);
  const Sparse<float> weights(points * kCorners), planes(points * kChannels), pixels(points * kChannels);
  const Sparse<int16_t> local_ids(points * kCorners), order(points);
  const Sparse<int64_t> tile_offsets(kGrid.tiles() + 1);
  // The last tile's list of vertices is the last of a table of 5.4e9 partials.
  const Sparse<int32_t> tile_vertices(points * kCorners);
  for (const void* data :
       {static_cast<void*>(weights.data()), static_cast<void*>(planes.data()), static_cast<void*>(pixels.data()),
        static_cast<void*>(local_ids.data()), static_cast<void*>(order.data()), static_cast<void*>(tile_offsets.data()),
        static_cast<void*>(tile_vertices.data())})
    if (data == nullptr) return std::puts("skipped: this system promises no memory that it does not have"), void();
  LatticeView<float> lattice{};
  lattice.d = kDimension;
  lattice.grid = kGrid;
  lattice.weights = weights.data();
  lattice.local_ids = local_ids.data();
  lattice.order = order.data();
  lattice.tile_offsets = tile_offsets.data();
  lattice.tile_vertices = tile_vertices.data();
  tile_offsets.data()[last] = points * kCorners - 1;
  tile_offsets.data()[last + 1] = points * kCorners;
  tile_vertices.data()[points * kCorners - 1] = 2;
  for (int p = 0; p < kTilePoints; ++p) order.data()[tile.first + p] = static_cast<int16_t>(p);
  weights.data()[(points - 1) * kCorners] = 1;

  for (int c = 0; c < kChannels; ++c) planes.data()[(c + 1) * points - 1] = static_cast<float>(c + 1);
  std::vector<float> x(tile_rows_size(stride)), partial(stride), rows(3 * stride);
  load_channels(kGrid, tile, planes.data(), points, int64_t{1}, kChannels, stride, 0.0f, x.data());
  kernels<float>().splat(tile_entries(lattice, tile), x.data(), stride, nullptr, partial.data());
  for (int c = 0; c < kChannels; ++c) CHECK(partial[c] == static_cast<float>(c + 1));

  std::copy(partial.begin(), partial.end(), rows.begin() + 2 * stride);
  std::fill(x.begin(), x.end(), 0.0f);
  kernels<float>().slice(tile_entries(lattice, tile), lattice.tile_vertices + lattice.tile_offsets[last], rows.data(),
                         stride, nullptr, 1.0f, x.data());
  store_channels(kGrid, tile, x.data(), kChannels, stride, 2.0f, planes.data());
  store_rows(kGrid, tile, x.data(), kChannels, stride, pixels.data());
  for (int c = 0; c < kChannels; ++c) {
    CHECK(planes.data()[(c + 1) * points - 1] == 2.0f * static_cast<float>(c + 1));
    CHECK(pixels.data()[(points - 1) * kChannels + c] == static_cast<float>(c + 1));
  }
  CHECK(planes.data()[0] == 0 && pixels.data()[0] == 0);
}

}  // namespace

int main() {
  tiles_of_the_picture();
  features_of_the_last_tile();
  splat_and_slice_the_last_tile();
}
