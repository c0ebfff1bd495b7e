// Gradients of the features that a lattice was built from, torch-free.
#pragma once

#include "splat_slice.h"

namespace densecrf::cuda {

// out[e, k] += gain · <factor · values[p], vertices of entry e's corner k>, summed over the images that share the
// lattice; [lattice batch, N, d + 1] in the lattice's own order.
template <class T, class S>
void pair(const RowBuffers<T, S>& rows, const BatchView<const T>& values, int channels, const ChannelFactor<T>& factor,
          T* out, cudaStream_t stream);

// out[d, N] += gradient with respect to the features [d, N] of each image of the lattice, from that of the barycentric
// weights [N, d + 1], which stand in the lattice's own order.
template <class T>
void weights_to_features(const LatticeView<T>& lattice, const T* weight_grad, const T* features, T* out,
                         cudaStream_t stream);

// From the gradients of the weights at the two ends of y = slice_scale K (splat_scale x), each without its scale: their
// sum with the scales in `at_slice`, and what each contributes to the norm that they are, [lattice batch, N], or null.
template <class T>
void join_ends(const LatticeView<T>& lattice, const PointScale<T>& splat_scale, const PointScale<T>& slice_scale,
               const T* at_splat, T* at_slice, T* grad_norm, cudaStream_t stream);

}  // namespace densecrf::cuda
