// How the fused kernel cuts its work: a block computes kPixels x kOutputs of the product, chunk by chunk of channels.
#pragma once

#include "packets.cuh"
#include "separable_fused.h"

namespace densecrf::cuda {

// Rows of both factors in shared memory hold one chunk of channels, 64 bytes in four segments of 16. Segments of a row
// are exchanged so that eight neighbouring rows, the unit of ldmatrix, lie in different banks.
constexpr int kRowBytes = 64, kSegmentBytes = 16, kSegments = kRowBytes / kSegmentBytes;
__device__ __forceinline__ int segment_offset(int row, int segment) {
  return row * kRowBytes + ((segment ^ (row >> 1 & (kSegments - 1))) * kSegmentBytes);
}

template <class T>
constexpr int kChunk = kRowBytes / static_cast<int>(sizeof(T));

// Warps of a block stand in a grid over the tile, and each computes Fragments of 16 pixels by 8 outputs. `Blocks` share
// a multiprocessor: one produces while another multiplies or writes.
template <int Pixels, int Outputs, int WarpRows, int Blocks>
struct FusedTile {
  static constexpr int pixels = Pixels, outputs = Outputs, blocks = Blocks;
  static constexpr int warps = kBlockThreads / kWarpThreads, warp_rows = WarpRows, warp_columns = warps / WarpRows;
  static constexpr int warp_pixels = Pixels / warp_rows, warp_outputs = Outputs / warp_columns;
  static constexpr int row_fragments = warp_pixels / 16, column_fragments = warp_outputs / 8;
  static constexpr int packets = Pixels * kSegments / kBlockThreads;  // that each thread produces of a chunk
  static constexpr int stage_bytes = (Pixels + Outputs) * kRowBytes;
  static_assert(warp_pixels % 16 == 0 && warp_outputs % 16 == 0 && Pixels * kSegments % kBlockThreads == 0);
};

// One axis of the depthwise convolution, with the taps that reach the image from any output: tap t of these reads
// position step · o + origin + t · dilation. Sides are below kMaxSide, so all of that fits in 32 bits, whatever padding
// and dilation are.
struct TapAxis {
  int size, outputs;  // of the image, in pixels
  int step, origin, dilation;
  int first_tap, live_taps;
};

inline TapAxis tap_axis(int64_t size, int64_t outputs, int kernel, int64_t step, int64_t padding, int64_t dilation) {
  TapAxis axis{};
  axis.size = static_cast<int>(size);
  axis.outputs = static_cast<int>(outputs);
  axis.step = static_cast<int>(step);
  for (int tap = kernel - 1; tap >= 0; --tap) {
    const int64_t first = tap * dilation - padding;
    if (first >= size || first + step * (outputs - 1) < 0) continue;
    axis.first_tap = tap;
    axis.origin = static_cast<int>(first);
    ++axis.live_taps;
  }
  // two live taps are closer to each other than the reach of one
  axis.dilation = axis.live_taps > 1 ? static_cast<int>(dilation) : 0;
  return axis;
}

// What the blocks need beyond the problem itself; positions fit in 32 bits there, whatever the dilation.
template <class T>
struct FusedProblem {
  SeparableProblem<T> separable;
  ImageView<T> out;
  TapAxis y, x;
  int64_t pixels;         // of all images
  unsigned output_tiles;  // tiles next to each other along the outputs
  int chunks;
  bool whole_packets;  // every 16 bytes of a row of inputs and pointwise weights can be moved by one instruction
  bool packed_out;     // likewise of outputs and residual
};

// Pixels of a tile lie close to each other in both directions, so that they share taps in the first cache: bands of
// four rows are walked through column by column. The last band of an image may have fewer rows.
constexpr int kBandRows = 4;
struct PixelPlace {
  int64_t image;
  int y, x;

  __device__ PixelPlace(int64_t number, const TapAxis& rows, const TapAxis& columns) {
    const int64_t image_pixels = static_cast<int64_t>(rows.outputs) * columns.outputs;
    image = number / image_pixels;
    const int64_t at = number - image * image_pixels, band_pixels = static_cast<int64_t>(kBandRows) * columns.outputs;
    const int64_t band = at / band_pixels;
    const int64_t in_band = at - band * band_pixels, first = band * kBandRows;
    const int64_t height = min_of(kBandRows, rows.outputs - first);
    x = static_cast<int>(in_band / height);
    y = static_cast<int>(first + in_band - x * height);
  }
};

// Where a pixel's taps are: the first one, and a bit for each that lies in the image.
struct PixelTaps {
  int64_t offset;
  unsigned long long live;
};

// Where a pixel goes, in the end.
struct PixelOffsets {
  int64_t out;  // negative behind the last pixel
  int64_t residual;
};

constexpr int kMaxTaps = 49;

// Shared memory of a block.
template <class T, class Tile>
struct FusedMemory {
  using A = Accumulator<T>;
  // rows of the weights of a chunk: the live taps, then scale and shift
  HOST_DEVICE static constexpr int weight_rows(int taps) { return taps + 2; }
  static constexpr int64_t bytes(int taps) {
    return 2 * Tile::stage_bytes + Tile::pixels * static_cast<int64_t>(sizeof(PixelTaps)) +
           kMaxTaps * static_cast<int64_t>(sizeof(int64_t)) +
           2 * weight_rows(taps) * kChunk<T> * static_cast<int64_t>(sizeof(A));
  }

  char* stages;          // [2][pixels + outputs] rows
  PixelTaps* pixels;     // [pixels]
  A* weights;            // [2][weight rows][kChunk]
  int64_t* tap_offsets;  // [live taps]
  int taps;

  __device__ FusedMemory(char* memory, int taps)
      : stages(memory),
        pixels(reinterpret_cast<PixelTaps*>(memory + 2 * Tile::stage_bytes)),
        weights(reinterpret_cast<A*>(pixels + Tile::pixels)),
        tap_offsets(reinterpret_cast<int64_t*>(weights + 2 * weight_rows(taps) * kChunk<T>)),
        taps(taps) {}
  __device__ char* inputs(int stage) const { return stages + stage * Tile::stage_bytes; }
  __device__ char* factors(int stage) const { return inputs(stage) + Tile::pixels * kRowBytes; }
  __device__ A* weights_of(int stage) const { return weights + stage * weight_rows(taps) * kChunk<T>; }
  // of pixels that have no more taps to read
  __device__ PixelOffsets* offsets() const { return reinterpret_cast<PixelOffsets*>(pixels); }
};
static_assert(sizeof(PixelOffsets) == sizeof(PixelTaps));

}  // namespace densecrf::cuda
