// The channels that a lattice is built from, torch-free: what the kernels of every device read.
#pragma once

#include <cstdint>

namespace densecrf {

enum class GuideType { uint8, float32, float64 };

// Channels of one image, any strides (in elements).
struct GuideView {
  GuideType type;
  const void* data;
  int channels;
  int64_t channel_stride, point_stride;
};

}  // namespace densecrf
