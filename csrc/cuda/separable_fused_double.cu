#include "separable_fused_kernel.cuh"

namespace densecrf::cuda {

template <>
void separable_fused(const SeparableProblem<double>& separable, const ImageView<double>& out, Multiply,
                     cudaStream_t stream) {
  start_fused<FusedTile<128, 64, 4, 1>, ExactProduct<double>>(fused_problem(separable, out), stream);
}

}  // namespace densecrf::cuda
