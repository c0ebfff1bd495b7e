// Second step of a build: the vertices of all tiles' lists meet in one table, get their ids, their lists of partials
// and their neighbours.
//
// A slot of the table is one 64-bit word, hash and place together, so that it is claimed and published by the same
// compare-and-swap: no lock, no fence, no duplicate. The keys themselves were written by the kernel before, so a
// vertex is compared in full, whatever its dimension and range.
#pragma once

#include "block.cuh"
#include "build_tables.cuh"

namespace densecrf::cuda {

constexpr int kScanThreads = 1024;

// What the steps read and write beside the tables; outputs as in LatticeOutputs.
struct VertexProblem {
  int d;
  TileGrid grid;
  int64_t batch, capacity;
  int64_t* tile_offsets;
  int32_t* tile_vertices;
  int64_t* vertex_offsets;
  int64_t* vertex_partials;
  int32_t* neighbours;
  int64_t* image_offsets;
  int64_t* num_vertices;

  HOST_DEVICE int64_t tiles() const { return batch * grid.tiles(); }
  HOST_DEVICE int64_t image_entries() const { return grid.points() * (d + 1); }
  // Place of the first vertex in the list of tile t.
  HOST_DEVICE int64_t first_place(int64_t t) const {
    return (t / grid.tiles() * grid.points() + grid.tile(t % grid.tiles()).first) * (d + 1);
  }
  __device__ bool failed() const { return *num_vertices < 0; }
};

__global__ void clear_tables(BuildTables tables) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  // a pair of slots at a time: 16 bytes
  for (int64_t i = thread; i < static_cast<int64_t>(tables.slot_mask + 1) / 2; i += threads)
    reinterpret_cast<uint4*>(tables.slots)[i] = make_uint4(~0u, ~0u, ~0u, ~0u);
  if (thread == 0) *tables.fault = kNoFault;
}

template <int W>
__device__ __forceinline__ uint64_t image_hash(const uint64_t* key, int words, int64_t image) {
  return key_hash(key, W ? W : words) ^ static_cast<uint64_t>(image) * 0x9E3779B97F4A7C15ull;
}

template <int W>
__device__ __forceinline__ bool same_key(const BuildTables& tables, int64_t place, const uint64_t* key, int words) {
  for (int w = 0; w < (W ? W : words); ++w)
    if (tables.keys[place * (W ? W : words) + w] != key[w]) return false;
  return true;
}

template <int W>
__global__ void __launch_bounds__(kBlockThreads) insert_vertices(VertexProblem problem, BuildTables tables) {
  const int words = key_words(problem.d);
  const int64_t t = blockIdx.x, image = t / problem.grid.tiles(), first = problem.first_place(t);
  for (int u = threadIdx.x; u < tables.tile_counts[t]; u += kBlockThreads) {
    uint64_t key[W ? W : key_words(kMaxDimension)];
    for (int w = 0; w < (W ? W : words); ++w) key[w] = tables.keys[(first + u) * (W ? W : words) + w];
    const uint64_t hash = image_hash<W>(key, words, image);
    const uint64_t word = hash << 32 | static_cast<Place>(first + u);
    uint64_t at = hash >> 32 & tables.slot_mask;
    for (;; at = (at + 1) & tables.slot_mask) {
      auto* slot = reinterpret_cast<unsigned long long*>(tables.slots + at);
      uint64_t found = *static_cast<volatile unsigned long long*>(slot);
      if (found == kEmptySlot) found = atomicCAS(slot, kEmptySlot, word);
      if (found == kEmptySlot) break;
      const auto place = static_cast<Place>(found);
      if (found >> 32 != word >> 32 || place / problem.image_entries() != image ||
          !same_key<W>(tables, place, key, words))
        continue;
      if (word < found) atomicMin(slot, static_cast<unsigned long long>(word));
      break;
    }
    tables.slot_of[first + u] = static_cast<uint32_t>(at);
  }
}

__device__ __forceinline__ bool is_first(const BuildTables& tables, int64_t place) {
  return static_cast<Place>(tables.slots[tables.slot_of[place]]) == static_cast<Place>(place);
}

__global__ void __launch_bounds__(kBlockThreads) count_new_vertices(VertexProblem problem, BuildTables tables) {
  __shared__ int warps[kMaxWarps];
  const int64_t t = blockIdx.x, first = problem.first_place(t);
  const int count = tables.tile_counts[t];
  int found = 0;
  for (int begin = 0; begin < count; begin += kBlockThreads) {
    const int u = begin + threadIdx.x;
    int total = 0;
    block_rank(u < count && is_first(tables, first + u), warps, total);
    found += total;
  }
  if (threadIdx.x == 0) tables.tile_new[t] = found;
}

// Exclusive sums of `values` into `sums`, one more than there are values; by one block, each thread a run of values.
template <class V>
__device__ __forceinline__ void scan_values(const V* values, int64_t count, int64_t* sums, int64_t* warps) {
  const int64_t run = ceil_div(count, blockDim.x), begin = min_of(run * threadIdx.x, count);
  const int64_t end = min_of(begin + run, count);
  int64_t sum = 0, total = 0;
  for (int64_t i = begin; i < end; ++i) sum += values[i];
  int64_t before = block_scan(sum, warps, total);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t value = values[i];  // may be where its sum goes
    sums[i] = before;
    before += value;
  }
  if (threadIdx.x == 0) sums[count] = total;
}

__global__ void __launch_bounds__(kScanThreads) offset_tiles(VertexProblem problem, BuildTables tables) {
  __shared__ int64_t warps[kMaxWarps];
  scan_values(tables.tile_counts, problem.tiles(), problem.tile_offsets, warps);
  scan_values(tables.tile_new, problem.tiles(), tables.tile_first, warps);
  __syncthreads();
  for (int64_t b = threadIdx.x; b <= problem.batch; b += kScanThreads)
    problem.image_offsets[b] = tables.tile_first[b * problem.grid.tiles()];
  if (threadIdx.x != 0) return;
  const int64_t vertices = tables.tile_first[problem.tiles()];
  uint64_t fault = *tables.fault;
  if (fault == kNoFault && vertices > problem.capacity)
    fault = fault_word(Fault::capacity, static_cast<uint64_t>(vertices));
  *problem.num_vertices = fault == kNoFault ? vertices : -static_cast<int64_t>(fault);
}

__global__ void __launch_bounds__(kBlockThreads) number_vertices(VertexProblem problem, BuildTables tables) {
  __shared__ int warps[kMaxWarps];
  if (problem.failed()) return;
  const int64_t t = blockIdx.x, first = problem.first_place(t);
  const int count = tables.tile_counts[t];
  int64_t next = tables.tile_first[t];
  for (int begin = 0; begin < count; begin += kBlockThreads) {
    const int64_t place = first + begin + threadIdx.x;
    const bool is_new = begin + static_cast<int>(threadIdx.x) < count && is_first(tables, place);
    int found = 0;
    const int64_t id = next + block_rank(is_new, warps, found);
    next += found;
    if (!is_new) continue;
    tables.id_of[place] = static_cast<int32_t>(id);
    tables.place_of[id] = static_cast<Place>(place);
    tables.partial_counts[id] = 0;
    for (int axis = 0; axis <= problem.d; ++axis)
      reinterpret_cast<int2*>(problem.neighbours)[axis * problem.capacity + id] = make_int2(-1, -1);
  }
}

__global__ void __launch_bounds__(kBlockThreads) list_vertices(VertexProblem problem, BuildTables tables) {
  if (problem.failed()) return;
  const int64_t t = blockIdx.x, first = problem.first_place(t);
  for (int u = threadIdx.x; u < tables.tile_counts[t]; u += kBlockThreads) {
    const int32_t id = tables.id_of[static_cast<Place>(tables.slots[tables.slot_of[first + u]])];
    problem.tile_vertices[problem.tile_offsets[t] + u] = id;
    atomicAdd(&tables.partial_counts[id], 1);
  }
}

// Where the partials of each vertex start: sums over the new vertices of each tile, over tiles, and inside each tile.
__global__ void __launch_bounds__(kBlockThreads) sum_partials(VertexProblem problem, BuildTables tables) {
  __shared__ int64_t warps[kMaxWarps];
  if (problem.failed()) return;
  int64_t sum = 0, total = 0;
  for (int64_t v = tables.tile_first[blockIdx.x] + threadIdx.x; v < tables.tile_first[blockIdx.x + 1];
       v += kBlockThreads)
    sum += tables.partial_counts[v];
  block_scan(sum, warps, total);
  if (threadIdx.x == 0) tables.tile_sums[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kScanThreads) offset_sums(VertexProblem problem, BuildTables tables) {
  __shared__ int64_t warps[kMaxWarps];
  if (problem.failed()) return;
  scan_values(tables.tile_sums, problem.tiles(), tables.tile_sums, warps);
  __syncthreads();
  if (threadIdx.x == 0) problem.vertex_offsets[*problem.num_vertices] = tables.tile_sums[problem.tiles()];
}

__global__ void __launch_bounds__(kBlockThreads) offset_vertices(VertexProblem problem, BuildTables tables) {
  __shared__ int64_t warps[kMaxWarps];
  if (problem.failed()) return;
  int64_t next = tables.tile_sums[blockIdx.x];
  const int64_t end = tables.tile_first[blockIdx.x + 1];
  for (int64_t begin = tables.tile_first[blockIdx.x]; begin < end; begin += kBlockThreads) {
    const int64_t v = begin + threadIdx.x;
    int64_t total = 0;
    const int64_t offset = next + block_scan<int64_t>(v < end ? tables.partial_counts[v] : 0, warps, total);
    if (v < end) problem.vertex_offsets[v] = offset;
    next += total;
  }
}

// Only the step forth is looked up; the step back is the same pair of vertices.
template <int W>
__global__ void __launch_bounds__(kBlockThreads) find_neighbours(VertexProblem problem, BuildTables tables) {
  const int d = problem.d, words = key_words(d);
  const int64_t vertices = *problem.num_vertices, threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t i = thread; i < vertices * (d + 1); i += threads) {
    const auto axis = static_cast<int>(i / vertices);
    const int64_t v = i - axis * vertices, place = tables.place_of[v];
    const uint64_t* key = tables.keys + place * (W ? W : words);
    if (!key_has_neighbour(key, axis, d)) continue;
    uint64_t neighbour[W ? W : key_words(kMaxDimension)];
    key_neighbour(key, axis, d, neighbour);
    const int64_t image = place / problem.image_entries();
    const uint64_t hash = image_hash<W>(neighbour, words, image);
    for (uint64_t at = hash >> 32;; ++at) {
      const uint64_t found = tables.slots[at & tables.slot_mask];
      if (found == kEmptySlot) break;
      const auto other = static_cast<Place>(found);
      if (found >> 32 != (hash & 0xFFFFFFFFu) || other / problem.image_entries() != image ||
          !same_key<W>(tables, other, neighbour, words))
        continue;
      const int32_t id = tables.id_of[other];
      problem.neighbours[2 * (axis * problem.capacity + v) + 1] = id;
      problem.neighbours[2 * (axis * problem.capacity + id)] = static_cast<int32_t>(v);
      break;
    }
  }
}

// Collects the partials of each vertex in any order, where the slots stood, which nobody needs any more.
__global__ void __launch_bounds__(kBlockThreads) gather_partials(VertexProblem problem, BuildTables tables) {
  if (problem.failed()) return;
  const int64_t first = problem.tile_offsets[blockIdx.x];
  for (int u = threadIdx.x; u < tables.tile_counts[blockIdx.x]; u += kBlockThreads) {
    const int32_t id = problem.tile_vertices[first + u];
    const int place = atomicSub(&tables.partial_counts[id], 1) - 1;
    tables.slot_of[problem.vertex_offsets[id] + place] = static_cast<uint32_t>(first + u);
  }
}

// Each partial finds its own rank in the list of its vertex: ascending, so that sums have a fixed order.
__global__ void __launch_bounds__(kBlockThreads) sort_partials(VertexProblem problem, BuildTables tables) {
  if (problem.failed()) return;
  const int64_t first = problem.tile_offsets[blockIdx.x];
  for (int u = threadIdx.x; u < tables.tile_counts[blockIdx.x]; u += kBlockThreads) {
    const int32_t id = problem.tile_vertices[first + u];
    const int64_t begin = problem.vertex_offsets[id], end = problem.vertex_offsets[id + 1];
    int64_t to = begin;
    for (int64_t i = begin; i < end; ++i) to += tables.slot_of[i] < static_cast<uint32_t>(first + u);
    problem.vertex_partials[to] = first + u;
  }
}

}  // namespace densecrf::cuda
