// Sums over all pixels of a batch, for each channel: every part of the strips has blocks of its own, and what they have
// summed is added in the order of the parts. How many parts there are depends on the shape alone, so the sums do too.
#pragma once

#include "depthwise_gather.h"

namespace densecrf::cuda {

struct SumParts {
  int packets, lanes, chunks;  // as in GatherTiles
  int strips_of_class;
  int64_t row_strips, strips;  // of a row of slots, and of all images
  int64_t count, length;       // parts, and strips of each; the last one may have fewer

  int together() const { return kBlockThreads / lanes; }
  int64_t blocks() const { return chunks * count; }
};

// As many blocks as fill a large GPU, where each thread still has a few strips.
constexpr int64_t kSumBlocks = 1024, kStripsOfThread = 4;

inline SumParts sum_parts(const Gather& gather, int packet, int strip, int64_t copies) {
  SumParts parts{};
  parts.packets = static_cast<int>(ceil_div(gather.channels, packet));
  parts.chunks = static_cast<int>(ceil_div(parts.packets, kMaxLanes));
  parts.lanes = static_cast<int>(ceil_div(parts.packets, parts.chunks));
  parts.strips_of_class = static_cast<int>(ceil_div(gather.x.length, strip));
  parts.row_strips = int64_t{gather.x.classes} * parts.strips_of_class;
  parts.strips = parts.row_strips * gather.y.slots() * gather.batch;
  const int64_t useful = ceil_div(parts.strips, parts.together() * kStripsOfThread);
  const int64_t wanted = min_of(ceil_div(kSumBlocks, parts.chunks * copies), useful);
  parts.length = ceil_div(parts.strips, wanted < 1 ? 1 : wanted);
  parts.count = ceil_div(parts.strips, parts.length < 1 ? 1 : parts.length);
  return parts;
}

}  // namespace densecrf::cuda
