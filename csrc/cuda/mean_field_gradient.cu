// The fused way back through mean field.

#include "gradient_kernel.cuh"

namespace densecrf::cuda {
namespace {

template <int R>
void backward_rows(const MeanFieldGradient& problem, FusedTerms<float>& terms, cudaStream_t stream) {
  const bool matrix = terms.any_matrix();
  const Grid tiles{problem.batch * problem.grid.tiles(), 1, update_memory<R>(matrix)};
  for (int iteration = problem.iterations; iteration >= 0; --iteration) {
    if (iteration < problem.iterations && terms.rows.count > 0) gather_and_blur(terms.rows, true, stream);
    launch(matrix ? gradient_kernel<R, true> : gradient_kernel<R, false>, tiles, stream, problem, terms, iteration);
    const int sums = terms.rows.count * problem.channels;
    if (iteration < problem.iterations && problem.products)
      add_parts<float>(problem.batch, problem.grid.tiles(), sums, problem.products, {problem.sums, sums, 0, 1}, stream);
  }
}

}  // namespace

void backward_fused(const MeanFieldGradient& problem, FusedTerms<float> terms, cudaStream_t stream) {
  with_vectors(problem.channels, [&](auto vectors) { backward_rows<vectors>(problem, terms, stream); });
}

}  // namespace densecrf::cuda
