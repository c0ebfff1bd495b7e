#include "separable_forward.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "depthwise_tiles.h"

namespace densecrf {
namespace {

// Numbers of a buffer of depthwise results, which is a `part` of the second cache; the rest is for what streams past.
template <class T>
int64_t buffer_size(int part) {
  static const int64_t cache = std::clamp<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE), int64_t(1) << 19, int64_t(1) << 21);
  return cache / part / static_cast<int64_t>(sizeof(T));
}

// Rows that are a multiple of half a page apart compete for the same places of the first cache.
template <class T>
int64_t spread_stride(int64_t length) {
  const int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t stride = ceil_div(length, line) * line;
  return stride * sizeof(T) % 2048 == 0 ? stride + line : stride;
}

// Cuts [begin, end) into parts of nearly the same length, none longer than `longest`, each a multiple of `unit` but the
// last.
template <class Function>
void for_even_parts(int64_t begin, int64_t end, int64_t longest, int64_t unit, Function function) {
  const int64_t parts = ceil_div(end - begin, longest), length = ceil_div(ceil_div(end - begin, parts), unit) * unit;
  for (; begin < end; begin += length) function(begin, std::min(begin + length, end));
}

template <class T>
const T* residual_at(const SeparableProblem<T>& problem, int64_t image, int64_t pixel, int64_t channel) {
  const ImageView<const T>& r = problem.residual;
  if (r.data == nullptr) return nullptr;
  return r.data + image * r.batch_stride + pixel * r.pixel_stride + channel * r.channel_stride;
}

template <class T>
Affine<T> affine_from(const Affine<T>& affine, int64_t channel) {
  return {affine.scale ? affine.scale + channel : nullptr, affine.shift ? affine.shift + channel : nullptr,
          affine.activation};
}

// The channels of a pixel are next to each other: rows of the product are pixels, its columns are output channels.
template <class T>
class ForwardOfChannels {
 public:
  ForwardOfChannels(const SeparableProblem<T>& problem, const ImageView<T>& out, const Pool& pool)
      : problem_(problem),
        out_(out),
        pool_(pool),
        depthwise_(problem.depthwise),
        depth_(problem.depthwise.shape.channels),
        stride_(spread_stride<T>(depth_)),
        columns_(2 * kernels_.lanes),
        panels_(ceil_div(problem.out_channels, columns_)),
        weights_(panels_ * depth_ * columns_) {
    pool.parallel_for(panels_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        kernels_.pack(problem.pointwise + p * columns_ * depth_, depth_, problem.out_channels - p * columns_,
                      weights_.data() + p * depth_ * columns_);
    });
  }

  void run() const {
    const DepthwiseShape& shape = problem_.depthwise.shape;
    const int64_t pixels = shape.batch * shape.out_pixels(), rows = kernels_.rows;
    const int64_t longest = std::max<int64_t>(buffer_size<T>(4) / stride_ / rows, 1) * rows;
    pool_.parallel_for(ceil_div(pixels, rows), 1, [&](int64_t begin, int64_t end) {
      const int64_t size = std::min(longest, (end - begin) * rows);
      const Buffer<T> buffer(size * stride_);
      for_even_parts(begin * rows, std::min(end * rows, pixels), longest, rows, [&](int64_t first, int64_t last) {
        for_images(first, last, [&](int64_t image, int64_t pixel, int64_t count, int64_t at) {
          depthwise_.compute(image, pixel, pixel + count, buffer.data() + at * stride_, stride_);
        });
        multiply(first, last, buffer.data());
      });
    });
  }

 private:
  // Calls function(image, first pixel, count, position) for the images of pixels [first, last).
  template <class Function>
  void for_images(int64_t first, int64_t last, Function function) const {
    const int64_t pixels = problem_.depthwise.shape.out_pixels();
    for (int64_t at = first; at < last;) {
      const int64_t image = at / pixels, pixel = at - image * pixels, count = std::min(pixels - pixel, last - at);
      function(image, pixel, count, at - first);
      at += count;
    }
  }

  void multiply(int64_t first, int64_t last, const T* buffer) const {
    const int64_t size = depth_ * columns_, ahead_step = ceil_div(columns_, ceil_div(last - first, kernels_.rows));
    for (int64_t p = 0; p < panels_; ++p) {
      const int64_t channel = p * columns_, columns = std::min(columns_, problem_.out_channels - channel);
      const int vectors = columns > kernels_.lanes ? 2 : 1;
      const T* ahead = weights_.data() + (p + 1 < panels_ ? p + 1 : 0) * size;
      for_images(first, last, [&](int64_t image, int64_t pixel, int64_t count, int64_t at) {
        for (int64_t row = 0; row < count; row += kernels_.rows, ahead += depth_ * ahead_step) {
          const int64_t rows = std::min<int64_t>(kernels_.rows, count - row);
          kernels_.multiply(
              {static_cast<int>(rows), vectors, depth_, buffer + (at + row) * stride_, stride_,
               weights_.data() + p * size, ahead, ahead_step},
              {rows, columns, affine_from(problem_.affine, channel), true,
               residual_at(problem_, image, pixel + row, channel), problem_.residual.pixel_stride,
               out_.data + image * out_.batch_stride + (pixel + row) * out_.pixel_stride + channel, out_.pixel_stride});
        }
      });
    }
  }

  const SeparableProblem<T>& problem_;
  const ImageView<T>& out_;
  const Pool& pool_;
  const SeparableKernels<T>& kernels_ = separable_kernels<T>();
  ChannelsOfPixels<T> depthwise_;
  int64_t depth_, stride_, columns_, panels_;
  Buffer<T> weights_;
};

// The pixels of a channel are next to each other: rows of the product are output channels, its columns are pixels.
template <class T>
class ForwardOfPixels {
 public:
  ForwardOfPixels(const SeparableProblem<T>& problem, const ImageView<T>& out, const Pool& pool)
      : problem_(problem),
        out_(out),
        pool_(pool),
        depthwise_(problem.depthwise),
        depth_(problem.depthwise.shape.channels),
        columns_(2 * kernels_.lanes),
        weights_(problem.pointwise),
        stride_(depth_) {
    if (depth_ * sizeof(T) % 2048 != 0) return;
    stride_ = spread_stride<T>(depth_);
    spread_ = Buffer<T>(problem.out_channels * stride_);
    weights_ = spread_.data();
    pool.parallel_for(problem.out_channels, 16, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o)
        std::memcpy(spread_.data() + o * stride_, problem.pointwise + o * depth_, depth_ * sizeof(T));
    });
  }

  void run() const {
    const DepthwiseShape& shape = problem_.depthwise.shape;
    const int64_t image_panels = ceil_div(shape.out_pixels(), columns_), panels = shape.batch * image_panels;
    const int64_t longest = std::max<int64_t>(buffer_size<T>(2) / std::max<int64_t>(depth_ * columns_, 1), 1);
    pool_.parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
      const int64_t size = std::min(longest, end - begin);
      const Buffer<T> buffer(size * depth_ * columns_);
      for_even_parts(begin, end, longest, 1, [&](int64_t first, int64_t last) {
        std::vector<PixelRange> ranges;
        for (int64_t p = first; p < last; ++p) {
          const int64_t image = p / image_panels, pixel = (p - image * image_panels) * columns_;
          ranges.push_back({image, pixel, std::min(columns_, shape.out_pixels() - pixel)});
        }
        depthwise_.compute(depthwise_.taps_of(ranges, 2), 0, depth_, buffer.data(), columns_, depth_ * columns_,
                           kernels_.lanes);
        multiply(ranges, buffer.data());
      });
    });
  }

 private:
  void multiply(const std::vector<PixelRange>& ranges, const T* buffer) const {
    const int64_t ahead_step = ceil_div(kernels_.rows, static_cast<int64_t>(ranges.size()));
    for (int64_t channel = 0; channel < problem_.out_channels; channel += kernels_.rows) {
      const int64_t rows = std::min<int64_t>(kernels_.rows, problem_.out_channels - channel);
      const T* ahead = weights_ + (channel + rows < problem_.out_channels ? channel + rows : 0) * stride_;
      const T* panel = buffer;
      for (const PixelRange& range : ranges) {
        kernels_.multiply({static_cast<int>(rows), range.count > kernels_.lanes ? 2 : 1, depth_,
                           weights_ + channel * stride_, stride_, panel, ahead, ahead_step},
                          {rows, range.count, affine_from(problem_.affine, channel), false,
                           residual_at(problem_, range.image, range.first, channel), problem_.residual.channel_stride,
                           out_.data + range.image * out_.batch_stride + range.first + channel * out_.channel_stride,
                           out_.channel_stride});
        panel += depth_ * columns_;
        ahead += depth_ * ahead_step;
      }
    }
  }

  const SeparableProblem<T>& problem_;
  const ImageView<T>& out_;
  const Pool& pool_;
  const SeparableKernels<T>& kernels_ = separable_kernels<T>();
  PixelsOfChannels<T> depthwise_;
  int64_t depth_, columns_;
  const T* weights_;
  int64_t stride_;
  Buffer<T> spread_;
};

template <class T>
bool has_channels_last(const SeparableProblem<T>& problem, const ImageView<T>& out) {
  return problem.depthwise.input.channel_stride == 1 && out.channel_stride == 1 &&
         (problem.residual.data == nullptr || problem.residual.channel_stride == 1);
}

}  // namespace

template <class T>
void separable_forward(const SeparableProblem<T>& problem, const ImageView<T>& out, const Pool& pool) {
  if (has_channels_last(problem, out))
    ForwardOfChannels<T>(problem, out, pool).run();
  else
    ForwardOfPixels<T>(problem, out, pool).run();
}

bool library_gemm_wins(const DepthwiseShape& shape, int64_t out_channels, bool channels_last) {
  // Measured: bringing large weights into panels takes longer than a product with few pixels; with contiguous images
  // weights are read as they are, and only a panel of next to no pixels is wasted.
  constexpr int64_t large = int64_t(1) << 18;
  return shape.channels * out_channels >= large && shape.batch * shape.out_pixels() < (channels_last ? 256 : 4);
}

template <class T>
void finish_pointwise(const SeparableProblem<T>& problem, const ImageView<T>& out, const Pool& pool) {
  const int64_t pixels = problem.depthwise.shape.out_pixels(), batch = problem.depthwise.shape.batch;
  const SeparableKernels<T>& kernels = separable_kernels<T>();
  const bool by_column = has_channels_last(problem, out);
  const int64_t rows = by_column ? pixels : problem.out_channels, columns = by_column ? problem.out_channels : pixels;
  const int64_t stride = by_column ? out.pixel_stride : out.channel_stride;
  const int64_t residual_stride = by_column ? problem.residual.pixel_stride : problem.residual.channel_stride;
  pool.parallel_for(
      batch * rows, std::max<int64_t>((int64_t(1) << 15) / std::max<int64_t>(columns, 1), 1),
      [&](int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t image = begin / rows, row = begin - image * rows, count = std::min(rows - row, end - begin);
          T* data = out.data + image * out.batch_stride + row * stride;
          kernels.finish({count, columns, by_column ? problem.affine : affine_from(problem.affine, row), by_column,
                          by_column ? residual_at(problem, image, row, 0) : residual_at(problem, image, 0, row),
                          residual_stride, data, stride});
          begin += count;
        }
      });
}

#define DENSECRF_INSTANTIATE(T)                                                                     \
  template void separable_forward<T>(const SeparableProblem<T>&, const ImageView<T>&, const Pool&); \
  template void finish_pointwise<T>(const SeparableProblem<T>&, const ImageView<T>&, const Pool&);
DENSECRF_INSTANTIATE(float)
DENSECRF_INSTANTIATE(double)
#undef DENSECRF_INSTANTIATE

}  // namespace densecrf
