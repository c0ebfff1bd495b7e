#include "depthwise_gradient_kernels.h"

#include "capability.h"

namespace densecrf {

DENSECRF_CHOOSE_TABLE(GradientKernels, gradient_table, gradient_kernels)

}  // namespace densecrf
