#include "lattice_rows.h"

#include <utility>

#include "row_storage.cuh"

namespace densecrf::cuda {
namespace {

// A block takes as many rows at a time as it has threads for; a thread keeps its place in the row.
struct RowThread {
  int row, vector;
  int rows;  // that the block takes at a time

  __device__ explicit RowThread(int vectors)
      : row(threadIdx.x / vectors), vector(threadIdx.x % vectors), rows(kBlockThreads / vectors) {
    if (row >= rows) row = -1;
  }
};

// The lattice and, where images share it, the image that a row of the grid stands for.
template <class T, class S>
__device__ __forceinline__ bool find_job(const RowBatch<T, S>& batch, int& lattice, int64_t& replica) {
  replica = blockIdx.y;
  for (lattice = 0; replica >= batch.of[lattice].replicas(); ++lattice) replica -= batch.of[lattice].replicas();
  return !batch.of[lattice].lattice.failed();
}

template <class T, class S, int V>
__global__ void __launch_bounds__(kBlockThreads) gather_kernel(RowBatch<T, S> batch) {
  int which;
  int64_t replica;
  if (!find_job(batch, which, replica)) return;
  const RowBuffers<T, S>& rows = batch.of[which];
  const LatticeView<T>& lattice = rows.lattice;
  const RowThread thread(rows.stride / V);
  if (thread.row < 0) return;
  const S* partials = rows.back + replica * rows.max_partials() * rows.stride + thread.vector * V;
  S* vertices = rows.front + replica * lattice.capacity * rows.stride + thread.vector * V;
  const int64_t count = *lattice.num_vertices, step = static_cast<int64_t>(gridDim.x) * thread.rows;
  for (int64_t v = static_cast<int64_t>(blockIdx.x) * thread.rows + thread.row; v < count; v += step) {
    Vector<T, V> sum{};
    const int64_t end = lattice.vertex_offsets[v + 1];
    for (int64_t i = lattice.vertex_offsets[v]; i < end; ++i)
      add(sum, load_row<T, V>(partials + lattice.vertex_partials[i] * rows.stride));
    store_row(vertices + v * rows.stride, sum);
  }
}

// x + (x back + x forth) / 2 at vertex v, along one axis; a missing neighbour counts as zero, and so does v = -1.
template <class T, class S, int V>
__device__ __forceinline__ Vector<T, V> blurred(const int2* neighbours, const S* in, int64_t stride, int64_t v) {
  Vector<T, V> sides{}, other{};
  if (v < 0) return sides;
  const int2 around = neighbours[v];
  const Vector<T, V> centre = load_row<T, V>(in + v * stride);
  if (around.x >= 0) sides = load_row<T, V>(in + around.x * stride);
  if (around.y >= 0) other = load_row<T, V>(in + around.y * stride);
  add(sides, other);
  Vector<T, V> result = centre;
  add_scaled(result, T(0.5), sides);
  return result;
}

// The steps of one launch: one axis, or two at once, which reads about as many rows as one because many neighbours are
// missing, and saves a pass over the rows.
struct BlurAxes {
  int first[kMaxTogether], second[kMaxTogether];  // -1: none
};

template <class T, class S, int V>
__global__ void __launch_bounds__(kBlockThreads) blur_kernel(RowBatch<T, S> batch, BlurAxes axes) {
  int which;
  int64_t replica;
  if (!find_job(batch, which, replica) || axes.first[which] < 0) return;
  const RowBuffers<T, S>& rows = batch.of[which];
  const LatticeView<T>& lattice = rows.lattice;
  const RowThread thread(rows.stride / V);
  if (thread.row < 0) return;
  const int64_t shift = replica * lattice.capacity * rows.stride + thread.vector * V;
  const S* in = rows.front + shift;
  S* out = rows.back + shift;
  const auto* neighbours = reinterpret_cast<const int2*>(lattice.neighbours);
  const int2* first = neighbours + axes.first[which] * lattice.capacity;
  const int2* second = neighbours + axes.second[which] * lattice.capacity;
  const bool pair = axes.second[which] >= 0;
  const int64_t count = *lattice.num_vertices, step = static_cast<int64_t>(gridDim.x) * thread.rows;
  for (int64_t v = static_cast<int64_t>(blockIdx.x) * thread.rows + thread.row; v < count; v += step) {
    Vector<T, V> result = blurred<T, S, V>(first, in, rows.stride, v);
    if (pair) {
      Vector<T, V> sides = blurred<T, S, V>(first, in, rows.stride, second[v].x);
      add(sides, blurred<T, S, V>(first, in, rows.stride, second[v].y));
      add_scaled(result, T(0.5), sides);
    }
    store_row(out + v * rows.stride, result);
  }
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads) copy_kernel(LatticeView<T> lattice, const T* from, int64_t from_stride,
                                                             int channels, T* to, int64_t to_stride, int width) {
  const int64_t size = lattice.failed() ? 0 : *lattice.num_vertices * width;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += threads) {
    const int64_t v = i / width, c = i % width;
    to[v * to_stride + c] = c < channels ? from[v * from_stride + c] : T(0);
  }
}

template <int V, class T, class S>
Grid row_grid(const RowBatch<T, S>& rows) {
  Grid grid{0, 0};
  for (int i = 0; i < rows.count; ++i) {
    const auto& own = rows.of[i];
    const int at_a_time = kBlockThreads / (own.stride / V);
    const int64_t blocks = min_of(ceil_div(own.lattice.capacity, at_a_time), multiprocessors() * 8);
    grid.blocks = blocks > grid.blocks ? blocks : grid.blocks;
    grid.rows += own.replicas();
  }
  return grid;
}

template <class T, class S, int V>
void gather_and_blur_vectors(RowBatch<T, S>& rows, bool reverse, cudaStream_t stream) {
  const Grid grid = row_grid<V>(rows);
  int passes = 0;
  for (int i = 0; i < rows.count; ++i) passes = rows.of[i].blur_passes() > passes ? rows.of[i].blur_passes() : passes;
  launch(gather_kernel<T, S, V>, grid, stream, rows);
  for (int pass = 0; pass < passes; ++pass) {
    BlurAxes axes{};
    for (int i = 0; i < rows.count; ++i) {
      const int last = rows.of[i].lattice.d, a = 2 * pass, b = a + 1;
      axes.first[i] = a > last ? -1 : reverse ? last - a : a;
      axes.second[i] = b > last ? -1 : reverse ? last - b : b;
    }
    launch(blur_kernel<T, S, V>, grid, stream, rows, axes);
    for (int i = 0; i < rows.count; ++i)
      if (axes.first[i] >= 0) std::swap(rows.of[i].front, rows.of[i].back);
  }
}

}  // namespace

template <class T, class S>
void gather(RowBatch<T, S>& rows, cudaStream_t stream) {
  if (rows.of[0].stride == 1)
    launch(gather_kernel<T, S, 1>, row_grid<1>(rows), stream, rows);
  else
    launch(gather_kernel<T, S, kVector>, row_grid<kVector>(rows), stream, rows);
}

template <class T>
void copy_rows(const LatticeView<T>& lattice, const T* from, int64_t from_stride, int channels, T* to,
               int64_t to_stride, int width, cudaStream_t stream) {
  launch(copy_kernel<T>, {striding_blocks(lattice.capacity * width)}, stream, lattice, from, from_stride, channels, to,
         to_stride, width);
}

template <class T, class S>
void gather_and_blur(RowBatch<T, S>& rows, bool reverse, cudaStream_t stream) {
  if (rows.of[0].stride == 1)
    gather_and_blur_vectors<T, S, 1>(rows, reverse, stream);
  else
    gather_and_blur_vectors<T, S, kVector>(rows, reverse, stream);
}

template void gather(RowBatch<float, float>&, cudaStream_t);
template void gather(RowBatch<double, double>&, cudaStream_t);
template void copy_rows(const LatticeView<float>&, const float*, int64_t, int, float*, int64_t, int, cudaStream_t);
template void copy_rows(const LatticeView<double>&, const double*, int64_t, int, double*, int64_t, int, cudaStream_t);
template void gather_and_blur(RowBatch<float, float>&, bool, cudaStream_t);
template void gather_and_blur(RowBatch<double, double>&, bool, cudaStream_t);
template void gather_and_blur(RowBatch<float, __half>&, bool, cudaStream_t);

}  // namespace densecrf::cuda
