#include "mean_field_image.h"

#include <cmath>
#include <limits>

#include "../lattice.h"
#include "vertex_rows.h"

namespace densecrf {
namespace {

// Norms by position in the tiles, so that a tile reads them next to each other.
template <class T>
Buffer<T> to_internal_order(const TileGrid& grid, const T* scale) {
  if (scale == nullptr) return Buffer<T>();
  Buffer<T> out(grid.points());
  for (int64_t t = 0; t < grid.tiles(); ++t) {
    const Tile tile = grid.tile(t);
    for_rows(grid, tile,
             [&](int64_t n, int p, int length) { std::copy_n(scale + n, length, out.data() + tile.first + p); });
  }
  return out;
}

// A term as one pass over a tile needs it: scales in internal order, parameters padded to rows.
template <class T>
struct PreparedTerm {
  PreparedTerm(const PairwiseTerm<T>& term, const TileGrid& grid, int64_t channels, int64_t stride)
      : term(term),
        splat_scale(to_internal_order(grid, term.splat_scale)),
        slice_scale(to_internal_order(grid, term.slice_scale)) {
    if (term.compatibility == Compatibility::potts) return;
    const int64_t rows = term.compatibility == Compatibility::matrix ? channels : 1;
    parameters = Buffer<T>(rows * stride);
    std::fill_n(parameters.data(), rows * stride, T(0));
    for (int64_t j = 0; j < rows; ++j)  // column j of the matrix: what label j does to every label
      for (int64_t c = 0; c < channels; ++c)
        parameters[j * stride + c] = term.parameters[rows == 1 ? c : c * channels + j];
  }

  const T* splat_from(int64_t point) const { return splat_scale.data() ? splat_scale.data() + point : nullptr; }
  const T* slice_from(int64_t point) const { return slice_scale.data() ? slice_scale.data() + point : nullptr; }

  const PairwiseTerm<T>& term;
  Buffer<T> splat_scale, slice_scale, parameters;
};

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
    for (size_t k = 0; k < terms_.size(); ++k) {
      vertices_[k].clear_tile(t);
      kernels<T>().splat(tile_entries(terms_[k].term.lattice, tile), x, stride_, terms_[k].splat_from(tile.first),
                         vertices_[k].tile_partials(t));
    }
  }

  // x = -unary, kept for the iterations to come; padding gets probability zero.
  void load_unary(const Tile& tile, T* x) {
    for_rows(grid_, tile, [&](int64_t n, int p, int length) {
      T* rows = x + p * stride_;
      for (int64_t c = 0; c < stride_; ++c)
        for (int i = 0; i < length; ++i)
          rows[i * stride_ + c] = c < channels_
                                      ? -problem_.unary[c * problem_.channel_stride + (n + i) * problem_.point_stride]
                                      : -std::numeric_limits<T>::infinity();
    });
    std::copy_n(x, tile.points() * stride_, logits_.data() + tile.first * stride_);
  }

  // x = -unary - sum over terms of compatibility(filtered Q)
  void add_messages(int64_t t, const Tile& tile, T* x, T* y) {
    const int points = tile.points();
    std::copy_n(logits_.data() + tile.first * stride_, points * stride_, x);
    for (size_t k = 0; k < terms_.size(); ++k) {
      const PairwiseTerm<T>& term = terms_[k].term;
      const T gain = slice_gain<T>(term.lattice.d);
      vertices_[k].prefetch_tile(t + 1);
      const auto slice = [&](T factor, T* target) {
        kernels<T>().slice(tile_entries(term.lattice, tile), vertices_[k].tile_vertices(t), vertices_[k].rows(),
                           stride_, terms_[k].slice_from(tile.first), factor, target);
      };
      if (term.compatibility == Compatibility::potts) {
        slice(term.weight * gain, x);
        continue;
      }
      std::fill_n(y, points * stride_, T(0));
      slice(gain, y);
      if (term.compatibility == Compatibility::diagonal)
        kernels<T>().subtract_diagonal(x, y, points, stride_, terms_[k].parameters.data());
      else
        kernels<T>().subtract_matrix(x, y, points, stride_, terms_[k].parameters.data(), channels_);
    }
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
    for_rows(grid_, tile, [&](int64_t n, int p, int length) {
      const T* rows = x + p * stride_;
      if (problem_.output == Output::labels) {
        for (int i = 0; i < length; ++i)
          problem_.labels[n + i] =
              std::max_element(rows + i * stride_, rows + i * stride_ + channels_) - (rows + i * stride_);
        return;
      }
      for (int64_t c = 0; c < channels_; ++c)
        for (int i = 0; i < length; ++i) problem_.out[c * grid_.points() + n + i] = rows[i * stride_ + c];
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
