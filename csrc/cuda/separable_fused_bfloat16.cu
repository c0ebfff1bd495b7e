#include "separable_fused_kernel.cuh"

namespace densecrf::cuda {

template <>
void separable_fused(const SeparableProblem<__nv_bfloat16>& problem, const ImageView<__nv_bfloat16>& out,
                     Multiply multiply, cudaStream_t stream) {
  start_half(problem, out, multiply == Multiply::tensor && compute_capability() >= 80, stream);
}

}  // namespace densecrf::cuda
