// What the depthwise gradients share: panels of positions with the same taps, blocks of rows, and rows taken apart by
// the stride.
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
// Channels of one task: neighbours in memory where channels are last, otherwise planes that share the panels.
constexpr int64_t kBlockChannels = 256, kBlockPlanes = 16;

// The output's rows of all images, in blocks that depend on the shape alone.
struct RowBlocks {
  explicit RowBlocks(const DepthwiseShape& shape);

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

// Where the pixels of an image are.
struct Raster {
  int64_t row_stride, pixel_stride;
  Phases columns;

  int64_t at(int64_t y, int64_t x) const { return y * row_stride + columns.at(x) * pixel_stride; }
};

inline Raster pixel_raster(int64_t width, int64_t pixel_stride) {
  return {width * pixel_stride, pixel_stride, Phases(width, 1)};
}

inline Raster column_raster(const Phases& columns) { return {columns.row(), 1, columns}; }

// All panels of a map, by runs of rows, then of columns. Rows are counted in the order of the runs, which is that of
// the image where the step is 1.
class Panels {
 public:
  // `tap_stride` from the weights of one tap to those of the next
  Panels(const TapRuns& runs, const Raster& map, const Raster& source, bool channels_last, int kernel,
         int64_t tap_stride);

  const std::vector<Panel>& all() const { return panels_; }

  // Those of rows [begin, end), cut to these rows; of columns.
  std::vector<Panel> of_rows(int64_t begin, int64_t end) const;

  // Calls function(panels, number, offset in the map, offset in the source) for each row of [begin, end); of pixels.
  template <class Function>
  void each_row(int64_t begin, int64_t end, Function function) const {
    each_run(begin, end, [&](const Panel* panels, int64_t first, int64_t last) {
      for (int64_t q = first; q < last; ++q) function(panels, columns_, q * map_step_, q * source_step_);
    });
  }

 private:
  // Calls function(panels, first row in the run, end) for each run that has rows of [begin, end).
  template <class Function>
  void each_run(int64_t begin, int64_t end, Function function) const {
    int64_t row = 0;
    for (size_t i = 0; i < row_counts_.size(); row += row_counts_[i++]) {
      const int64_t first = begin > row ? begin - row : 0, last = min_of(end - row, row_counts_[i]);
      if (first < last) function(panels_.data() + static_cast<int64_t>(i) * columns_, first, last);
    }
  }

  std::vector<Panel> panels_;
  std::vector<int64_t> row_counts_;
  int64_t columns_;
  int64_t map_step_, source_step_;  // from row to row
};

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

}  // namespace densecrf
