// What only the data can show, found by a kernel that nobody waits for: one word, read later. densecrf_cuda/_status.py
// puts it into words.
#pragma once

#include "common.h"

namespace densecrf {

enum class Fault : uint64_t {
  bandwidth = 1,   // not positive and finite; in this dimension
  not_finite = 2,  // a feature; of this point, in this dimension
  key_range = 3,   // a key coordinate of 2^20 or more; point, dimension
  capacity = 4,    // more vertices than there is room for; how many
  unary = 5,       // NaN, -infinity, or nothing but +infinity; at this point
  overflow = 6     // of the energies; in this iteration, at this point
};

// Words order by kind, then by place: the least is reported, whatever the order in which threads find them.
constexpr uint64_t kNoFault = ~uint64_t(0);
constexpr int kFaultShift = 56, kDimensionBits = 6, kPointBits = 40;

HOST_DEVICE constexpr uint64_t fault_word(Fault fault, uint64_t place) {
  return static_cast<uint64_t>(fault) << kFaultShift | place;
}

// `point` counts through the images of the batch.
HOST_DEVICE constexpr uint64_t feature_fault(Fault fault, int64_t point, int dimension) {
  return fault_word(fault, static_cast<uint64_t>(point) << kDimensionBits | static_cast<uint64_t>(dimension));
}

// `point` counts in its own image: there is a word for each.
HOST_DEVICE constexpr uint64_t update_fault(Fault fault, int iteration, int64_t point) {
  return fault_word(fault, static_cast<uint64_t>(iteration < 0xFFFF ? iteration : 0xFFFF) << kPointBits |
                               static_cast<uint64_t>(point));
}

}  // namespace densecrf
