#include "lattice_filter.h"

#include <memory>
#include <stdexcept>
#include <vector>

#include "lattice_build.h"
#include "vertex_rows.h"

namespace densecrf {
namespace {

// Channels filtered at a time: bounds the memory of partials and vertex rows for any number of channels.
constexpr int64_t kChannelChunk = 128;

template <class T>
void load_values(const LatticeView<T>& lattice, const Tile& tile, const ValuesView<T>& values, int64_t channels,
                 int64_t stride, T* rows) {
  if (values.channel_stride == 1 && values.point_stride == channels)
    load_rows(lattice.grid, tile, values.data, channels, stride, rows);
  else
    load_channels(lattice.grid, tile, values.data, values.channel_stride, values.point_stride, channels, stride, T(0),
                  rows);
}

template <class T>
const T* load_scale(const LatticeView<T>& lattice, const Tile& tile, const T* scale, T* buffer) {
  if (scale == nullptr) return nullptr;
  for_rows(lattice.grid, tile, [&](int64_t n, int p, int length) { std::copy_n(scale + n, length, buffer + p); });
  return buffer;
}

template <class T>
VertexRows<T> splatted(const LatticeView<T>& lattice, const ValuesView<T>& values, int64_t channels, const T* scale,
                       const Pool& pool) {
  const int64_t stride = row_stride<T>(channels);
  VertexRows<T> vertices(lattice, stride);
  pool.parallel_for(lattice.grid.tiles(), 4, [&](int64_t begin, int64_t end) {
    Buffer<T> rows(tile_rows_size(stride));
    T scales[kTilePoints];
    for (int64_t t = begin; t < end; ++t) {
      const Tile tile = lattice.grid.tile(t);
      load_values(lattice, tile, values, channels, stride, rows.data());
      vertices.clear_tile(t);
      kernels<T>().splat(tile_entries(lattice, tile), rows.data(), stride, load_scale(lattice, tile, scale, scales),
                         vertices.tile_partials(t));
    }
  });
  return vertices;
}

template <class T>
VertexRows<T> blurred(const LatticeView<T>& lattice, const ValuesView<T>& values, int64_t channels, const T* scale,
                      bool reverse, const Pool& pool) {
  VertexRows<T> vertices = splatted(lattice, values, channels, scale, pool);
  VertexRows<T>::gather_and_blur(&vertices, 1, reverse, pool);
  return vertices;
}

// Channels from `first` on of the values of every point, from rows of vertices whose ids are those of the lattice.
template <class T>
void slice_rows(const LatticeView<T>& lattice, const T* rows, int64_t stride, const T* scale, int64_t count,
                int64_t channels, int64_t first, const Pool& pool, T* out) {
  pool.parallel_for(lattice.grid.tiles(), 4, [&](int64_t begin, int64_t end) {
    Buffer<T> values(tile_rows_size(stride));
    T scales[kTilePoints];
    for (int64_t t = begin; t < end; ++t) {
      const Tile tile = lattice.grid.tile(t);
      std::fill_n(values.data(), tile.points() * stride, T(0));
      kernels<T>().slice(tile_entries(lattice, tile), lattice.tile_vertices + lattice.tile_offsets[t], rows, stride,
                         load_scale(lattice, tile, scale, scales), slice_gain<T>(lattice.d), values.data());
      for_rows(lattice.grid, tile, [&](int64_t n, int p, int length) {
        for (int i = 0; i < length; ++i)
          copy_row(values.data() + (p + i) * stride, count, out + (n + i) * channels + first);
      });
    }
  });
}

template <class T>
ValuesView<T> channels_from(const ValuesView<T>& values, int64_t first) {
  return {values.data + first * values.channel_stride, values.point_stride, values.channel_stride};
}

}  // namespace

template <class T>
void filter_image(const LatticeView<T>& lattice, const ValuesView<T>& values, int64_t channels, const T* splat_scale,
                  const T* slice_scale, bool reverse, const Pool& pool, T* out) {
  for (int64_t first = 0; first < channels; first += kChannelChunk) {
    const int64_t count = std::min(channels - first, kChannelChunk);
    const VertexRows<T> vertices = blurred(lattice, channels_from(values, first), count, splat_scale, reverse, pool);
    slice_rows(lattice, vertices.rows(), row_stride<T>(count), slice_scale, count, channels, first, pool, out);
  }
}

template <class T>
void splat_image(const LatticeView<T>& lattice, const ValuesView<T>& values, int64_t channels, const T* scale,
                 const Pool& pool, T* rows) {
  for (int64_t first = 0; first < channels; first += kChannelChunk) {
    const int64_t count = std::min(channels - first, kChannelChunk), stride = row_stride<T>(count);
    VertexRows<T> vertices = splatted(lattice, channels_from(values, first), count, scale, pool);
    vertices.gather(pool);
    const T* own = vertices.rows() + lattice.first_vertex * stride;
    pool.parallel_for(lattice.vertices, 512, [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) copy_row(own + v * stride, count, rows + v * channels + first);
    });
  }
}

template <class T>
void slice_image(const LatticeView<T>& lattice, const T* rows, int64_t channels, const T* scale, const Pool& pool,
                 T* out) {
  for (int64_t first = 0; first < channels; first += kChannelChunk) {
    const int64_t count = std::min(channels - first, kChannelChunk), stride = row_stride<T>(count);
    Buffer<T> padded(lattice.vertices * stride);
    pool.parallel_for(lattice.vertices, 512, [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) {
        copy_row(rows + v * channels + first, count, padded.data() + v * stride);
        std::fill_n(padded.data() + v * stride + count, stride - count, T(0));
      }
    });
    slice_rows(lattice, padded.data() - lattice.first_vertex * stride, stride, scale, count, channels, first, pool,
               out);
  }
}

template <class T>
void feature_grad_image(const LatticeView<T>& lattice, const ValuesView<T>& values, const ValuesView<T>& grad,
                        int64_t channels, const T* features, const Pool& pool, T* out) {
  const int d = lattice.d, vertices = d + 1;
  const int64_t points = lattice.grid.points();
  // Gradients of the barycentric weights: at the slice each pairs grad with the blurred values of its vertex, at the
  // splat the values with the grad blurred backwards.
  Buffer<T> weight_grad(points * vertices);
  std::fill_n(weight_grad.data(), points * vertices, T(0));
  for (int64_t first = 0; first < channels; first += kChannelChunk) {
    const int64_t count = std::min(channels - first, kChannelChunk);
    const int64_t stride = row_stride<T>(count);
    const ValuesView<T> chunks[2] = {channels_from(values, first), channels_from(grad, first)};
    for (int side = 0; side < 2; ++side) {
      const VertexRows<T> blurs = blurred<T>(lattice, chunks[side], count, nullptr, side == 1, pool);
      pool.parallel_for(lattice.grid.tiles(), 4, [&](int64_t begin, int64_t end) {
        Buffer<T> rows(tile_rows_size(stride));
        for (int64_t t = begin; t < end; ++t) {
          const Tile tile = lattice.grid.tile(t);
          load_values(lattice, tile, chunks[1 - side], count, stride, rows.data());
          kernels<T>().pair(tile_entries(lattice, tile), blurs.tile_vertices(t), blurs.rows(), stride, rows.data(),
                            slice_gain<T>(d), weight_grad.data() + tile.first * vertices);
        }
      });
    }
  }

  weights_to_features(lattice, weight_grad.data(), features, pool, out);
}

template <class T>
void weights_to_features(const LatticeView<T>& lattice, const T* weight_grad, const T* features, const Pool& pool,
                         T* out) {
  const int d = lattice.d, vertices = d + 1;
  const int64_t points = lattice.grid.points();
  const std::vector<T> ones(d, T(1));
  const GuideView guide{sizeof(T) == 4 ? GuideType::float32 : GuideType::float64, features, d, points, 1};
  const FeatureSource<T> source{guide, ones.data(), d, {points}, false, lattice.grid};
  std::vector<T> scale(d);
  for (int i = 0; i < d; ++i) scale[i] = elevation_scale<T>(i, d);
  pool.parallel_for(lattice.grid.tiles(), 4, [&](int64_t begin, int64_t end) {
    const auto simplices = std::make_unique<TileSimplices<T>>();
    std::vector<T> loaded(static_cast<size_t>(d) * kTilePoints), gradient(d);
    for (int64_t t = begin; t < end; ++t) {
      const Tile tile = lattice.grid.tile(t);
      source.load(tile, loaded.data());
      if (!kernels<T>().enclose(loaded.data(), scale.data(), d, tile.points(), simplices.get()))
        throw std::invalid_argument("features must be those of the lattice: finite, with keys below 2^20 in magnitude");
      const T* grad_of[kTilePoints];  // by position in the tile
      for (int e = 0; e < tile.points(); ++e)
        grad_of[TileEntries<T>::position(lattice.order[tile.first + e])] = weight_grad + (tile.first + e) * vertices;
      for_rows(lattice.grid, tile, [&](int64_t n, int p, int length) {
        for (int j = 0; j < length; ++j) {
          feature_gradient(grad_of[p + j], simplices->rank + p + j, kTilePoints, scale.data(), d, gradient.data());
          for (int i = 0; i < d; ++i) out[i * points + n + j] += gradient[i];
        }
      });
    }
  });
}

#define DENSECRF_INSTANTIATE(T)                                                                                \
  template void filter_image(const LatticeView<T>&, const ValuesView<T>&, int64_t, const T*, const T*, bool,   \
                             const Pool&, T*);                                                                 \
  template void splat_image(const LatticeView<T>&, const ValuesView<T>&, int64_t, const T*, const Pool&, T*);  \
  template void slice_image(const LatticeView<T>&, const T*, int64_t, const T*, const Pool&, T*);              \
  template void feature_grad_image(const LatticeView<T>&, const ValuesView<T>&, const ValuesView<T>&, int64_t, \
                                   const T*, const Pool&, T*);                                                 \
  template void weights_to_features(const LatticeView<T>&, const T*, const T*, const Pool&, T*);
DENSECRF_INSTANTIATE(float)
DENSECRF_INSTANTIATE(double)

}  // namespace densecrf
