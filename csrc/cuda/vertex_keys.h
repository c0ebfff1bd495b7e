// The keys of a lattice's vertices, computed again from the features that it was built from. Torch-free.
#pragma once

#include "lattice_build.h"
#include "lattice_view.h"

namespace densecrf::cuda {

// keys[capacity, words]; those of no vertex are left as they are. `fault` is a word that nobody reads: what is wrong
// with the features the build has reported.
template <class T>
void vertex_keys(const BuildProblem<T>& problem, const LatticeView<T>& lattice, uint64_t* keys, uint64_t* fault,
                 cudaStream_t stream);

}  // namespace densecrf::cuda
