// Reading and writing vectors of a row, stored in full or in half precision.
#pragma once

#include <cuda_fp16.h>

#include "lattice_view.h"

namespace densecrf::cuda {

template <class T, int V>
__device__ __forceinline__ Vector<T, V> load_row(const T* from) {
  return *reinterpret_cast<const Vector<T, V>*>(from);
}

template <class T, int V>
__device__ __forceinline__ Vector<T, V> load_row(const __half* from) {
  const auto stored = *reinterpret_cast<const Vector<__half, V>*>(from);
  Vector<T, V> row;
  for (int i = 0; i < V; ++i) row.of[i] = __half2float(stored.of[i]);
  return row;
}

template <class T, int V>
__device__ __forceinline__ void store_row(T* to, const Vector<T, V>& row) {
  *reinterpret_cast<Vector<T, V>*>(to) = row;
}

template <class T, int V>
__device__ __forceinline__ void store_row(__half* to, const Vector<T, V>& row) {
  Vector<__half, V> stored;
  for (int i = 0; i < V; ++i) stored.of[i] = __float2half_rn(row.of[i]);
  *reinterpret_cast<Vector<__half, V>*>(to) = stored;
}

}  // namespace densecrf::cuda
