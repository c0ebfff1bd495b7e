#include "depthwise_panels.h"

#include <algorithm>

namespace densecrf {

RowBlocks::RowBlocks(const DepthwiseShape& shape) : rows(shape.batch * shape.out_size.y), image_rows(shape.out_size.y) {
  size = std::max(ceil_div(kBlockPixels, shape.out_size.x), ceil_div(rows, kMaxBlocks));
  count = ceil_div(rows, size);
}

Panels::Panels(const TapRuns& runs, const Raster& map, const Raster& source, bool channels_last, int kernel,
               int64_t tap_stride)
    : columns_(static_cast<int64_t>(runs.x.runs.size())),
      map_step_(runs.y.step * map.row_stride),
      source_step_(runs.y.source_step * source.row_stride) {
  for (const TapRun& row : runs.y.runs) {
    row_counts_.push_back(row.count);
    for (const TapRun& column : runs.x.runs) {
      Panel panel;
      panel.at = map.at(row.first, column.first);
      panel.count = channels_last ? column.count : row.count;
      panel.length = channels_last ? 0 : column.count;
      panel.stride = channels_last ? runs.x.step * map.pixel_stride : map_step_;
      panel.source_stride = channels_last ? runs.x.source_step * source.pixel_stride : source_step_;
      panel.live = 0;
      for (int i = 0; i < row.live; ++i)
        for (int j = 0; j < column.live; ++j) {
          panel.source[panel.live] = source.at(row.source[i], column.source[j]);
          panel.weight[panel.live++] = (row.tap[i] * kernel + column.tap[j]) * tap_stride;
        }
      panels_.push_back(panel);
    }
  }
}

std::vector<Panel> Panels::of_rows(int64_t begin, int64_t end) const {
  std::vector<Panel> result;
  each_run(begin, end, [&](const Panel* panels, int64_t first, int64_t last) {
    for (int64_t i = 0; i < columns_; ++i) {
      result.push_back(panels[i]);
      Panel& panel = result.back();
      panel.count = last - first;
      panel.at += first * map_step_;
      for (int t = 0; t < panel.live; ++t) panel.source[t] += first * source_step_;
    }
  });
  return result;
}

}  // namespace densecrf
