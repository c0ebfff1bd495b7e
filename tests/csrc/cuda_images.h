// Images whose lattices the emulated CUDA kernels and those of the CPU build, for the tests of the former. Every buffer
// is exactly as large as it has to be, so that a sanitizer sees each step beyond.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/lattice_build.h"
#include "cuda/lattice_build.h"
#include "cuda/lattice_rows.h"

namespace densecrf {

struct Image {
  TileGrid grid;
  int d, coordinates;  // of the dimensions, how many are coordinates of the grid
  int64_t batch;
  std::vector<uint8_t> guide;  // [B, d - coordinates, N]

  Image(int64_t rows, int64_t cols, int d, int coordinates, int64_t batch)
      : grid{rows, cols}, d(d), coordinates(coordinates), batch(batch), guide(batch * (d - coordinates) * rows * cols) {
    std::mt19937 random(7);
    uint8_t level = 0;  // runs of a few grey levels: points share simplices, and many lie on their faces
    for (auto& g : guide) g = level = random() % 3 ? level : static_cast<uint8_t>(40 * (random() % 6));
  }
  int64_t channels() const { return d - coordinates; }
  int64_t entries() const { return batch * grid.points() * (d + 1); }
  int64_t tiles() const { return batch * grid.tiles(); }
};

// The tensors of a lattice; of capacity for `vertices`.
template <class T>
struct Tables {
  Tables(const Image& image, int64_t capacity)
      : capacity(capacity),
        weights(image.entries()),
        local_ids(image.entries()),
        order(image.batch * image.grid.points()),
        tile_offsets(image.tiles() + 1),
        tile_vertices(image.entries()),
        vertex_offsets(capacity + 1),
        vertex_partials(image.entries()),
        neighbours(2 * capacity * (image.d + 1)),
        image_offsets(image.batch + 1),
        plan(2 * image.entries()) {}

  int64_t capacity, vertices = 0;
  std::vector<T> weights;
  std::vector<int16_t> local_ids, order;
  std::vector<int64_t> tile_offsets;
  std::vector<int32_t> tile_vertices;
  std::vector<int64_t> vertex_offsets, vertex_partials;
  std::vector<int32_t> neighbours;
  std::vector<int64_t> image_offsets;
  std::vector<int16_t> plan;

  void trim() {
    tile_vertices.resize(tile_offsets.back());
    vertex_partials.resize(tile_offsets.back());
  }
  bool operator==(const Tables& other) const {
    return vertices == other.vertices && weights == other.weights && local_ids == other.local_ids &&
           order == other.order && tile_offsets == other.tile_offsets && tile_vertices == other.tile_vertices &&
           vertex_offsets == other.vertex_offsets && vertex_partials == other.vertex_partials &&
           neighbours == other.neighbours && image_offsets == other.image_offsets;
  }
};

template <class T>
std::vector<T> bandwidths(const Image& image) {
  std::vector<T> widths(image.d, T(13));
  std::fill_n(widths.begin(), image.coordinates, T(5));
  return widths;
}

template <class T>
cuda::LatticeView<T> view(const Image& image, const Tables<T>& tables) {
  return {image.grid,
          image.batch,
          tables.capacity,
          image.d,
          tables.weights.data(),
          tables.local_ids.data(),
          tables.order.data(),
          tables.tile_offsets.data(),
          tables.tile_vertices.data(),
          tables.vertex_offsets.data(),
          tables.vertex_partials.data(),
          tables.neighbours.data(),
          &tables.vertices,
          tables.plan.data()};
}

template <class T>
Tables<T> build_emulated(const Image& image, int64_t capacity) {
  Tables<T> tables(image, capacity);
  const std::vector<T> widths = bandwidths<T>(image);
  cuda::BuildProblem<T> problem{};
  problem.grid = image.grid;
  problem.batch = image.batch;
  problem.d = image.d;
  problem.axes = image.coordinates;
  problem.shape[0] = image.grid.cols;
  problem.shape[1] = image.grid.rows;
  problem.guide_type = GuideType::uint8;
  problem.guide = image.guide.data();
  problem.image_stride = image.channels() * image.grid.points();
  problem.channel_stride = image.grid.points();
  problem.point_stride = 1;
  problem.bandwidth = widths.data();
  problem.capacity = capacity;
  std::vector<char> workspace(cuda::build_workspace(problem), 'x');
  cuda::build_lattice(problem,
                      {tables.weights.data(), tables.local_ids.data(), tables.order.data(), tables.tile_offsets.data(),
                       tables.tile_vertices.data(), tables.vertex_offsets.data(), tables.vertex_partials.data(),
                       tables.neighbours.data(), tables.image_offsets.data(), &tables.vertices, tables.plan.data()},
                      workspace.data(), {});
  return tables;
}

// The lattices of the images one after the other, as the operator of the CPU lays them out.
template <class T>
Tables<T> build_on_cpu(const Image& image) {
  Tables<T> tables(image, 0);
  const std::vector<T> widths = bandwidths<T>(image);
  std::vector<ImageVertices> images;
  const int64_t points = image.grid.points();
  for (int64_t b = 0; b < image.batch; ++b) {
    const GuideView guide{GuideType::uint8, image.guide.data() + b * image.channels() * points,
                          static_cast<int>(image.channels()), points, 1};
    const FeatureSource<T> source{
        guide, widths.data(), image.d, {image.grid.rows, image.grid.cols}, image.coordinates > 0, image.grid};
    const int64_t first = b * points * (image.d + 1);
    images.push_back(embed_image(source, serial_pool(),
                                 PointTables<T>{tables.weights.data() + first, tables.local_ids.data() + first,
                                                tables.order.data() + b * points}));
    CHECK(images.back().error.kind == BuildError::Kind::none);
    tables.vertices += images.back().table.size();
    tables.image_offsets[b + 1] = tables.vertices;
  }
  tables.capacity = tables.vertices;
  tables.vertex_offsets.resize(tables.vertices + 1);
  tables.neighbours.resize(2 * tables.vertices * (image.d + 1));
  int64_t partials = 0;
  for (int64_t b = 0; b < image.batch; ++b) {
    const int64_t first = tables.image_offsets[b];
    tabulate_image(
        images[b], image.d, serial_pool(),
        {first, partials, tables.tile_offsets.data() + b * image.grid.tiles(), tables.tile_vertices.data() + partials,
         tables.vertex_offsets.data() + first, tables.vertex_partials.data() + partials,
         tables.neighbours.data() + 2 * first, 2 * tables.vertices});
    partials += static_cast<int64_t>(images[b].tile_vertices.size());
  }
  tables.tile_offsets.back() = tables.vertex_offsets.back() = partials;
  tables.trim();
  return tables;
}

template <class T>
std::vector<T> noise(int64_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(size);
  for (T& value : values) value = static_cast<T>(normal(random));
  return values;
}

template <class T>
struct Rows {
  Rows(const cuda::LatticeView<T>& lattice, int64_t images, int channels)
      : buffers{lattice, images, static_cast<int>(cuda::row_stride(channels)), nullptr, nullptr},
        front(buffers.front_size()),
        back(buffers.back_size()) {
    buffers.front = front.data();
    buffers.back = back.data();
  }
  cuda::RowBuffers<T, T> buffers;
  std::vector<T> front, back;
};

// Largest difference in units of the largest number.
template <class T>
double difference(const std::vector<T>& a, const std::vector<T>& b) {
  double largest = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    CHECK(std::isfinite(a[i]) && std::isfinite(b[i]));
    largest = std::fmax(largest, std::fabs(static_cast<double>(a[i] - b[i])));
    scale = std::fmax(scale, std::fabs(static_cast<double>(b[i])));
  }
  return largest / scale;
}

}  // namespace densecrf
