// The fused kernel: while a part of the warps multiplies one chunk of channels, the others make the next one, and then
// they change places. Compiled for each type in a file of its own.
#pragma once

#include "../separable_conv_path.h"
#include "separable_fused_finish.cuh"
#include "separable_fused_produce.cuh"

namespace densecrf::cuda {

// Shared memory of the oldest GPUs has room for one block anyway.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
template <class Tile>
constexpr int kFusedBlocks = 1;
#else
template <class Tile>
constexpr int kFusedBlocks = Tile::blocks;
#endif

template <class T, class Tile, bool WholePackets, class Product>
__global__ void __launch_bounds__(kBlockThreads, kFusedBlocks<Tile>) separable_kernel(FusedProblem<T> problem) {
  DENSECRF_DYNAMIC_SHARED(char, bytes);
  const FusedMemory<T, Tile> memory(bytes, problem.y.live_taps * problem.x.live_taps);
  // outputs of the same pixels go to neighbouring blocks, which read the same inputs
  const int64_t first_pixel = static_cast<int64_t>(blockIdx.x / problem.output_tiles) * Tile::pixels;
  const int first_output = static_cast<int>(blockIdx.x % problem.output_tiles) * Tile::outputs;
  const int warp = threadIdx.x / kWarpThreads;
  const int row = warp / Tile::warp_columns * Tile::warp_pixels;
  const int column = warp % Tile::warp_columns * Tile::warp_outputs;
  // warps of both kinds on each of the four schedulers, which take warps in turns
  const int produces_first = warp / 4 % 2;
  Sums<T, Tile> sums{};

  place_pixels(problem, first_pixel, memory);
  load_weights(problem, 0, memory.weights_of(0));
  begin_factors<T, Tile>(problem, first_output, 0, memory.factors(0));
  __syncthreads();
  produce<T, Tile, WholePackets, Product>(problem, memory, 0);
  if (problem.chunks > 1) load_weights(problem, 1, memory.weights_of(1));
  wait_for_copies();
  __syncthreads();
  for (int chunk = 0; chunk < problem.chunks; ++chunk) {
    const int stage = chunk % 2, next = chunk + 1;
    if (next < problem.chunks) begin_factors<T, Tile>(problem, first_output, next, memory.factors(next % 2));
#pragma unroll 1
    for (int turn = 0; turn < 2; ++turn) {
      if (turn == produces_first)
        Product::add(memory.inputs(stage), memory.factors(stage), row, column, sums);
      else if (next < problem.chunks)
        produce<T, Tile, WholePackets, Product>(problem, memory, next);
    }
    // those of this chunk have been used in the turn before
    if (next + 1 < problem.chunks) load_weights(problem, next + 1, memory.weights_of(stage));
    wait_for_copies();
    __syncthreads();
  }

  place_outputs<T, Tile>(problem, first_pixel, memory.offsets());
  __syncthreads();
  write_sums(problem, memory.offsets(), first_output, row, column, sums);
}

inline bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Whether 16 bytes of a pixel begin at multiples of 16 bytes.
template <class T>
bool packed(const ImageView<T>& view) {
  constexpr int64_t V = kPacketChannels<std::remove_const_t<T>>;
  return view.channel_stride == 1 && view.pixel_stride % V == 0 && view.batch_stride % V == 0 && aligned(view.data);
}

template <class T>
FusedProblem<T> fused_problem(const SeparableProblem<T>& separable, const ImageView<T>& out) {
  const DepthwiseShape& shape = separable.depthwise.shape;
  constexpr int64_t V = kPacketChannels<T>;
  FusedProblem<T> problem{};
  problem.separable = separable;
  problem.out = out;
  problem.y = tap_axis(shape.size.y, shape.out_size.y, shape.kernel, shape.stride.y, shape.padding.y, shape.dilation.y);
  problem.x = tap_axis(shape.size.x, shape.out_size.x, shape.kernel, shape.stride.x, shape.padding.x, shape.dilation.x);
  problem.pixels = shape.batch * shape.out_pixels();
  problem.chunks = static_cast<int>(ceil_div(shape.channels, kChunk<T>));
  problem.whole_packets = packed(separable.depthwise.input) && shape.channels % V == 0 && aligned(separable.pointwise);
  problem.packed_out = packed(out) && separable.out_channels % V == 0;
  return problem;
}

template <class Tile, class Product, class T>
void start_fused(FusedProblem<T> problem, cudaStream_t stream) {
  problem.output_tiles = static_cast<unsigned>(ceil_div(problem.separable.out_channels, Tile::outputs));
  const int taps = problem.y.live_taps * problem.x.live_taps;
  const Grid grid{ceil_div(problem.pixels, Tile::pixels) * problem.output_tiles, 1, FusedMemory<T, Tile>::bytes(taps)};
  if (problem.whole_packets)
    launch(separable_kernel<T, Tile, true, Product>, grid, stream, problem);
  else
    launch(separable_kernel<T, Tile, false, Product>, grid, stream, problem);
}

// Calls start(tile) for the tile that suits the outputs, the lower one where there would be fewer blocks than
// multiprocessors.
template <class T, class Start>
void with_tensor_tile(const FusedProblem<T>& problem, Start start) {
  const int64_t outputs = problem.separable.out_channels;
  switch (fused_tile_outputs(outputs)) {
    case 32:
      return start(FusedTile<128, 32, 8, 3>{});
    case 64:
      return start(FusedTile<128, 64, 4, 2>{});
    case 128:
      return start(FusedTile<128, 128, 4, 2>{});
  }
  if (ceil_div(problem.pixels, 128) * ceil_div(outputs, 256) < multiprocessors())
    return start(FusedTile<64, 256, 2, 2>{});
  start(FusedTile<128, 256, 2, 1>{});
}

// Half types multiply exactly on GPUs without tensor cores for them alone: one tile has to do.
template <class T>
void start_half(const SeparableProblem<T>& separable, const ImageView<T>& out, bool tensor, cudaStream_t stream) {
  const FusedProblem<T> problem = fused_problem(separable, out);
  if (!tensor) return start_fused<FusedTile<128, 64, 4, 2>, ExactProduct<T>>(problem, stream);
  with_tensor_tile(problem, [&](auto tile) { start_fused<decltype(tile), TensorProduct<T>>(problem, stream); });
}

}  // namespace densecrf::cuda
