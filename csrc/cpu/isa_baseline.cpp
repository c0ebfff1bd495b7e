// The kernels for any processor: the compiler lowers the vectors to what the target is sure to have.

#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "depthwise_gradient_kernels.h"
#include "kernels.h"
#include "separable_kernels.h"

#define DENSECRF_ISA baseline
#define DENSECRF_VECTOR_BYTES 32
#define DENSECRF_HAS_FMA 0
#include "../mean_field.h"  // inside the region: its templates are compiled for this instruction set
#include "kernels_impl.h"
#include "kernels_simd.h"
#include "depthwise_gradient_kernels_impl.h"
#include "depthwise_forward_impl.h"
#include "pointwise_impl.h"
