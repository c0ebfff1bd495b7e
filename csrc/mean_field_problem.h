// The choices that a mean field is made of, torch-free: what the kernels of every device are told.
#pragma once

namespace densecrf {

// Energy of a filtered Q: of y, a Potts weight w makes -w y, a diagonal v makes v y, a matrix A makes A y.
enum class Compatibility { potts, diagonal, matrix };

enum class Output { probabilities, log_probabilities, labels };

// How the rows of lattice vertices are stored on a GPU; sums are formed in float either way.
enum class Precision { fp32, fp16 };

// On which sides of the filter the norm is a factor.
struct Normalization {
  bool scales_splat = false, scales_slice = false;
};

}  // namespace densecrf
