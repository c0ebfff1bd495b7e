// What the glue of every operator asks of its tensors, on any device. No check reads the data of a tensor: that would
// make a GPU wait.
#pragma once

#include <ATen/core/Tensor.h>

namespace densecrf {

// An operator runs on one device; the dispatcher chooses it by some of the inputs and lets the others pass.
inline void check_device(const at::Tensor& tensor, const char* name, const at::Tensor& owner, const char* owner_name) {
  TORCH_CHECK_VALUE(tensor.device() == owner.device(), name, " must be on the device of ", owner_name, ", ",
                    owner.device(), ", got ", tensor.device());
}

inline void check_devices(at::TensorList tensors, const char* name, const at::Tensor& owner, const char* owner_name) {
  for (const at::Tensor& tensor : tensors) check_device(tensor, name, owner, owner_name);
}

// Calls function(zero) with a zero of the type: 0.0f or 0.0.
template <class Function>
void dispatch(at::ScalarType type, Function function) {
  if (type == at::kFloat)
    function(0.0f);
  else
    function(0.0);
}

}  // namespace densecrf
