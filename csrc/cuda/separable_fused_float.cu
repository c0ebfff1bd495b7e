#include "separable_fused_kernel.cuh"

namespace densecrf::cuda {

template <>
void separable_fused(const SeparableProblem<float>& separable, const ImageView<float>& out, Multiply multiply,
                     cudaStream_t stream) {
  const FusedProblem<float> problem = fused_problem(separable, out);
  if (multiply == Multiply::tensor && compute_capability() >= 80)
    return with_tensor_tile(problem,
                            [&](auto tile) { start_fused<decltype(tile), TensorProduct<float>>(problem, stream); });
  // The depthwise stage is small beside an exact product, so there is no need for wide tiles.
  if (separable.out_channels <= 32) return start_fused<FusedTile<128, 32, 8, 3>, ExactProduct<float>>(problem, stream);
  if (separable.out_channels <= 64) return start_fused<FusedTile<128, 64, 4, 2>, ExactProduct<float>>(problem, stream);
  start_fused<FusedTile<128, 128, 4, 2>, ExactProduct<float>>(problem, stream);
}

}  // namespace densecrf::cuda
