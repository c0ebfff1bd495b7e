// The backward pass of mean field on one image: the iterations in reverse, one pass over the tiles for each.

#include <cmath>

#include "prepared_term.h"

namespace densecrf {
namespace {

// The adjoint of a term: scales change sides, and so do rows and columns of the matrix.
template <class T>
struct Transposed {
  Transposed(const std::vector<PairwiseTerm<T>>& originals, int64_t channels) : terms(originals) {
    for (auto& term : terms) {
      std::swap(term.splat_scale, term.slice_scale);
      if (term.compatibility != Compatibility::matrix) continue;
      matrices.emplace_back(channels * channels);
      for (int64_t i = 0; i < channels; ++i)
        for (int64_t j = 0; j < channels; ++j) matrices.back()[j * channels + i] = term.parameters[i * channels + j];
      term.parameters = matrices.back().data();
    }
  }
  std::vector<PairwiseTerm<T>> terms;
  std::vector<Buffer<T>> matrices;
};

template <class T>
class Gradient {
 public:
  Gradient(const MeanFieldGradient<T>& problem, const std::vector<PairwiseTerm<T>>& terms, const Pool& pool)
      : problem_(problem),
        pool_(pool),
        grid_(problem.grid),
        channels_(problem.channels),
        stride_(row_stride<T>(problem.channels)),
        sums_(static_cast<int64_t>(terms.size()) * stride_),
        total_(grid_.points() * stride_),
        tile_products_(grid_.tiles() * sums_) {
    for (const auto& term : terms) {
      terms_.emplace_back(term, grid_, channels_, stride_);
      vertices_.emplace_back(term.lattice, stride_);
    }
    std::fill_n(tile_products_.data(), grid_.tiles() * sums_, T(0));
  }

  void run() {
    for (int iteration = problem_.iterations; iteration >= 0; --iteration) {
      pool_.parallel_for(grid_.tiles(), 2, [&](int64_t begin, int64_t end) {
        const int64_t size = tile_rows_size(stride_);
        Buffer<T> x(size), q(size), y(size);
        for (int64_t t = begin; t < end; ++t) update_tile(t, iteration, x.data(), q.data(), y.data());
      });
      if (iteration > 0) VertexRows<T>::gather_and_blur(vertices_.data(), vertices_.size(), true, pool_);
    }
    for (size_t k = 0; problem_.products && k < terms_.size(); ++k)
      for (int64_t c = 0; c < channels_; ++c) {
        double sum = 0;
        for (int64_t t = 0; t < grid_.tiles(); ++t) sum += tile_products_[t * sums_ + k * stride_ + c];
        problem_.products[k * channels_ + c] += static_cast<T>(sum);
      }
  }

 private:
  // x: gradient of Q after this many iterations, then of the logits it is the softmax of; q: that Q itself.
  void update_tile(int64_t t, int iteration, T* x, T* q, T* y) {
    const Tile tile = grid_.tile(t);
    const int64_t size = tile.points() * stride_;
    const bool first = iteration == problem_.iterations;
    if (first) {
      load_channels(grid_, tile, problem_.grad, problem_.channel_stride, problem_.point_stride, channels_, stride_,
                    T(0), x);
      load_channels(grid_, tile, problem_.result, grid_.points(), 1, channels_, stride_, T(0), q);
    } else {
      load_rows(grid_, tile, problem_.history + iteration * grid_.points() * channels_, channels_, stride_, q);
      std::fill_n(x, size, T(0));
      for (size_t k = 0; k < terms_.size(); ++k) {
        if (problem_.products == nullptr) {
          terms_[k].subtract_energy(vertices_[k], t, tile, channels_, x, y);
          continue;
        }
        terms_[k].filter(vertices_[k], t, tile, stride_, y);
        kernels<T>().add_products(y, q, tile.points(), stride_, tile_products_.data() + t * sums_ + k * stride_);
        terms_[k].subtract_compatibility(tile.points(), channels_, x, y);
      }
    }
    if (first && problem_.logarithm)
      log_softmax_gradient(q, x, tile.points());
    else
      kernels<T>().softmax_gradient(q, x, tile.points(), stride_);

    T* total = total_.data() + tile.first * stride_;
    if (first)
      std::copy_n(x, size, total);
    else
      for (int64_t i = 0; i < size; ++i) total[i] += x[i];
    if (iteration == 0) return store_channels(grid_, tile, total, channels_, stride_, T(-1), problem_.grad_unary);
    for (size_t k = 0; k < terms_.size(); ++k) terms_[k].splat(vertices_[k], t, tile, x, stride_);
  }

  // g = g - exp(log_q) sum(g)
  void log_softmax_gradient(const T* log_q, T* g, int points) const {
    for (int p = 0; p < points; ++p, log_q += stride_, g += stride_) {
      T sum = T(0);
      for (int64_t c = 0; c < channels_; ++c) sum += g[c];
      for (int64_t c = 0; c < channels_; ++c) g[c] -= std::exp(log_q[c]) * sum;
    }
  }

  const MeanFieldGradient<T>& problem_;
  const Pool& pool_;
  const TileGrid grid_;
  const int64_t channels_, stride_, sums_;
  std::vector<PreparedTerm<T>> terms_;
  std::vector<VertexRows<T>> vertices_;
  Buffer<T> total_, tile_products_;  // of the logits' gradients over iterations; of the products by tile
};

}  // namespace

template <class T>
void mean_field_gradient(const MeanFieldGradient<T>& problem, const std::vector<PairwiseTerm<T>>& terms,
                         const Pool& pool) {
  const Transposed<T> transposed(terms, problem.channels);
  Gradient<T>(problem, transposed.terms, pool).run();
}

template void mean_field_gradient(const MeanFieldGradient<float>&, const std::vector<PairwiseTerm<float>>&,
                                  const Pool&);
template void mean_field_gradient(const MeanFieldGradient<double>&, const std::vector<PairwiseTerm<double>>&,
                                  const Pool&);

}  // namespace densecrf
