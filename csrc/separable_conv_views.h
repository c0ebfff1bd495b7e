// Tensors as the views that kernels of the separable convolution read and write, and what `out=` has to be.
#pragma once

#include <type_traits>

#include "separable_conv_inputs.h"

namespace densecrf {

// Whether kernels can address the tensor in the layout: no gaps between rows, and channels (channels_last) or pixels
// (contiguous) next to each other.
inline bool is_addressable(const at::Tensor& tensor, at::MemoryFormat layout) {
  const int64_t height = tensor.size(2), width = tensor.size(3);
  if (height > 1 && width > 1 && tensor.stride(2) != width * tensor.stride(3)) return false;
  if (layout == at::MemoryFormat::ChannelsLast) return tensor.size(1) == 1 || tensor.stride(1) == 1;
  return height * width == 1 || (width > 1 ? tensor.stride(3) : tensor.stride(2)) == 1;
}

// `T` is the kernels' name for the type of the tensor, which is addressable in the layout. Strides along axes of length
// one mean nothing in a tensor; here they are those of the layout.
template <class T>
ImageView<T> image_view(const at::Tensor& tensor, at::MemoryFormat layout) {
  const int64_t channels = tensor.size(1), pixels = tensor.size(2) * tensor.size(3);
  const bool last = layout == at::MemoryFormat::ChannelsLast;
  const int64_t pixel_stride = pixels == 1          ? (last ? channels : 1)
                               : tensor.size(3) > 1 ? tensor.stride(3)
                                                    : tensor.stride(2);
  const int64_t channel_stride = channels == 1 ? (last ? 1 : pixels) : tensor.stride(1);
  if constexpr (std::is_const_v<T>)
    return {static_cast<T*>(tensor.const_data_ptr()), tensor.stride(0), pixel_stride, channel_stride};
  else
    return {static_cast<T*>(tensor.mutable_data_ptr()), tensor.stride(0), pixel_stride, channel_stride};
}

// Whether writing one tensor may change the other. Two slices of the channels of one buffer are told apart.
inline bool may_overlap(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0 || !a.storage().is_alias_of(b.storage())) return false;
  const auto span = [](const at::Tensor& tensor) {
    int64_t last = 0;
    for (int64_t axis = 0; axis < tensor.dim(); ++axis) last += (tensor.size(axis) - 1) * tensor.stride(axis);
    return (last + 1) * tensor.element_size();
  };
  const auto start = [](const at::Tensor& tensor) { return tensor.storage_offset() * tensor.element_size(); };
  const int64_t shift = start(a) - start(b);
  if (shift >= span(b) || -shift >= span(a)) return false;
  if (a.dim() != 4 || a.strides() != b.strides() || a.element_size() != b.element_size()) return true;
  // Both repeat with the period of the buffer: its pixels where channels are next to each other, else its images.
  const int64_t period = (a.stride(1) == 1 ? a.stride(3) : a.stride(0)) * a.element_size();
  const auto width = [&](const at::Tensor& tensor) {
    return a.stride(1) == 1 ? tensor.size(1) * tensor.element_size() : span(tensor[0]);
  };
  if (period == 0) return true;
  const int64_t offset = ((shift % period) + period) % period;
  return offset < width(b) || offset + width(a) > period;
}

// `out` of the overload that writes into a given tensor.
inline void check_out(const at::Tensor& out, const SeparableInputs& inputs, const at::Tensor& input,
                      at::TensorList operands) {
  const DepthwiseShape& shape = inputs.depthwise.shape;
  check_like(out, "out", input, "input");
  check_sizes(out, "out", {shape.batch, inputs.out_channels(), shape.out_size.y, shape.out_size.x});
  for (int64_t axis = 0; axis < 4; ++axis)
    TORCH_CHECK_VALUE(out.size(axis) <= 1 || out.stride(axis) > 0, "out must not be an expanded tensor, got strides ",
                      out.strides());
  for (const at::Tensor& operand : operands)
    TORCH_CHECK_VALUE(!operand.defined() || !may_overlap(out, operand),
                      "out must not share memory with an argument, got one of shape ", operand.sizes(), " that does");
}

}  // namespace densecrf
