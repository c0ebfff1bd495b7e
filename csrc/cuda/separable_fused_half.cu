#include "separable_fused_kernel.cuh"

namespace densecrf::cuda {

template <>
void separable_fused(const SeparableProblem<__half>& problem, const ImageView<__half>& out, Multiply multiply,
                     cudaStream_t stream) {
  start_half(problem, out, multiply == Multiply::tensor && compute_capability() >= 75, stream);
}

}  // namespace densecrf::cuda
