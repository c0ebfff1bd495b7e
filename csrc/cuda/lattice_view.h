// A lattice as the kernels read it, and rows of channels, the unit in which they move data. Torch-free.
#pragma once

#include "../lattice.h"
#include "../tiles.h"
#include "launch.h"

namespace densecrf::cuda {

// The tensors of a lattice, as schemas.def lists them; batch is that of the lattice, 1 where all images share it.
template <class T>
struct LatticeView {
  TileGrid grid;
  int64_t batch, capacity;
  int d;
  const T* weights;
  const int16_t* local_ids;
  const int16_t* point_order;
  const int64_t* tile_offsets;
  const int32_t* tile_vertices;
  const int64_t* vertex_offsets;
  const int64_t* vertex_partials;
  const int32_t* neighbours;
  const int64_t* num_vertices;
  const int16_t* splat_plan;

  HOST_DEVICE int corners() const { return d + 1; }
  HOST_DEVICE int64_t image_entries() const { return grid.points() * (d + 1); }
  // Image of the lattice that serves an image of the values.
  HOST_DEVICE int64_t image_of(int64_t image) const { return batch == 1 ? 0 : image; }
  HOST_DEVICE bool shared_by(int64_t images) const { return batch == 1 && images > 1; }
  // The lattice could not be built: whatever is made of it is not a number.
  __device__ bool failed() const { return *num_vertices < 0; }
};

// V numbers next to each other, moved by one instruction where they are 16 bytes or fewer.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Vector {
  T of[V];
};

template <class T>
HOST_DEVICE T multiply_add(T a, T b, T c) {
  return Lanes<T>::multiply_add(a, b, c);
}

template <class T, int V>
HOST_DEVICE void add_scaled(Vector<T, V>& sum, T factor, const Vector<T, V>& x) {
  for (int i = 0; i < V; ++i) sum.of[i] = multiply_add(factor, x.of[i], sum.of[i]);
}

template <class T, int V>
HOST_DEVICE void add(Vector<T, V>& sum, const Vector<T, V>& x) {
  for (int i = 0; i < V; ++i) sum.of[i] += x.of[i];
}

template <class T>
HOST_DEVICE T not_a_number() {
  return static_cast<T>(NAN);
}

// Channels are moved in vectors of this many; a single one by itself.
constexpr int kVector = 4;

HOST_DEVICE constexpr int vector_of(int64_t channels) { return channels == 1 ? 1 : kVector; }
HOST_DEVICE constexpr int64_t row_stride(int64_t channels) {
  return ceil_div(channels, vector_of(channels)) * vector_of(channels);
}

// The most channels that pass through the lattice at a time; bounds the memory of rows for any number of channels.
template <class T>
constexpr int kRowChannels = sizeof(T) == 4 ? 32 : 16;

}  // namespace densecrf::cuda
