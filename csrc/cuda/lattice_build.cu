// The steps of a build and their order. Ids are dense and in order of first touch (tiles in order, points in order
// inside a tile) whatever the order in which threads run: tables keep the least place of a vertex, and ranks follow
// from places.

#include "lattice_build.h"

#include <type_traits>

#include "lattice_vertices.cuh"
#include "tile_embedding.cuh"

namespace densecrf::cuda {
namespace {

// Shared memory that every supported GPU grants a block; work that needs more is kept in global memory.
constexpr int64_t kSharedLimit = 64 * 1024 - 1024;

template <class T, int D>
__global__ void __launch_bounds__(kBlockThreads)
    embed_tiles(BuildProblem<T> problem, Scales<T> scales, BuildTables tables, LatticeOutputs<T> out) {
  DENSECRF_DYNAMIC_SHARED(char, shared);
  __shared__ int warps[kMaxWarps];
  const int d = D ? D : problem.d, corners = d + 1, p = threadIdx.x;
  TileWork work;
  work.carve(tables.tile_work ? tables.tile_work + blockIdx.x * tables.tile_work_bytes : shared, d);
  for (int64_t t = blockIdx.x; t < problem.tiles(); t += gridDim.x) {
    const int64_t image = t / problem.grid.tiles();
    const Tile tile = problem.grid.tile(t % problem.grid.tiles());
    const int64_t first_point = image * problem.grid.points() + tile.first, first_entry = first_point * corners;
    const bool inside = p < tile.points();

    // 1. The simplex of the point, and with which points it shares it.
    Simplex<T, D ? D : kMaxDimension> simplex;
    if (inside) {
      enclose_point<T, D>(problem, scales, image, tile.row + p / tile.cols, tile.col + p % tile.cols, d, simplex,
                          tables.fault);
      for (int w = 0; w < key_words(d); ++w) work.base_key[w * kTilePoints + p] = 0;
#pragma unroll
      for (int i = 0; i <= (D ? D : d); ++i) {
        work.rank[i * kTilePoints + p] = static_cast<uint8_t>(simplex.rank[i]);
        if (i < d)
          work.base_key[i / kFieldsPerWord * kTilePoints + p] +=
              static_cast<uint64_t>(static_cast<int32_t>(simplex.remainder[i]) + kKeyLimit) * key_field(i);
      }
    }
    __syncthreads();
    const PointPlace place = group_points(work, p, inside, d, warps);
    const int entry = inside ? work.start[place.simplex] + place.in_simplex : 0;
    if (inside) {
      out.point_order[first_point + entry] = static_cast<int16_t>(place.in_simplex ? ~p : p);
#pragma unroll
      for (int k = 0; k <= (D ? D : d); ++k) out.weights[(first_point + entry) * corners + k] = simplex.weight[k];
    }

    // 2. The vertices of the simplices, numbered by first touch.
    const int items = place.simplices * corners;
    for (int i = p; i < TileWork::vertex_slots(d); i += kBlockThreads) work.vertex_slot[i] = ~0u;
    __syncthreads();
    for (int i = p; i < items; i += kBlockThreads)
      work.item_place[i] = static_cast<uint16_t>(insert_vertex(work, i, work.first_point[i / corners], i % corners, d));
    __syncthreads();
    int vertices = 0;
    for (int begin = 0; begin < items; begin += kBlockThreads) {
      const int i = begin + p;
      const bool is_first = i < items && static_cast<int>(work.vertex_slot[work.item_place[i]] & 0xFFFFu) == i;
      int found = 0;
      const int local = vertices + block_rank(is_first, warps, found);
      vertices += found;
      if (!is_first) continue;
      work.item_local[i] = static_cast<uint16_t>(local);
      for (int w = 0; w < key_words(d); ++w)
        tables.keys[(first_entry + local) * key_words(d) + w] =
            work.key_word(work.first_point[i / corners], i % corners, w, d);
    }
    if (p == 0) tables.tile_counts[t] = vertices;
    for (int i = p; i < vertices; i += kBlockThreads) work.count[i] = 0;
    __syncthreads();
    for (int i = p; i < items; i += kBlockThreads) {
      const int first = static_cast<int>(work.vertex_slot[work.item_place[i]] & 0xFFFFu);
      if (first != i) work.item_local[i] = work.item_local[first];
      atomicAdd(&work.count[work.item_local[i]], 1 << 16 | work.size[i / corners]);
    }
    __syncthreads();
    if (inside)
      for (int k = 0; k < corners; ++k)
        out.local_ids[(first_point + entry) * corners + k] =
            static_cast<int16_t>(work.item_local[place.simplex * corners + k]);

    // 3. The plan of the splat: entries by vertex. First items by vertex in any order, then each finds its place.
    int before = 0;
    for (int begin = 0; begin < vertices; begin += kBlockThreads) {
      const int u = begin + p;
      int sum = 0;
      const int start = before + block_scan(u < vertices ? work.count[u] : 0, warps, sum);
      before += sum;
      if (u >= vertices) continue;
      work.count[u] = start;
      out.splat_plan[problem.batch * problem.image_entries() + first_entry + u] = static_cast<int16_t>(start & 0xFFFF);
    }
    __syncthreads();
    for (int i = p; i < items; i += kBlockThreads)
      work.list[atomicAdd(&work.count[work.item_local[i]], 1 << 16) >> 16] = static_cast<uint16_t>(i);
    __syncthreads();
    for (int i = p; i < items; i += kBlockThreads) {
      const int u = work.item_local[i], own = work.start[i / corners];
      int to = work.count[u] & 0xFFFF;
      for (int j = u ? work.count[u - 1] >> 16 : 0; j < work.count[u] >> 16; ++j) {
        const int other = work.list[j] / corners;
        if (work.start[other] < own) to += work.size[other];
      }
      work.item_place[i] = static_cast<uint16_t>(to);
    }
    __syncthreads();
    if (inside)
      for (int k = 0; k < corners; ++k)
        out.splat_plan[first_entry + work.item_place[place.simplex * corners + k] + place.in_simplex] =
            static_cast<int16_t>(entry * corners + k);
    __syncthreads();
  }
}

template <class T, int D>
void embed(const BuildProblem<T>& problem, const BuildTables& tables, const LatticeOutputs<T>& out, int64_t blocks,
           cudaStream_t stream) {
  Scales<T> scales{};
  for (int i = 0; i < problem.d; ++i) scales.of[i] = elevation_scale<T>(i, problem.d);
  const int64_t shared = tables.tile_work ? 0 : tables.tile_work_bytes;
  launch(embed_tiles<T, D>, {blocks, 1, shared}, stream, problem, scales, tables, out);
}

// The dimensions of images and volumes have kernels of their own, whose arrays are registers.
template <class T>
void embed_any(const BuildProblem<T>& problem, const BuildTables& tables, const LatticeOutputs<T>& out, int64_t blocks,
               cudaStream_t stream) {
  if constexpr (sizeof(T) == 4) {
    switch (problem.d) {
      case 1:
        return embed<T, 1>(problem, tables, out, blocks, stream);
      case 2:
        return embed<T, 2>(problem, tables, out, blocks, stream);
      case 3:
        return embed<T, 3>(problem, tables, out, blocks, stream);
      case 4:
        return embed<T, 4>(problem, tables, out, blocks, stream);
      case 5:
        return embed<T, 5>(problem, tables, out, blocks, stream);
      case 6:
        return embed<T, 6>(problem, tables, out, blocks, stream);
      case 7:
        return embed<T, 7>(problem, tables, out, blocks, stream);
    }
  }
  embed<T, 0>(problem, tables, out, blocks, stream);
}

template <class T, int W>
void number(const BuildProblem<T>& problem, const BuildTables& tables, const LatticeOutputs<T>& out,
            cudaStream_t stream) {
  const VertexProblem vertices{problem.d,        problem.grid,      problem.batch,      problem.capacity,
                               out.tile_offsets, out.tile_vertices, out.vertex_offsets, out.vertex_partials,
                               out.neighbours,   out.image_offsets, out.num_vertices};
  const Grid tiles{problem.tiles()}, single{1, 1, 0, kScanThreads};
  launch(insert_vertices<W>, tiles, stream, vertices, tables);
  launch(count_new_vertices, tiles, stream, vertices, tables);
  launch(offset_tiles, single, stream, vertices, tables);
  launch(number_vertices, tiles, stream, vertices, tables);
  launch(list_vertices, tiles, stream, vertices, tables);
  launch(sum_partials, tiles, stream, vertices, tables);
  launch(offset_sums, single, stream, vertices, tables);
  launch(offset_vertices, tiles, stream, vertices, tables);
  launch(find_neighbours<W>, {striding_blocks(problem.capacity * (problem.d + 1))}, stream, vertices, tables);
  launch(gather_partials, tiles, stream, vertices, tables);
  launch(sort_partials, tiles, stream, vertices, tables);
}

template <class T>
int64_t slots_of(const BuildProblem<T>& problem) {
  const int64_t entries = problem.batch * problem.image_entries();
  int64_t slots = 64;
  while (slots < entries + entries / 4) slots *= 2;
  return slots;
}

template <class T>
int64_t embedding_blocks(const BuildProblem<T>& problem, int64_t work_bytes) {
  return work_bytes <= kSharedLimit ? problem.tiles()
                                    : min_of(problem.tiles(), static_cast<int64_t>(multiprocessors()) * 2);
}

// Lays the tables out from `memory` on (null: only measures) and returns how many bytes they take.
template <class T>
int64_t carve(const BuildProblem<T>& problem, char* memory, BuildTables& tables) {
  const int64_t entries = problem.batch * problem.image_entries(), tiles = problem.tiles();
  int64_t at = 0;
  const auto take = [&](auto*& array, int64_t count) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(memory + at);
    at += ceil_div(count * static_cast<int64_t>(sizeof(*array)), 256) * 256;
  };
  tables.slot_mask = static_cast<uint64_t>(slots_of(problem) - 1);
  take(tables.slots, slots_of(problem));
  take(tables.keys, entries * key_words(problem.d));
  take(tables.slot_of, entries);
  take(tables.id_of, entries);
  take(tables.tile_counts, tiles);
  take(tables.tile_new, tiles);
  take(tables.tile_first, tiles + 1);
  take(tables.tile_sums, tiles + 1);
  take(tables.partial_counts, problem.capacity);
  take(tables.place_of, problem.capacity);
  take(tables.fault, 1);
  tables.tile_work_bytes = TileWork().carve(nullptr, problem.d);
  tables.tile_work = nullptr;
  if (tables.tile_work_bytes > kSharedLimit)
    take(tables.tile_work, tables.tile_work_bytes * embedding_blocks(problem, tables.tile_work_bytes));
  return at;
}

}  // namespace

template <class T>
int64_t build_workspace(const BuildProblem<T>& problem) {
  BuildTables tables{};
  return carve(problem, nullptr, tables);
}

template <class T>
void build_lattice(const BuildProblem<T>& problem, const LatticeOutputs<T>& out, void* workspace, cudaStream_t stream) {
  BuildTables tables{};
  carve(problem, static_cast<char*>(workspace), tables);
  const auto slots = static_cast<int64_t>(tables.slot_mask + 1);
  launch(clear_tables, {striding_blocks(slots / 2)}, stream, tables);
  embed_any(problem, tables, out, embedding_blocks(problem, tables.tile_work_bytes), stream);
  if (key_words(problem.d) == 1)
    number<T, 1>(problem, tables, out, stream);
  else if (key_words(problem.d) == 2)
    number<T, 2>(problem, tables, out, stream);
  else
    number<T, 0>(problem, tables, out, stream);
}

template int64_t build_workspace(const BuildProblem<float>&);
template int64_t build_workspace(const BuildProblem<double>&);
template void build_lattice(const BuildProblem<float>&, const LatticeOutputs<float>&, void*, cudaStream_t);
template void build_lattice(const BuildProblem<double>&, const LatticeOutputs<double>&, void*, cudaStream_t);

}  // namespace densecrf::cuda
