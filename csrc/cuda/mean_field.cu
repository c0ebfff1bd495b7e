// The fused way, and the end of both.

#include "mean_field.h"

#include "update_kernel.cuh"

namespace densecrf::cuda {
namespace {

template <int R, class S>
void infer_rows(const MeanFieldProblem<float>& problem, FusedTerms<S>& terms, cudaStream_t stream) {
  const bool matrix = terms.any_matrix();
  const Grid tiles{problem.batch * problem.grid.tiles(), 1, update_memory<R>(matrix)};
  for (int iteration = 0; iteration <= problem.iterations; ++iteration) {
    if (iteration > 0 && terms.rows.count > 0) gather_and_blur(terms.rows, false, stream);
    launch(matrix ? update_kernel<R, true, S> : update_kernel<R, false, S>, tiles, stream, problem, terms, iteration);
  }
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    finish_kernel(MeanFieldProblem<T> problem, LatticeWords lattices, int64_t* status) {
  const int64_t image = blockIdx.y;
  uint64_t word = kNoFault;
  for (int i = 0; i < lattices.count; ++i) {
    const int64_t vertices = *lattices.of[i];
    if (vertices < 0 && static_cast<uint64_t>(-vertices) < word) word = static_cast<uint64_t>(-vertices);
  }
  if (word == kNoFault && problem.faults[image] != 0) word = kNoFault - problem.faults[image];
  if (blockIdx.x == 0 && threadIdx.x == 0) status[image] = word == kNoFault ? 0 : static_cast<int64_t>(word);
  if (word == kNoFault) return;
  const int64_t size = problem.points() * (problem.output == Output::labels ? 1 : problem.channels);
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += threads) {
    if (problem.output == Output::labels)
      problem.labels[image * size + i] = -1;
    else
      problem.out[image * size + i] = not_a_number<T>();
  }
}

}  // namespace

template <class S>
void infer_fused(const MeanFieldProblem<float>& problem, FusedTerms<S> terms, cudaStream_t stream) {
  with_vectors(problem.channels, [&](auto vectors) { infer_rows<vectors>(problem, terms, stream); });
}

template <class T>
void finish(const MeanFieldProblem<T>& problem, const LatticeWords& lattices, int64_t* status, cudaStream_t stream) {
  const int64_t blocks = min_of(striding_blocks(problem.points() * problem.channels), multiprocessors());
  launch(finish_kernel<T>, {blocks, problem.batch}, stream, problem, lattices, status);
}

template void infer_fused(const MeanFieldProblem<float>&, FusedTerms<float>, cudaStream_t);
template void infer_fused(const MeanFieldProblem<float>&, FusedTerms<__half>, cudaStream_t);
template void finish(const MeanFieldProblem<float>&, const LatticeWords&, int64_t*, cudaStream_t);
template void finish(const MeanFieldProblem<double>&, const LatticeWords&, int64_t*, cudaStream_t);

}  // namespace densecrf::cuda
