// The keys of the vertices of one simplex, one after the other.
#pragma once

#include <algorithm>

#include "../lattice.h"
#include "kernels.h"

namespace densecrf {

// W is the number of words of a key where it is known at compile time, else 0.
template <int W>
class SimplexKeys {
 public:
  explicit SimplexKeys(int d) : d_(d), words_(W ? W : key_words(d)) {
    for (int w = 0; w < words_; ++w) ones_[w] = key_ones(w, d);
  }

  // Calls function(k, key) for the vertices k = 0..d of the simplex that point p of the tile lies in.
  template <class T, class Function>
  void each(const TileSimplices<T>& simplices, int p, Function function) const {
    uint64_t key[W ? W : kMaxDimension];
    int axis_of_rank[kMaxDimension + 1];
    std::fill_n(key, words_, 0);
    for (int i = 0; i < d_; ++i)
      key[i / kFieldsPerWord] +=
          static_cast<uint64_t>(simplices.remainder[i * kTilePoints + p] + kKeyLimit) * key_field(i);
    for (int i = 0; i <= d_; ++i) axis_of_rank[simplices.rank[i * kTilePoints + p]] = i;
    for (int k = 0; k <= d_; ++k) {
      if (k > 0) {  // from vertex k - 1 to vertex k: one step along the axis of the next lower rank
        const int axis = axis_of_rank[d_ + 1 - k];
        for (int w = 0; w < words_; ++w) key[w] += ones_[w];
        if (axis < d_) key[axis / kFieldsPerWord] -= static_cast<uint64_t>(d_ + 1) * key_field(axis);
      }
      function(k, static_cast<const uint64_t*>(key));
    }
  }

 private:
  int d_, words_;
  uint64_t ones_[W ? W : kMaxDimension];
};

}  // namespace densecrf
