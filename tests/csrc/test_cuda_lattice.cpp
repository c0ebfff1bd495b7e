// The CUDA kernels of the lattice, run by the emulator, against the CPU's on the same images: the tables bit for bit,
// what is filtered with them to rounding, and everything bit for bit from schedule to schedule.
#include "cpu/lattice_filter.h"
#include "cuda/splat_slice.h"
#include "cuda_images.h"
#include "emulator.h"

using namespace densecrf;

namespace {

// [B, N, C]
template <class T>
std::vector<T> filter_emulated(const Image& image, const Tables<T>& tables, const std::vector<T>& values, int channels,
                               bool reverse) {
  Rows<T> rows(view(image, tables), image.batch, channels);
  const int64_t points = image.grid.points();
  std::vector<T> out(values.size());
  cuda::splat(rows.buffers, cuda::BatchView<const T>{values.data(), points * channels, channels, 1}, channels,
              cuda::PointScale<T>{nullptr, 0}, {});
  cuda::RowBatch<T, T> batch{{rows.buffers}, 1};
  cuda::gather_and_blur(batch, reverse, {});
  cuda::slice(batch.of[0], channels, cuda::PointScale<T>{nullptr, 0}, cuda::ChannelFactor<T>{nullptr, 0, T(1)}, false,
              cuda::BatchView<T>{out.data(), points * channels, channels, 1}, {});
  return out;
}

template <class T>
std::vector<T> filter_on_cpu(const Image& image, const Tables<T>& tables, const std::vector<T>& values, int channels,
                             bool reverse) {
  std::vector<T> out(values.size());
  const int64_t points = image.grid.points(), size = points * channels;
  for (int64_t b = 0; b < image.batch; ++b) {
    const int64_t first = tables.image_offsets[b], entries = b * points * (image.d + 1);
    const LatticeView<T> lattice{image.d,
                                 image.grid,
                                 tables.weights.data() + entries,
                                 tables.local_ids.data() + entries,
                                 tables.order.data() + b * points,
                                 tables.tile_offsets.data() + b * image.grid.tiles(),
                                 tables.tile_vertices.data(),
                                 tables.vertex_offsets.data() + first,
                                 tables.vertex_partials.data(),
                                 tables.neighbours.data() + 2 * first,
                                 2 * tables.capacity,
                                 first,
                                 tables.image_offsets[b + 1] - first};
    filter_image(lattice, ValuesView<T>{values.data() + b * size, channels, 1}, channels,
                 static_cast<const T*>(nullptr), static_cast<const T*>(nullptr), reverse, serial_pool(),
                 out.data() + b * size);
  }
  return out;
}

template <class T>
void check_lattice(const Image& image) {
  const Tables<T> expected = build_on_cpu<T>(image);
  const std::vector<T> values = noise<T>(image.batch * image.grid.points() * 5, 1);
  // Rounding of sums over the points of a vertex and of the blur; measured below 1e-6 and 1e-15.
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-13;
  std::vector<std::vector<T>> results;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    emulator::set_seed(seed);
    Tables<T> tables = build_emulated<T>(image, expected.vertices);
    CHECK(tables.vertices == expected.vertices);
    for (int reverse = 0; reverse < 2; ++reverse) {
      results.push_back(filter_emulated(image, tables, values, 5, reverse));
      CHECK(difference(results.back(), filter_on_cpu(image, expected, values, 5, reverse)) < tolerance);
    }
    tables.trim();
    CHECK(tables == expected);
    CHECK(results[results.size() - 2] == results[0] && results.back() == results[1]);
  }
}

void check_capacity() {
  const Image image(20, 30, 5, 2, 1);
  const int64_t vertices = build_on_cpu<float>(image).vertices;
  const Tables<float> tables = build_emulated<float>(image, vertices - 1);
  CHECK(tables.vertices == -static_cast<int64_t>(fault_word(Fault::capacity, static_cast<uint64_t>(vertices))));
  // Nothing beyond the tables is read, and no number looks like a result.
  const std::vector<float> values = noise<float>(image.grid.points() * 3, 1);
  for (const float y : filter_emulated(image, tables, values, 3, false)) CHECK(std::isnan(y));
}

}  // namespace

int main() {
  for (const Image& image : {Image(17, 33, 5, 2, 2), Image(20, 35, 2, 2, 1), Image(1, 300, 4, 1, 2),
                             Image(5, 40, 8, 0, 2), Image(1, 70, 12, 0, 1), Image(3, 1, 7, 2, 1)}) {
    check_lattice<float>(image);
    check_lattice<double>(image);
  }
  check_capacity();
}
