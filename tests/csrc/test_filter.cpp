// Building and filtering one image without torch: a lattice so small that it can be filtered by hand, any number of
// threads, and the exponential against the library's.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "lattice_build.h"
#include "lattice_filter.h"
#include "mean_field.h"
#include "threads.h"

using namespace densecrf;

namespace {

// The tables of one image, as the operators lay them out for a batch of one.
struct Built {
  Built(int64_t rows, int64_t cols, int d, const std::vector<float>& features, const Pool& pool)
      : grid{rows, cols}, d(d), weights(grid.points() * (d + 1)), local_ids(weights.size()), order(grid.points()) {
    const std::vector<float> ones(d, 1.0f);
    const GuideView guide{GuideType::float32, features.data(), d, grid.points(), 1};
    const FeatureSource<float> source{guide, ones.data(), d, {rows, cols}, false, grid};
    const ImageVertices image = embed_image(source, pool, {weights.data(), local_ids.data(), order.data()});
    CHECK(image.error.kind == BuildError::Kind::none);
    vertices = image.table.size();
    tile_offsets.resize(grid.tiles() + 1);
    tile_vertices.resize(image.tile_vertices.size());
    vertex_offsets.resize(vertices + 1);
    vertex_partials.resize(tile_vertices.size());
    neighbours.resize(2 * vertices * (d + 1));
    tabulate_image(image, d, pool,
                   {0, 0, tile_offsets.data(), tile_vertices.data(), vertex_offsets.data(), vertex_partials.data(),
                    neighbours.data(), 2 * vertices});
    tile_offsets.back() = vertex_offsets.back() = static_cast<int64_t>(tile_vertices.size());
  }

  LatticeView<float> view() const {
    return {d,
            grid,
            weights.data(),
            local_ids.data(),
            order.data(),
            tile_offsets.data(),
            tile_vertices.data(),
            vertex_offsets.data(),
            vertex_partials.data(),
            neighbours.data(),
            2 * vertices,
            0,
            vertices};
  }

  std::vector<float> filter(const std::vector<float>& values, int64_t channels, const Pool& pool) const {
    std::vector<float> out(values.size());
    filter_image(view(), ValuesView<float>{values.data(), channels, 1}, channels, static_cast<const float*>(nullptr),
                 static_cast<const float*>(nullptr), false, pool, out.data());
    return out;
  }

  TileGrid grid;
  int d;
  std::vector<float> weights;
  std::vector<int16_t> local_ids, order;
  std::vector<int64_t> tile_offsets, vertex_offsets, vertex_partials;
  std::vector<int32_t> tile_vertices, neighbours;
  int64_t vertices = 0;
};

// One point on vertex 0 of a triangle, by hand: axis 0 joins vertices 2 and 0, axis 1 joins 1 and 2, axis 2 joins 0 and
// 1; (8, 0, 0) becomes (8, 0, 4), then (8, 2, 4), then (9, 6, 4), and the slice divides by 1 + 1/4.
void one_point_is_blurred_by_hand() {
  const Built built(1, 1, 2, {0.0f, 0.0f}, serial_pool());
  CHECK(built.vertices == 3);
  const auto out = built.filter({8.0f}, 1, serial_pool());
  CHECK(std::abs(out[0] - 9.0f / 1.25f) < 1e-5f);
}

void results_do_not_depend_on_threads() {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(0.0f, 30.0f);
  const int64_t rows = 70, cols = 83;
  for (const int d : {2, 5, 8})
    for (const int64_t channels : {1, 2, 4, 21, 40}) {
      std::vector<float> features(d * rows * cols), values(rows * cols * channels);
      for (float& f : features) f = uniform(random);
      for (float& v : values) v = uniform(random);
      const Built one(rows, cols, d, features, serial_pool());
      const auto expected = one.filter(values, channels, serial_pool());
      for (const int count : {2, 3, 7}) {
        const Built many(rows, cols, d, features, threads(count));
        CHECK(many.tile_vertices == one.tile_vertices && many.neighbours == one.neighbours);
        CHECK(many.vertex_partials == one.vertex_partials && many.order == one.order);
        CHECK(many.filter(values, channels, threads(count)) == expected);
      }
    }
}

template <class T>
void exponential_is_accurate(T lowest, T tolerance) {
  for (int i = 0; i <= 100000; ++i) {
    const T x = lowest * static_cast<T>(i) / 100000;
    const T exact = std::exp(x);
    CHECK(std::abs(exponential(x) - exact) <= tolerance * exact);
  }
  CHECK(exponential(-std::numeric_limits<T>::infinity()) == T(0));
  CHECK(exponential(T(0)) == T(1));
  CHECK(std::isnan(exponential(std::numeric_limits<T>::quiet_NaN())));
}

}  // namespace

int main() {
  one_point_is_blurred_by_hand();
  results_do_not_depend_on_threads();
  exponential_is_accurate<float>(-87.0f, 2 * std::numeric_limits<float>::epsilon());
  exponential_is_accurate<double>(-708.0, 2 * std::numeric_limits<double>::epsilon());
}
