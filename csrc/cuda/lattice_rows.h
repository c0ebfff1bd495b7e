// The rows of a lattice's vertices while filters run: partial sums of tiles, then the two sides of the blur.
// Torch-free.
#pragma once

#include "lattice_view.h"

namespace densecrf::cuda {

// Rows are stored as S and summed up as T. Where images share the lattice, each has rows of its own, `images` in all.
template <class T, class S>
struct RowBuffers {
  LatticeView<T> lattice;
  int64_t images;  // of the values
  int stride;      // channels of a row, padded to whole vectors
  S* front;        // [replicas][capacity][stride], blurred vertices in the end
  S* back;         // the other side of the blur; before that partials, [replicas][entries of the lattice][stride]

  HOST_DEVICE int64_t replicas() const { return lattice.shared_by(images) ? images : 1; }
  HOST_DEVICE int64_t replica_of(int64_t image) const { return lattice.shared_by(images) ? image : 0; }
  HOST_DEVICE int64_t max_partials() const { return lattice.batch * lattice.image_entries(); }

  // Row 0 of the vertices, or the partials, that an image reads; ids and partials count through the batch.
  HOST_DEVICE S* vertices(int64_t image) const { return front + replica_of(image) * lattice.capacity * stride; }
  HOST_DEVICE S* partials(int64_t image) const { return back + replica_of(image) * max_partials() * stride; }

  // An odd number of passes leaves front and back in each other's place: then both must hold either.
  int blur_passes() const { return (lattice.corners() + 1) / 2; }
  int64_t back_size() const {
    return replicas() * (lattice.capacity > max_partials() ? lattice.capacity : max_partials()) * stride;
  }
  int64_t front_size() const { return blur_passes() % 2 ? back_size() : replicas() * lattice.capacity * stride; }
};

// Several lattices go through the steps together.
constexpr int kMaxTogether = 4;
template <class T, class S>
struct RowBatch {
  RowBuffers<T, S> of[kMaxTogether];
  int count;
};

// Sums the partials of each vertex into `front`.
template <class T, class S>
void gather(RowBatch<T, S>& rows, cudaStream_t stream);

// Rows of every vertex between two arrays of other strides: to[v, c] = from[v, c], and 0 from `channels` to `width`.
template <class T>
void copy_rows(const LatticeView<T>& lattice, const T* from, int64_t from_stride, int channels, T* to,
               int64_t to_stride, int width, cudaStream_t stream);

// Sums the partials of each vertex and blurs along the axes in turn, or in the opposite order: the adjoint. Then
// `front` of each holds the result (front and back may have changed places).
template <class T, class S>
void gather_and_blur(RowBatch<T, S>& rows, bool reverse, cudaStream_t stream);

}  // namespace densecrf::cuda
