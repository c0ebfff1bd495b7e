// The backward pass of mean field on one image: the iterations in reverse, one pass over the tiles for each.

#include <cmath>

#include "lattice_filter.h"
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

// Collects the gradients of one term's features and norm. With y = n_out K (n_in Q) they follow from the gradients of
// the barycentric weights: at the slice the gradient g of y paired with the blurred Q of each vertex, at the splat Q
// paired with g blurred backwards.
template <class T>
class FilterCollector {
 public:
  FilterCollector(const PairwiseTerm<T>& term, const TileGrid& grid, int64_t channels, const FilterGradient<T>& out)
      : prepared_(term, grid, channels, row_stride<T>(channels)),
        blurred_(term.lattice, row_stride<T>(channels)),
        out_(out),
        size_(grid.points() * (term.lattice.d + 1)),
        at_slice_(size_),
        at_splat_(size_) {
    std::fill_n(at_slice_.data(), size_, T(0));
    std::fill_n(at_splat_.data(), size_, T(0));
  }

  VertexRows<T>& blurred() { return blurred_; }

  void splat(int64_t t, const Tile& tile, const T* q, int64_t stride) const {
    prepared_.splat(blurred_, t, tile, q, stride);
  }

  // `backwards` holds the gradient of the logits, not yet that of y: the compatibility is a factor of each channel.
  void pair(const VertexRows<T>& backwards, int64_t t, const Tile& tile, int64_t channels, const T* grad_logits,
            const T* q, T* scratch) const {
    pair_side(blurred_, t, tile, channels, grad_logits, scratch, at_slice_);
    pair_side(backwards, t, tile, channels, q, scratch, at_splat_);
  }

  void finish(const Pool& pool) {
    const LatticeView<T>& lattice = prepared_.term.lattice;
    const int vertices = lattice.d + 1;
    pool.parallel_for(lattice.grid.tiles(), 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) finish_tile(lattice, lattice.grid.tile(t), vertices);
    });
    weights_to_features(lattice, at_slice_.data(), out_.features, pool, out_.grad_features);
  }

 private:
  void pair_side(const VertexRows<T>& vertices, int64_t t, const Tile& tile, int64_t channels, const T* rows,
                 T* scratch, const Buffer<T>& out) const {
    const int64_t stride = row_stride<T>(channels);
    std::fill_n(scratch, tile.points() * stride, T(0));
    prepared_.subtract_compatibility(tile.points(), channels, scratch, rows);
    const int d = prepared_.term.lattice.d;
    kernels<T>().pair(tile_entries(prepared_.term.lattice, tile), vertices.tile_vertices(t), vertices.rows(), stride,
                      scratch, slice_gain<T>(d), out.data() + tile.first * (d + 1));
  }

  // Gradient of the norm; that of the weights, both sides together, is left in at_slice_.
  void finish_tile(const LatticeView<T>& lattice, const Tile& tile, int vertices) {
    const PairwiseTerm<T>& term = prepared_.term;
    for (int e = 0; e < tile.points(); ++e) {
      const int p = TileEntries<T>::position(lattice.order[tile.first + e]);
      const int64_t n = lattice.grid.raster(tile, p / tile.cols) + p % tile.cols, at = (tile.first + e) * vertices;
      const T slice = term.slice_scale ? term.slice_scale[n] : T(1),
              splat = term.splat_scale ? term.splat_scale[n] : T(1);
      T norm = T(0);
      for (int k = 0; k < vertices; ++k) {
        const T a = at_slice_[at + k], b = at_splat_[at + k];
        norm += lattice.weights[at + k] * ((term.slice_scale ? a : T(0)) + (term.splat_scale ? b : T(0)));
        at_slice_[at + k] = slice * a + splat * b;
      }
      if (out_.grad_norm) out_.grad_norm[n] += norm;
    }
  }

  PreparedTerm<T> prepared_;
  VertexRows<T> blurred_;
  FilterGradient<T> out_;
  int64_t size_;
  Buffer<T> at_slice_, at_splat_;  // gradients of the weights [N, d + 1], before the scale of their side
};

template <class T>
class Gradient {
 public:
  Gradient(const MeanFieldGradient<T>& problem, const std::vector<PairwiseTerm<T>>& originals,
           const std::vector<PairwiseTerm<T>>& terms, const Pool& pool)
      : problem_(problem),
        pool_(pool),
        grid_(problem.grid),
        channels_(problem.channels),
        stride_(row_stride<T>(problem.channels)),
        sums_(static_cast<int64_t>(terms.size()) * stride_),
        total_(grid_.points() * stride_),
        tile_products_(grid_.tiles() * sums_),
        grad_logits_(problem.filters.empty() ? 0 : grid_.points() * stride_) {
    for (size_t k = 0; k < problem.filters.size(); ++k)
      filters_.emplace_back(originals[k], grid_, channels_, problem.filters[k]);
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
      if (iteration == 0) break;
      VertexRows<T>::gather_and_blur(vertices_.data(), vertices_.size(), true, pool_);
      for (auto& filter : filters_) VertexRows<T>::gather_and_blur(&filter.blurred(), 1, false, pool_);
    }
    for (auto& filter : filters_) filter.finish(pool_);
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
      for (size_t k = 0; k < filters_.size(); ++k)
        filters_[k].pair(vertices_[k], t, tile, channels_, grad_logits_.data() + tile.first * stride_, q, y);
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
    if (filters_.empty()) return;
    std::copy_n(x, size, grad_logits_.data() + tile.first * stride_);
    load_rows(grid_, tile, problem_.history + (iteration - 1) * grid_.points() * channels_, channels_, stride_, y);
    for (const auto& filter : filters_) filter.splat(t, tile, y, stride_);
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
  std::vector<FilterCollector<T>> filters_;
  Buffer<T> total_, tile_products_;  // of the logits' gradients over iterations; of the products by tile
  Buffer<T> grad_logits_;            // of the iteration before, in this order of going back
};

}  // namespace

template <class T>
void mean_field_gradient(const MeanFieldGradient<T>& problem, const std::vector<PairwiseTerm<T>>& terms,
                         const Pool& pool) {
  const Transposed<T> transposed(terms, problem.channels);
  Gradient<T>(problem, terms, transposed.terms, pool).run();
}

template void mean_field_gradient(const MeanFieldGradient<float>&, const std::vector<PairwiseTerm<float>>&,
                                  const Pool&);
template void mean_field_gradient(const MeanFieldGradient<double>&, const std::vector<PairwiseTerm<double>>&,
                                  const Pool&);

}  // namespace densecrf
