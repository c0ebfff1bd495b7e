// The kernels for processors with avx2, compiled by a target region: no flag of the build depends on this file.

#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "depthwise_gradient_kernels.h"
#include "kernels.h"
#include "separable_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define DENSECRF_ISA avx2
#define DENSECRF_VECTOR_BYTES 32
#define DENSECRF_HAS_FMA 1
#include "../mean_field.h"  // inside the region: its templates are compiled for this instruction set
#include "kernels_impl.h"
#include "kernels_simd.h"
#include "depthwise_gradient_kernels_impl.h"
#include "depthwise_forward_impl.h"
#include "pointwise_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
