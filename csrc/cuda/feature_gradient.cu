#include "feature_gradient.h"

#include "tile_points.cuh"

namespace densecrf::cuda {
namespace {

template <class T, class S>
__global__ void __launch_bounds__(kBlockThreads) pair_kernel(RowBuffers<T, S> rows, BatchView<const T> values,
                                                             int channels, ChannelFactor<T> factor, T gain, T* out) {
  const LatticeView<T>& lattice = rows.lattice;
  const TilePlace place(lattice, blockIdx.x);
  const bool failed = lattice.failed();
  const int corners = lattice.corners();
  const int32_t* tile_vertices = lattice.tile_vertices + (failed ? 0 : lattice.tile_offsets[place.index]);
  const int64_t images = lattice.shared_by(rows.images) ? rows.images : 1;
  for (int i = threadIdx.x; i < place.tile.points() * corners; i += kBlockThreads) {
    const int64_t entry = place.first_point * corners + i;
    if (failed) {
      out[entry] = not_a_number<T>();
      continue;
    }
    const int64_t point = place.raster(lattice.grid, place.position(lattice, i / corners));
    const int64_t vertex = tile_vertices[lattice.local_ids[entry]];
    T sum = T(0);
    for (int64_t b = 0; b < images; ++b) {
      const T* value = values.at(place.image + b, point);
      const S* row = rows.vertices(place.image + b) + vertex * rows.stride;
      for (int c = 0; c < channels; ++c)
        sum = multiply_add(factor.at(c) * value[c * values.channel_stride], load_row<T, 1>(row + c).of[0], sum);
    }
    out[entry] += gain * sum;
  }
}

template <class T>
struct ElevationScales {
  T of[kMaxDimension];
};

template <class T, int D>
__global__ void __launch_bounds__(kBlockThreads)
    feature_kernel(LatticeView<T> lattice, ElevationScales<T> scales, const T* weight_grad, const T* features, T* out) {
  const TilePlace place(lattice, blockIdx.x);
  if (static_cast<int>(threadIdx.x) >= place.tile.points()) return;
  const int d = D ? D : lattice.d;
  const bool failed = lattice.failed();
  const int64_t points = lattice.grid.points();
  const int64_t n = place.raster(lattice.grid, place.position(lattice, threadIdx.x));
  const T* own = features + place.image * d * points + n;
  T* to = out + place.image * d * points + n;
  T feature[D ? D : kMaxDimension], gradient[D ? D : kMaxDimension];
  Simplex<T, D ? D : kMaxDimension> simplex;
#pragma unroll
  for (int i = 0; i < (D ? D : d); ++i) feature[i] = own[i * points];
  simplex.enclose(feature, scales.of, D ? D : d);
  // Only the features that the lattice was built from have ranks within its corners.
  const bool fits = !failed && simplex.in_range(D ? D : d);
  int32_t rank[(D ? D : kMaxDimension) + 1];
#pragma unroll
  for (int i = 0; i <= (D ? D : d); ++i) rank[i] = fits ? static_cast<int32_t>(simplex.rank[i]) : i;
  feature_gradient(weight_grad + (place.first_point + threadIdx.x) * (d + 1), rank, 1, scales.of, D ? D : d, gradient);
#pragma unroll
  for (int i = 0; i < (D ? D : d); ++i) to[i * points] += fits ? gradient[i] : not_a_number<T>();
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    join_kernel(LatticeView<T> lattice, PointScale<T> splat_scale, PointScale<T> slice_scale, const T* at_splat,
                T* at_slice, T* grad_norm) {
  const TilePlace place(lattice, blockIdx.x);
  if (static_cast<int>(threadIdx.x) >= place.tile.points() || lattice.failed()) return;
  const int64_t n = place.raster(lattice.grid, place.position(lattice, threadIdx.x));
  const int64_t first = (place.first_point + threadIdx.x) * lattice.corners();
  const T splat = splat_scale.at(place.image, n), slice = slice_scale.at(place.image, n);
  T norm = T(0);
  for (int k = 0; k < lattice.corners(); ++k) {
    const T a = at_slice[first + k], b = at_splat[first + k];
    norm += lattice.weights[first + k] * ((slice_scale.data ? a : T(0)) + (splat_scale.data ? b : T(0)));
    at_slice[first + k] = slice * a + splat * b;
  }
  if (grad_norm) grad_norm[place.image * lattice.grid.points() + n] += norm;
}

template <class T>
Grid lattice_tiles(const LatticeView<T>& lattice) {
  return {lattice.batch * lattice.grid.tiles()};
}

template <class T, int D>
void launch_features(const LatticeView<T>& lattice, const T* weight_grad, const T* features, T* out,
                     cudaStream_t stream) {
  ElevationScales<T> scales{};
  for (int i = 0; i < lattice.d; ++i) scales.of[i] = elevation_scale<T>(i, lattice.d);
  launch(feature_kernel<T, D>, lattice_tiles(lattice), stream, lattice, scales, weight_grad, features, out);
}

}  // namespace

template <class T, class S>
void pair(const RowBuffers<T, S>& rows, const BatchView<const T>& values, int channels, const ChannelFactor<T>& factor,
          T* out, cudaStream_t stream) {
  launch(pair_kernel<T, S>, lattice_tiles(rows.lattice), stream, rows, values, channels, factor,
         slice_gain<T>(rows.lattice.d), out);
}

template <class T>
void weights_to_features(const LatticeView<T>& lattice, const T* weight_grad, const T* features, T* out,
                         cudaStream_t stream) {
  if (lattice.d == 2) return launch_features<T, 2>(lattice, weight_grad, features, out, stream);
  if (lattice.d == 3) return launch_features<T, 3>(lattice, weight_grad, features, out, stream);
  if (lattice.d == 5) return launch_features<T, 5>(lattice, weight_grad, features, out, stream);
  launch_features<T, 0>(lattice, weight_grad, features, out, stream);
}

template <class T>
void join_ends(const LatticeView<T>& lattice, const PointScale<T>& splat_scale, const PointScale<T>& slice_scale,
               const T* at_splat, T* at_slice, T* grad_norm, cudaStream_t stream) {
  launch(join_kernel<T>, lattice_tiles(lattice), stream, lattice, splat_scale, slice_scale, at_splat, at_slice,
         grad_norm);
}

#define DENSECRF_INSTANTIATE(T)                                                                                \
  template void pair(const RowBuffers<T, T>&, const BatchView<const T>&, int, const ChannelFactor<T>&, T*,     \
                     cudaStream_t);                                                                            \
  template void weights_to_features(const LatticeView<T>&, const T*, const T*, T*, cudaStream_t);              \
  template void join_ends(const LatticeView<T>&, const PointScale<T>&, const PointScale<T>&, const T*, T*, T*, \
                          cudaStream_t);
DENSECRF_INSTANTIATE(float)
DENSECRF_INSTANTIATE(double)

}  // namespace densecrf::cuda
