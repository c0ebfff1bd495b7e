// Open-addressing table from the key of a lattice vertex to its id; ids count up in order of first insertion.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "../lattice.h"

namespace densecrf {

class VertexTable {
 public:
  explicit VertexTable(int words) : words_(words), slots_(1 << 12), mask_(slots_.size() - 1) {}

  int64_t size() const { return size_; }
  const uint64_t* key(int64_t id) const { return keys_.data() + id * words_; }

  // W is the number of words of a key where it is known at compile time, else 0. Returns -1 where there is no such key.
  template <int W>
  int32_t find(const uint64_t* key) const {
    const uint64_t hash = key_hash(key, W ? W : words_);
    for (uint64_t at = hash >> 32;; ++at) {
      const Slot slot = slots_[at & mask_];
      if (slot.id < 0 || matches<W>(slot, hash, key)) return slot.id;
    }
  }

  template <int W>
  int32_t insert(const uint64_t* key) {
    const uint64_t hash = key_hash(key, W ? W : words_);
    for (uint64_t at = hash >> 32;; ++at) {
      Slot& slot = slots_[at & mask_];
      if (slot.id >= 0) {
        if (matches<W>(slot, hash, key)) return slot.id;
        continue;
      }
      if (size_ == INT32_MAX) throw std::length_error("a lattice holds at most 2^31 - 1 vertices per image");
      const auto id = static_cast<int32_t>(size_++);
      slot = {static_cast<uint32_t>(hash), id};
      keys_.insert(keys_.end(), key, key + (W ? W : words_));
      if (2 * size_ > static_cast<int64_t>(slots_.size())) grow();
      return id;
    }
  }

 private:
  // The low half of the hash is kept beside the id, so that a collision is mostly seen without a look at the key.
  struct Slot {
    uint32_t tag = 0;
    int32_t id = -1;
  };

  template <int W>
  bool matches(const Slot& slot, uint64_t hash, const uint64_t* wanted) const {
    if (slot.tag != static_cast<uint32_t>(hash)) return false;
    const uint64_t* found = key(slot.id);
    for (int w = 0; w < (W ? W : words_); ++w)
      if (found[w] != wanted[w]) return false;
    return true;
  }

  void grow() {
    slots_.assign(4 * slots_.size(), Slot{});
    mask_ = slots_.size() - 1;
    for (int64_t id = 0; id < size_; ++id) {
      const uint64_t hash = key_hash(key(id), words_);
      uint64_t at = hash >> 32;
      while (slots_[at & mask_].id >= 0) ++at;
      slots_[at & mask_] = {static_cast<uint32_t>(hash), static_cast<int32_t>(id)};
    }
  }

  int words_;
  int64_t size_ = 0;
  std::vector<uint64_t> keys_;
  std::vector<Slot> slots_;
  uint64_t mask_;
};

}  // namespace densecrf
