// Filtering with the lattice of one image on the CPU, torch-free.
#pragma once

#include "kernels.h"
#include "parallel.h"

namespace densecrf {

// Values [N, C] in the caller's order, any strides (in elements).
template <class T>
struct ValuesView {
  const T* data;
  int64_t point_stride, channel_stride;
};

// out[N, C] = slice_scale · K (splat_scale · values), or K transposed where `reverse`; a null scale is one.
template <class T>
void filter_image(const LatticeView<T>& lattice, const ValuesView<T>& values, int64_t channels, const T* splat_scale,
                  const T* slice_scale, bool reverse, const Pool& pool, T* out);

// The two ends of a filter by themselves. rows[vertices, C] = splat of scale · values, neither blurred nor padded.
template <class T>
void splat_image(const LatticeView<T>& lattice, const ValuesView<T>& values, int64_t channels, const T* scale,
                 const Pool& pool, T* rows);

// out[N, C] = scale · slice of rows[vertices, C].
template <class T>
void slice_image(const LatticeView<T>& lattice, const T* rows, int64_t channels, const T* scale, const Pool& pool,
                 T* out);

// out[d, N] += gradient of <grad, K values> with respect to the features [d, N].
template <class T>
void feature_grad_image(const LatticeView<T>& lattice, const ValuesView<T>& values, const ValuesView<T>& grad,
                        int64_t channels, const T* features, const Pool& pool, T* out);

// out[d, N] += gradient with respect to the features [d, N], from that of the barycentric weights [N, d + 1], which
// stand in the order of the lattice's own weights.
template <class T>
void weights_to_features(const LatticeView<T>& lattice, const T* weight_grad, const T* features, const Pool& pool,
                         T* out);

}  // namespace densecrf
