// Where the operators' kernels are registered: register.cpp for the key CUDA, the emulator of the tests for its own.
#pragma once

#include <torch/library.h>

namespace densecrf {

void register_lattice(torch::Library& library);
void register_mean_field(torch::Library& library);
void register_separable_conv(torch::Library& library);

}  // namespace densecrf
