#include "splat_slice.h"

#include "tile_points.cuh"

namespace densecrf::cuda {
namespace {

template <class T, class S, int V>
__global__ void __launch_bounds__(kBlockThreads)
    splat_kernel(RowBuffers<T, S> rows, BatchView<const T> values, int channels, PointScale<T> scale) {
  DENSECRF_DYNAMIC_SHARED(T, tile_values);
  __shared__ T scales[kTilePoints];
  __shared__ int16_t positions[kTilePoints];
  const LatticeView<T>& lattice = rows.lattice;
  if (lattice.failed()) return;
  const TilePlace place(lattice, blockIdx.x);
  const int points = place.tile.points(), stride = tile_stride(rows.stride / V) * V;
  if (static_cast<int>(threadIdx.x) < points) {
    scales[threadIdx.x] = scale.at(place.image, place.raster(lattice.grid, threadIdx.x));
    positions[threadIdx.x] = static_cast<int16_t>(place.position(lattice, threadIdx.x));
  }
  // Whichever of points and channels lie next to each other in memory go to neighbouring threads.
  const bool by_channel = values.channel_stride == 1;
  for (int i = threadIdx.x; i < points * rows.stride; i += kBlockThreads) {
    const int p = by_channel ? i / rows.stride : i % points, c = by_channel ? i % rows.stride : i / points;
    tile_values[p * stride + c] =
        c < channels ? values.at(place.image, place.raster(lattice.grid, p))[c * values.channel_stride] : T(0);
  }
  __syncthreads();
  splat_tile<T, S, V>(rows, place, reinterpret_cast<const Vector<T, V>*>(tile_values), positions, scales);
}

template <class T, class S, int V>
__global__ void __launch_bounds__(kBlockThreads)
    slice_kernel(RowBuffers<T, S> rows, int channels, PointScale<T> scale, ChannelFactor<T> factor, bool accumulate,
                 BatchView<T> out, T gain) {
  const LatticeView<T>& lattice = rows.lattice;
  const TilePlace place(lattice, blockIdx.x);
  const int vectors = rows.stride / V, q = threadIdx.x % vectors, at_a_time = kBlockThreads / vectors;
  if (static_cast<int>(threadIdx.x) >= at_a_time * vectors) return;
  const S* vertices = rows.vertices(place.image) + q * V;
  const bool failed = lattice.failed();
  const int32_t* tile_vertices = lattice.tile_vertices + (failed ? 0 : lattice.tile_offsets[place.index]);
  for (int e = threadIdx.x / vectors; e < place.tile.points(); e += at_a_time) {
    const int64_t entry = (place.first_point + e) * lattice.corners();
    Vector<T, V> sum{};
    for (int k = 0; k < lattice.corners() && !failed; ++k) {
      const int64_t vertex = tile_vertices[lattice.local_ids[entry + k]];
      add_scaled(sum, lattice.weights[entry + k], load_row<T, V>(vertices + vertex * rows.stride));
    }
    const int64_t point = place.raster(lattice.grid, place.position(lattice, e));
    const T all = failed ? not_a_number<T>() : gain * scale.at(place.image, point);
    T* to = out.at(place.image, point);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int c = q * V + i;
      if (c >= channels) continue;
      const T y = all * factor.at(c) * sum.of[i];
      T& target = to[c * out.channel_stride];
      target = accumulate ? target + y : y;
    }
  }
}

}  // namespace

template <class T, class S>
void splat(const RowBuffers<T, S>& rows, const BatchView<const T>& values, int channels, const PointScale<T>& scale,
           cudaStream_t stream) {
  const int v = vector_of(rows.stride);
  const int64_t shared = static_cast<int64_t>(kTilePoints) * tile_stride(rows.stride / v) * v * sizeof(T);
  const Grid grid{rows.images * rows.lattice.grid.tiles(), 1, shared};
  if (v == 1)
    launch(splat_kernel<T, S, 1>, grid, stream, rows, values, channels, scale);
  else
    launch(splat_kernel<T, S, kVector>, grid, stream, rows, values, channels, scale);
}

template <class T, class S>
void slice(const RowBuffers<T, S>& rows, int channels, const PointScale<T>& scale, const ChannelFactor<T>& factor,
           bool accumulate, const BatchView<T>& out, cudaStream_t stream) {
  const Grid grid{rows.images * rows.lattice.grid.tiles()};
  const T gain = slice_gain<T>(rows.lattice.d);
  if (rows.stride == 1)
    launch(slice_kernel<T, S, 1>, grid, stream, rows, channels, scale, factor, accumulate, out, gain);
  else
    launch(slice_kernel<T, S, kVector>, grid, stream, rows, channels, scale, factor, accumulate, out, gain);
}

#define DENSECRF_INSTANTIATE(T, S)                                                                                  \
  template void splat(const RowBuffers<T, S>&, const BatchView<const T>&, int, const PointScale<T>&, cudaStream_t); \
  template void slice(const RowBuffers<T, S>&, int, const PointScale<T>&, const ChannelFactor<T>&, bool,            \
                      const BatchView<T>&, cudaStream_t);
DENSECRF_INSTANTIATE(float, float)
DENSECRF_INSTANTIATE(double, double)
DENSECRF_INSTANTIATE(float, __half)

}  // namespace densecrf::cuda
