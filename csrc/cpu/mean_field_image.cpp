#include "mean_field_image.h"

#include <cmath>
#include <limits>

#include "prepared_term.h"

namespace densecrf {
namespace {

template <class T>
class MeanField {
 public:
  MeanField(const MeanFieldProblem<T>& problem, const std::vector<PairwiseTerm<T>>& terms, const Pool& pool)
      : problem_(problem),
        pool_(pool),
        grid_(problem.grid),
        channels_(problem.channels),
        stride_(row_stride<T>(problem.channels)),
        keeps_q_(problem.tolerance >= 0 || problem.damping > 0),
        logits_(grid_.points() * stride_),
        q_(keeps_q_ ? grid_.points() * stride_ : 0),
        change_(grid_.tiles()),
        failed_(grid_.tiles()) {
    for (const auto& term : terms) {
      terms_.emplace_back(term, grid_, channels_, stride_);
      vertices_.emplace_back(term.lattice, stride_);
    }
  }

  MeanFieldError run() {
    for (int iteration = 0; iteration <= problem_.iterations; ++iteration) {
      const bool last = iteration == problem_.iterations;
      if (iteration > 0) VertexRows<T>::gather_and_blur(vertices_.data(), vertices_.size(), false, pool_);
      pool_.parallel_for(grid_.tiles(), 2, [&](int64_t begin, int64_t end) {
        Buffer<T> x(tile_rows_size(stride_)), y(tile_rows_size(stride_));
        for (int64_t t = begin; t < end; ++t) update_tile(t, iteration, last, x.data(), y.data());
      });
      for (int64_t t = 0; t < grid_.tiles(); ++t)
        if (failed_[t] >= 0) return {true, failed_[t], iteration};
      if (iteration > 0 && problem_.tolerance >= 0 &&
          *std::max_element(change_.data(), change_.data() + grid_.tiles()) <= problem_.tolerance)
        break;
    }
    return {};
  }

 private:
  // One tile from the blurred vertices of the last iteration to the partial sums of the next: x holds the logits, then
  // Q, of its points and never leaves the cache.
  void update_tile(int64_t t, int iteration, bool last, T* x, T* y) {
    const Tile tile = grid_.tile(t);
    const int64_t size = tile.points() * stride_;
    change_[t] = T(0);
    failed_[t] = -1;
    if (iteration == 0)
      load_unary(tile, x);
    else
      add_messages(t, tile, x, y);
    const bool writes = last || problem_.tolerance >= 0;
    const bool logarithm = writes && problem_.output == Output::log_probabilities;
    if (logarithm) std::copy_n(x, size, y);
    kernels<T>().softmax(x, tile.points(), stride_, false);
    if (iteration == 0 || writes) check(t, tile, x);
    if (keeps_q_) {
      T* q = q_.data() + tile.first * stride_;
      if (iteration > 0) mix(t, x, q, size);
      std::copy_n(x, size, q);
    }
    if (logarithm) {
      if (problem_.damping > 0 && iteration > 0)
        std::transform(x, x + size, y, [](T q) { return std::log(q); });
      else
        kernels<T>().softmax(y, tile.points(), stride_, true);
    }
    if (writes) write(tile, logarithm ? y : x);
    if (last) return;
    if (problem_.history)
      store_rows(grid_, tile, x, channels_, stride_, problem_.history + iteration * grid_.points() * channels_);
    for (size_t k = 0; k < terms_.size(); ++k) terms_[k].splat(vertices_[k], t, tile, x, stride_);
  }

  // x = -unary, kept for the iterations to come; padding gets probability zero.
  void load_unary(const Tile& tile, T* x) {
    load_channels(grid_, tile, problem_.unary, problem_.channel_stride, problem_.point_stride, channels_, stride_,
                  std::numeric_limits<T>::infinity(), x);
    for (int64_t i = 0; i < tile.points() * stride_; ++i) x[i] = -x[i];
    std::copy_n(x, tile.points() * stride_, logits_.data() + tile.first * stride_);
  }

  // x = -unary - sum over terms of compatibility(filtered Q)
  void add_messages(int64_t t, const Tile& tile, T* x, T* y) {
    std::copy_n(logits_.data() + tile.first * stride_, tile.points() * stride_, x);
    for (size_t k = 0; k < terms_.size(); ++k) terms_[k].subtract_energy(vertices_[k], t, tile, channels_, x, y);
  }

  // One NaN in a row makes the whole row NaN, so its first entry tells.
  void check(int64_t t, const Tile& tile, const T* x) {
    for (int p = tile.points() - 1; p >= 0; --p)
      if (std::isnan(x[p * stride_])) failed_[t] = grid_.raster(tile, p / tile.cols) + p % tile.cols;
  }

  void mix(int64_t t, T* x, const T* q, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
      x[i] = problem_.damping * q[i] + (T(1) - problem_.damping) * x[i];
      change_[t] = std::max(change_[t], std::abs(x[i] - q[i]));
    }
  }

  void write(const Tile& tile, const T* x) const {
    if (problem_.output != Output::labels)
      return store_channels(grid_, tile, x, channels_, stride_, T(1), problem_.out);
    for_rows(grid_, tile, [&](int64_t n, int p, int length) {
      for (int i = 0; i < length; ++i) {
        const T* row = x + (p + i) * stride_;
        problem_.labels[n + i] = std::max_element(row, row + channels_) - row;
      }
    });
  }

  const MeanFieldProblem<T>& problem_;
  const Pool& pool_;
  const TileGrid grid_;
  const int64_t channels_, stride_;
  const bool keeps_q_;
  std::vector<PreparedTerm<T>> terms_;
  std::vector<VertexRows<T>> vertices_;
  Buffer<T> logits_, q_, change_;
  Buffer<int64_t> failed_;  // by tile: a pixel whose distribution is not a number, or -1
};

}  // namespace

template <class T>
MeanFieldError mean_field_image(const MeanFieldProblem<T>& problem, const std::vector<PairwiseTerm<T>>& terms,
                                const Pool& pool) {
  return MeanField<T>(problem, terms, pool).run();
}

template MeanFieldError mean_field_image(const MeanFieldProblem<float>&, const std::vector<PairwiseTerm<float>>&,
                                         const Pool&);
template MeanFieldError mean_field_image(const MeanFieldProblem<double>&, const std::vector<PairwiseTerm<double>>&,
                                         const Pool&);

}  // namespace densecrf
