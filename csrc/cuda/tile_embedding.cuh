// First step of a build: one block embeds the points of one tile, finds which of them share a simplex and which
// simplices share a vertex, and writes the tables of the points and the tile's own list of vertices.
#pragma once

#include "block.cuh"
#include "build_tables.cuh"

namespace densecrf::cuda {

static_assert(kTilePoints == kBlockThreads, "one thread for each point of a tile");

template <class T>
struct Scales {
  T of[kMaxDimension];  // elevation_scale, computed once on the host
};

// What a block knows of its tile, in shared memory or, for so many dimensions that it does not fit, in global memory.
struct TileWork {
  uint64_t* base_key;     // [words][points]  key of the remainder-0 vertex
  uint32_t* vertex_slot;  // [vertex_slots]   table of vertices: 16 bits of hash, then the least item
  int32_t* simplex_slot;  // [simplex_slots]  table of simplices: their first point
  uint32_t* members;      // [points][points / 32]  which points each simplex has
  int32_t* count;         // [items]          per vertex of the tile: items << 16 | entries
  uint16_t* item_local;   // [items]          vertex of the tile that each item is
  uint16_t* item_place;   // [items]          slot of the item, then where its entries go in the plan
  uint16_t* list;         // [items]          items by vertex
  int16_t* simplex_of;    // [points]         simplex by its first point
  int16_t* first_point;   // [points]         of each simplex
  int16_t* size;          // [points]         points of each simplex
  int16_t* start;         // [points]         first entry of each simplex
  uint8_t* rank;          // [d + 1][points]

  static constexpr int kSimplexSlots = 2 * kTilePoints;
  static constexpr int kMemberWords = kTilePoints / 32;

  HOST_DEVICE static int items(int d) { return kTilePoints * (d + 1); }
  HOST_DEVICE static int vertex_slots(int d) {
    int slots = 64;
    while (slots < items(d) + items(d) / 4) slots *= 2;
    return slots;
  }

  // Lays the arrays out from `memory` on (null: only measures) and returns how many bytes they take.
  HOST_DEVICE int64_t carve(char* memory, int d) {
    int64_t at = 0;
    const auto take = [&](auto*& array, int64_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(memory + at);
      at += ceil_div(count * static_cast<int64_t>(sizeof(*array)), 16) * 16;
    };
    take(base_key, key_words(d) * kTilePoints);
    take(vertex_slot, vertex_slots(d));
    take(simplex_slot, kSimplexSlots);
    take(members, kTilePoints * kMemberWords);
    take(count, items(d));
    take(item_local, items(d));
    take(item_place, items(d));
    take(list, items(d));
    take(simplex_of, kTilePoints);
    take(first_point, kTilePoints);
    take(size, kTilePoints);
    take(start, kTilePoints);
    take(rank, (d + 1) * kTilePoints);
    return at;
  }

  // Word w of the key of vertex k of the simplex that point p lies in.
  __device__ uint64_t key_word(int p, int k, int w, int d) const {
    uint64_t key = base_key[w * kTilePoints + p] + static_cast<uint64_t>(k) * key_ones(w, d);
    for (int i = w * kFieldsPerWord; i < d && i < (w + 1) * kFieldsPerWord; ++i)
      if (rank[i * kTilePoints + p] > d - k) key -= static_cast<uint64_t>(d + 1) * key_field(i);
    return key;
  }
  __device__ bool same_vertex(int p, int k, int q, int l, int d) const {
    for (int w = 0; w < key_words(d); ++w)
      if (key_word(p, k, w, d) != key_word(q, l, w, d)) return false;
    return true;
  }
  __device__ bool same_simplex(int p, int q, int d) const {
    for (int w = 0; w < key_words(d); ++w)
      if (base_key[w * kTilePoints + p] != base_key[w * kTilePoints + q]) return false;
    for (int i = 0; i < d; ++i)
      if (rank[i * kTilePoints + p] != rank[i * kTilePoints + q]) return false;
    return true;
  }
};

template <class T>
__device__ T guide_value(const BuildProblem<T>& problem, int64_t image, int channel, int64_t point) {
  const int64_t at = image * problem.image_stride + channel * problem.channel_stride + point * problem.point_stride;
  if (problem.guide_type == GuideType::uint8) return static_cast<T>(static_cast<const uint8_t*>(problem.guide)[at]);
  if (problem.guide_type == GuideType::float32) return static_cast<T>(static_cast<const float*>(problem.guide)[at]);
  return static_cast<T>(static_cast<const double*>(problem.guide)[at]);
}

// Feature i of a point: a coordinate of the grid or a channel of the guide, divided by its bandwidth.
template <class T>
__device__ T point_feature(const BuildProblem<T>& problem, int64_t image, int64_t row, int64_t col, int i) {
  if (i >= problem.axes)
    return guide_value(problem, image, i - problem.axes, row * problem.grid.cols + col) / problem.bandwidth[i];
  int64_t coordinate = col;
  if (i > 0) {
    coordinate = row;
    for (int a = 1; a < i; ++a) coordinate /= problem.shape[a];
    coordinate %= problem.shape[i];
  }
  return static_cast<T>(coordinate) / problem.bandwidth[i];
}

// The features of a point, or the reason why there are none: then they are zero, so that all that follows stays in
// range.
template <class T, int D>
__device__ uint64_t load_features(const BuildProblem<T>& problem, int64_t image, int64_t row, int64_t col, int d,
                                  T* feature) {
  uint64_t fault = kNoFault;
  const int64_t point = image * problem.grid.points() + row * problem.grid.cols + col;
#pragma unroll
  for (int i = 0; i < (D ? D : d); ++i) {
    const T width = problem.bandwidth[i];
    feature[i] = point_feature(problem, image, row, col, i);
    if (!(width > T(0)) || !(width - width == T(0)))
      fault = fault < feature_fault(Fault::bandwidth, 0, i) ? fault : feature_fault(Fault::bandwidth, 0, i);
    else if (!(feature[i] - feature[i] == T(0)) && fault == kNoFault)
      fault = feature_fault(Fault::not_finite, point, i);
  }
  return fault;
}

// The dimension of largest magnitude: the one to blame for a key out of range.
template <class T>
__device__ int largest_feature(const T* feature, int d) {
  int largest = 0;
  for (int i = 1; i < d; ++i)
    if (fabs(feature[i]) > fabs(feature[largest])) largest = i;
  return largest;
}

template <class T, int D>
__device__ void enclose_point(const BuildProblem<T>& problem, const Scales<T>& scales, int64_t image, int64_t row,
                              int64_t col, int d, Simplex<T, D ? D : kMaxDimension>& simplex, uint64_t* fault) {
  T feature[D ? D : kMaxDimension];
  uint64_t found = load_features<T, D>(problem, image, row, col, d, feature);
  if (found == kNoFault) {
    simplex.enclose(feature, scales.of, D ? D : d);
    if (simplex.in_range(D ? D : d)) return;
    const int64_t point = image * problem.grid.points() + row * problem.grid.cols + col;
    found = feature_fault(Fault::key_range, point, largest_feature(feature, d));
  }
  atomicMin(reinterpret_cast<unsigned long long*>(fault), static_cast<unsigned long long>(found));
#pragma unroll
  for (int i = 0; i < (D ? D : d); ++i) feature[i] = T(0);
  simplex.enclose(feature, scales.of, D ? D : d);
}

// Finds the slot of a point's simplex; afterwards the slot holds the simplex's first point.
__device__ inline int insert_simplex(const TileWork& work, int p, int d) {
  uint64_t hash = 0;
  for (int w = 0; w < key_words(d); ++w) hash = (hash ^ work.base_key[w * kTilePoints + p]) * 0x9E3779B97F4A7C15ull;
  for (int i = 0; i < d; ++i) hash = (hash ^ work.rank[i * kTilePoints + p]) * 0xD6E8FEB86659FD93ull;
  for (unsigned at = static_cast<unsigned>(hash >> 40);; ++at) {
    int32_t* slot = work.simplex_slot + at % TileWork::kSimplexSlots;
    const int32_t found = atomicCAS(slot, -1, p);
    if (found != -1 && !work.same_simplex(found, p, d)) continue;
    if (found > p) atomicMin(slot, p);
    return static_cast<int>(at % TileWork::kSimplexSlots);
  }
}

// Finds the slot of a vertex; afterwards the slot ends in the least item that is this vertex.
__device__ inline int insert_vertex(const TileWork& work, int item, int p, int k, int d) {
  const unsigned slots = TileWork::vertex_slots(d);
  const int corners = d + 1;
  uint64_t hash = 0;
  for (int w = 0; w < key_words(d); ++w) hash = (hash ^ work.key_word(p, k, w, d)) * 0x9E3779B97F4A7C15ull;
  hash ^= hash >> 32;
  const uint32_t word = static_cast<uint32_t>(hash & 0xFFFFu) << 16 | static_cast<uint32_t>(item);
  for (unsigned at = static_cast<unsigned>(hash >> 16);; ++at) {
    uint32_t* slot = work.vertex_slot + (at & (slots - 1));
    const uint32_t found = atomicCAS(slot, ~0u, word);
    if (found != ~0u) {
      const int other = static_cast<int>(found & 0xFFFFu);
      if ((found ^ word) >> 16 || !work.same_vertex(work.first_point[other / corners], other % corners, p, k, d))
        continue;
      if (found > word) atomicMin(slot, word);
    }
    return static_cast<int>(at & (slots - 1));
  }
}

// Rank of this point among those of its simplex; simplices are numbered by their first point and then ordered by size.
struct PointPlace {
  int simplex, in_simplex, simplices;
};

__device__ inline PointPlace group_points(const TileWork& work, int p, bool inside, int d, int* warps) {
  for (int i = p; i < TileWork::kSimplexSlots; i += kBlockThreads) work.simplex_slot[i] = -1;
  for (int i = p; i < kTilePoints * TileWork::kMemberWords; i += kBlockThreads) work.members[i] = 0;
  __syncthreads();
  const int slot = inside ? insert_simplex(work, p, d) : 0;
  __syncthreads();
  const int first = inside ? work.simplex_slot[slot] : -1;
  PointPlace place{0, 0, 0};
  const int own = block_rank(first == p, warps, place.simplices);
  if (first == p) {
    work.simplex_of[p] = static_cast<int16_t>(own);
    work.first_point[own] = static_cast<int16_t>(p);
  }
  __syncthreads();
  if (inside) {
    place.simplex = work.simplex_of[first];
    atomicOr(&work.members[place.simplex * TileWork::kMemberWords + p / 32], 1u << (p % 32));
  }
  __syncthreads();
  if (inside) {
    const uint32_t* members = work.members + place.simplex * TileWork::kMemberWords;
    for (int w = 0; w < p / 32; ++w) place.in_simplex += __popc(members[w]);
    place.in_simplex += __popc(members[p / 32] & ((1u << (p % 32)) - 1));
  }
  if (p < place.simplices) {
    int size = 0;
    for (int w = 0; w < TileWork::kMemberWords; ++w) size += __popc(work.members[p * TileWork::kMemberWords + w]);
    work.size[p] = static_cast<int16_t>(size);
  }
  __syncthreads();
  if (p < place.simplices) {
    int start = 0;
    for (int s = 0; s < place.simplices; ++s)
      if (work.size[s] > work.size[p] || (work.size[s] == work.size[p] && s < p)) start += work.size[s];
    work.start[p] = static_cast<int16_t>(start);
  }
  __syncthreads();
  return place;
}

}  // namespace densecrf::cuda
