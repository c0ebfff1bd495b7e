#include "register.h"

TORCH_LIBRARY_IMPL(densecrf_cuda, CUDA, m) {
  densecrf::register_lattice(m);
  densecrf::register_mean_field(m);
  densecrf::register_separable_conv(m);
}
