// How a depthwise convolution or its adjoint becomes the work of threads. Every output gathers from a source image,
//
//   out(y, x) = sum over taps (i, j) of weight(i, j) · source((y · step + origin + i · dilation) / divisor, ...)
//
// and whatever lies outside of the source, or between its pixels, is zero. Outputs whose positions differ by multiples
// of the dilation share taps: they form a class, which is a convolution without dilation, and a thread computes a strip
// of neighbours of one class.
#pragma once

#include <numeric>

#include "depthwise.h"

namespace densecrf::cuda {

struct GatherAxis {
  int end;              // of the positions: pixels of the source, times the divisor
  int outputs;          // pixels
  int step, origin;     // output o reads with tap i what is at position o · step + origin + i · dilation
  int dilation;         //
  int divisor;          // 1, or for the adjoint the stride: only its multiples are pixels of the source
  int live, first;      // how many taps reach the source for any output, and the first of them
  int classes, length;  // output r + m · classes is number m of class r; no class is longer than `length`

  HOST_DEVICE int slots() const { return classes * length; }
  // The output of a slot, if below `outputs`: slots are the members of the classes, one class after the other.
  HOST_DEVICE int output(int slot) const { return slot / length + slot % length * classes; }
  // Neighbours of a class read neighbouring taps.
  bool shares_taps() const { return divisor == 1 && step * classes == dilation; }
  GatherAxis first_tap_alone() const {
    GatherAxis axis = *this;
    axis.origin += first * dilation;
    return axis;
  }
};

inline GatherAxis gather_axis(int64_t size, int64_t outputs, int kernel, int64_t step, int64_t origin, int64_t dilation,
                              int64_t divisor) {
  const int64_t end = size * divisor, last = step * (outputs - 1), reach = end + last + 1;
  int live = 0, first = 0;
  int64_t origin_of_first = end;
  for (int tap = kernel - 1; tap >= 0; --tap) {
    const int64_t at = origin + tap * dilation;
    if (at >= end || at + last < 0) continue;
    origin_of_first = at;
    first = tap;
    ++live;
  }
  // Two live taps are less than the reach apart. With fewer, any dilation beyond the reach is as good as the true one,
  // and so the numbers fit in 32 bits whatever dilation and padding are.
  if (live < 2) dilation = reach;
  const int64_t classes = live < 2 || divisor > 1 ? 1 : min_of(dilation / std::gcd(step, dilation), outputs);
  return {static_cast<int>(end),
          static_cast<int>(outputs),
          static_cast<int>(step),
          static_cast<int>(origin_of_first - first * dilation),
          static_cast<int>(dilation),
          static_cast<int>(divisor),
          live,
          first,
          static_cast<int>(classes),
          static_cast<int>(ceil_div(outputs, classes))};
}

struct Gather {
  int64_t batch, channels;
  int kernel;
  GatherAxis y, x;
  int source_width;  // pixels
  bool backwards;    // tap (i, j) has weight (kernel - 1 - i, kernel - 1 - j)

  bool one_tap() const { return y.live < 2 && x.live < 2; }
};

inline Gather forward_gather(const DepthwiseShape& shape) {
  const auto axis = [&](int64_t Pair::* of) {
    return gather_axis(shape.size.*of, shape.out_size.*of, shape.kernel, shape.stride.*of, -(shape.padding.*of),
                       shape.dilation.*of, 1);
  };
  return {shape.batch, shape.channels, shape.kernel, axis(&Pair::y), axis(&Pair::x), static_cast<int>(shape.size.x),
          false};
}

// Input pixel p went with tap i to position (p + padding - i · dilation) / stride, if that is a pixel of the output.
inline Gather adjoint_gather(const DepthwiseShape& shape) {
  const auto axis = [&](int64_t Pair::* of) {
    const int64_t dilation = shape.dilation.*of, origin = shape.padding.*of - (shape.kernel - 1) * dilation;
    return gather_axis(shape.out_size.*of, shape.size.*of, shape.kernel, 1, origin, dilation, shape.stride.*of);
  };
  return {shape.batch, shape.channels, shape.kernel, axis(&Pair::y), axis(&Pair::x), static_cast<int>(shape.out_size.x),
          true};
}

constexpr int kMaxLanes = 16;

// How a gather is cut into strips and packets. Neighbouring threads of a block have neighbouring packets, so that they
// read what is next to each other; those with the same packet have different strips.
struct Strips {
  int packets, lanes, chunks;  // of a pixel, of a block, and blocks for all packets of a pixel
  int of_class, of_row;        // strips of a class in a row, and of all classes: strips in a row of slots

  HOST_DEVICE int together() const { return kBlockThreads / lanes; }
};

inline Strips cut_strips(const Gather& gather, int packet, int strip) {
  Strips strips{};
  strips.packets = static_cast<int>(ceil_div(gather.channels, packet));
  strips.chunks = static_cast<int>(ceil_div(strips.packets, kMaxLanes));
  strips.lanes = static_cast<int>(ceil_div(strips.packets, strips.chunks));
  strips.of_class = static_cast<int>(ceil_div(gather.x.length, strip));
  strips.of_row = gather.x.classes * strips.of_class;
  return strips;
}

// The strips of a block are a tile of the image, about square in pixels because the border of a tile is read twice.
struct Tiles {
  int rows, columns;  // of strips in a tile
  int down, across;   // tiles of an image
};

inline int square_root(int x) {
  int root = 1;
  while ((root + 1) * (root + 1) <= x) ++root;
  return root;
}

inline Tiles cut_tiles(const Gather& gather, const Strips& strips, int strip) {
  const int64_t together = strips.together(), rows = gather.y.slots();
  Tiles tiles{};
  tiles.columns = static_cast<int>(min_of(square_root(strips.together() / strip), strips.of_row));
  tiles.rows = static_cast<int>(min_of(together / tiles.columns, rows));
  tiles.columns = static_cast<int>(min_of(together / tiles.rows, strips.of_row));  // where there are few rows
  tiles.down = static_cast<int>(ceil_div(rows, tiles.rows));
  tiles.across = static_cast<int>(ceil_div(strips.of_row, tiles.columns));
  return tiles;
}

// For sums over all pixels of a batch, strips are dealt to parts in their order, and the sums of parts are added in
// that of the parts. How many there are depends on the shape alone, so every device sums in the same order.
struct Parts {
  int64_t strips;         // of all images
  int64_t length, count;  // strips of a part, but for the last one, and parts
};

// As many blocks as fill a large GPU, unless threads would have too few strips for what their own sums cost.
constexpr int64_t kSumBlocks = 1024, kStripsOfThread = 4;

inline Parts cut_parts(const Gather& gather, const Strips& strips, int64_t blocks_of_part) {
  const int64_t count = int64_t{strips.of_row} * gather.y.slots() * gather.batch;
  const int64_t parts =
      min_of(ceil_div(kSumBlocks, blocks_of_part), ceil_div(count, strips.together() * kStripsOfThread));
  const int64_t length = ceil_div(count, parts < 1 ? 1 : parts);
  return {count, length, ceil_div(count, length < 1 ? 1 : length)};
}

}  // namespace densecrf::cuda
