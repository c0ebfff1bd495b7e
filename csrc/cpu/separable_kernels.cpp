#include "separable_kernels.h"

#include "capability.h"

namespace densecrf {

DENSECRF_CHOOSE_TABLE(SeparableKernels, separable_table, separable_kernels)

}  // namespace densecrf
