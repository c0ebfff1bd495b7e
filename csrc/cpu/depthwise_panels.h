// What the depthwise gradients share: live taps of a panel, blocks of rows, and rows taken apart by the stride.
#pragma once

#include <vector>

#include "buffer.h"
#include "depthwise_gradient_kernels.h"

namespace densecrf {

// Pixels whose sums one task adds up before its total joins those of other tasks. It fixes the order of the sums, and
// the rows of one channel that a task goes through several times stay in the first cache.
constexpr int64_t kBlockPixels = 4096;
// More tasks than any machine has threads, few enough that their totals take little memory.
constexpr int64_t kMaxBlocks = 256;
// Channels of one task where channels are last.
constexpr int64_t kBlockChannels = 256;

// The output's rows of all images, in blocks that depend on the shape alone.
struct RowBlocks {
  explicit RowBlocks(const DepthwiseShape& shape) : rows(shape.batch * shape.out_size.y), image_rows(shape.out_size.y) {
    size = ceil_div(kBlockPixels, shape.out_size.x);
    if (size * kMaxBlocks < rows) size = ceil_div(rows, kMaxBlocks);
    count = ceil_div(rows, size);
  }

  // Calls function(image, first row, end) for the images of one block.
  template <class Function>
  void each_image(int64_t block, Function function) const {
    const int64_t end = min_of((block + 1) * size, rows);
    for (int64_t row = block * size; row < end;) {
      const int64_t image = row / image_rows, first = row - image * image_rows;
      const int64_t next = min_of(image_rows, first + end - row);
      function(image, first, next);
      row += next - first;
    }
  }

  int64_t rows, image_rows, size, count;
};

// Calls function(run, skipped, count) for the parts of runs within positions [begin, end); the step must be 1.
template <class Function>
void for_runs(const AxisRuns& axis, int64_t begin, int64_t end, Function function) {
  for (const TapRun& run : axis.runs) {
    const int64_t from = begin > run.first ? begin : run.first, to = min_of(end, run.first + run.count);
    if (from < to) function(run, from - run.first, to - from);
  }
}

template <class T>
bool channels_last(const ImageView<T>& view) {
  return view.channel_stride == 1;
}

// [taps, channels], so that a tap's weights are neighbours.
template <class T>
Buffer<T> weights_by_tap(const T* weight, int64_t channels, int taps) {
  Buffer<T> result(taps * channels);
  for (int64_t c = 0; c < channels; ++c)
    for (int t = 0; t < taps; ++t) result[t * channels + c] = weight[c * taps + t];
  return result;
}

// A row of `width` columns taken apart into those of equal remainder by the stride, one part after the other, so that
// columns a stride apart become neighbours.
struct Phases {
  Phases(int64_t width, int64_t stride) : width(width), stride(stride), part(ceil_div(width, stride)) {}

  int64_t row() const { return stride * part; }
  int64_t at(int64_t column) const { return column % stride * part + column / stride; }

  template <class T>
  void split(const T* rows, int64_t count, T* out) const {
    for (; count > 0; --count, rows += width, out += row())
      for (int64_t phase = 0; phase < stride; ++phase)
        for (int64_t x = phase, i = phase * part; x < width; x += stride) out[i++] = rows[x];
  }

  template <class T>
  void join(const T* parts, int64_t count, T* out) const {
    for (; count > 0; --count, parts += row(), out += width)
      for (int64_t phase = 0; phase < stride; ++phase)
        for (int64_t x = phase, i = phase * part; x < width; x += stride) out[x] = parts[i++];
  }

  int64_t width, stride, part;
};

}  // namespace densecrf
