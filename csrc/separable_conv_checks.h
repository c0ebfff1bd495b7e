// Single arguments of the separable convolution, checked and brought to the types and layouts that kernels read, on any
// device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "separable_conv.h"
#include "tensor_checks.h"

namespace densecrf {

inline bool is_half(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

// What the kernels of a device read; other tensors are converted for them, and their results back.
struct KernelTraits {
  bool halves;      // else floats take their place
  bool contiguous;  // beside channels_last

  at::ScalarType type(at::ScalarType given) const { return is_half(given) && !halves ? at::kFloat : given; }
  at::MemoryFormat layout(at::MemoryFormat given) const { return contiguous ? given : at::MemoryFormat::ChannelsLast; }
};

constexpr KernelTraits kCpuKernels{/*halves=*/false, /*contiguous=*/true};
constexpr KernelTraits kCudaKernels{/*halves=*/true, /*contiguous=*/false};

// The type that sums are kept in, and that the kernels read scales and shifts in.
inline at::ScalarType accumulation_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

inline Activation parse_activation(c10::string_view value, const char* name) {
  if (value == "none") return Activation::none;
  if (value == "relu") return Activation::relu;
  TORCH_CHECK_VALUE(value == "relu6", name, " must be none, relu or relu6, got ", value);
  return Activation::relu6;
}

inline void check_image(const at::Tensor& tensor, const char* name, const char* shape) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || is_half(type), name,
                   " must be float, double, half or bfloat16, got ", type);
  TORCH_CHECK_VALUE(tensor.dim() == 4, name, " must be ", shape, ", got ", tensor.sizes());
}

// Same device and type: no operand is silently converted.
inline void check_like(const at::Tensor& tensor, const char* name, const at::Tensor& owner, const char* owner_name) {
  check_device(tensor, name, owner, owner_name);
  TORCH_CHECK_TYPE(tensor.scalar_type() == owner.scalar_type(), name, " must have the dtype of ", owner_name, ", ",
                   owner.scalar_type(), ", got ", tensor.scalar_type());
}

inline void check_sizes(const at::Tensor& tensor, const char* name, at::IntArrayRef sizes) {
  TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, " must be ", sizes, ", got ", tensor.sizes());
}

// Scale and shift of a convolution's channels, each undefined or [channels], contiguous, in the accumulation type.
struct AffineTensors {
  at::Tensor scale, shift;
  Activation activation = Activation::none;

  template <class A>
  Affine<A> view() const {
    return {scale.defined() ? scale.const_data_ptr<A>() : nullptr,
            shift.defined() ? shift.const_data_ptr<A>() : nullptr, activation};
  }
};

struct NamedVector {
  const std::optional<at::Tensor>& tensor;
  const char* name;
};

inline at::Tensor parse_vector(const NamedVector& vector, int64_t channels, const at::Tensor& input) {
  if (!vector.tensor.has_value()) return {};
  const at::Tensor& tensor = *vector.tensor;
  check_device(tensor, vector.name, input, "input");
  TORCH_CHECK_TYPE(at::isFloatingType(tensor.scalar_type()), vector.name, " must have a floating dtype, got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == channels, vector.name, " must be [", channels, "], got ",
                    tensor.sizes());
  return tensor.to(accumulation_type(input.scalar_type())).contiguous();
}

// How the taps lie on the image, as the schemas state it.
struct Geometry {
  at::IntArrayRef stride, padding, dilation;
};

inline DepthwiseShape shape_of(int64_t batch, int64_t channels, Pair size, int64_t kernel, const Geometry& geometry) {
  constexpr int64_t kLimit = INT32_MAX;  // no sum or product of these overflows
  const auto [stride, padding, dilation] = geometry;
  TORCH_CHECK_VALUE(kernel == 1 || kernel == 3 || kernel == 5 || kernel == 7,
                    "the kernel must be 1, 3, 5 or 7 wide, got ", kernel);
  TORCH_CHECK_VALUE(stride.size() == 2 && (stride[0] == 1 || stride[0] == 2) && (stride[1] == 1 || stride[1] == 2),
                    "stride must be two numbers, each 1 or 2, got ", stride);
  TORCH_CHECK_VALUE(
      dilation.size() == 2 && dilation[0] >= 1 && dilation[1] >= 1 && dilation[0] <= kLimit && dilation[1] <= kLimit,
      "dilation must be two numbers from 1 to ", kLimit, ", got ", dilation);
  TORCH_CHECK_VALUE(padding.size() == 4, "padding must be (left, right, top, bottom), got ", padding);
  for (const int64_t side : padding)
    TORCH_CHECK_VALUE(side >= 0 && side <= kLimit, "padding must be from 0 to ", kLimit, ", got ", padding);
  const Pair room{size.y + padding[2] + padding[3] - dilation[0] * (kernel - 1) - 1,
                  size.x + padding[0] + padding[1] - dilation[1] * (kernel - 1) - 1};
  TORCH_CHECK_VALUE(room.y >= 0 && room.x >= 0, "the padded image must be at least as large as the dilated kernel, ",
                    dilation[0] * (kernel - 1) + 1, " x ", dilation[1] * (kernel - 1) + 1, ", got ",
                    size.y + padding[2] + padding[3], " x ", size.x + padding[0] + padding[1]);
  TORCH_CHECK_VALUE(channels >= 1, "the image must have at least one channel, got ", channels);
  return {batch,
          channels,
          size,
          {room.y / stride[0] + 1, room.x / stride[1] + 1},
          static_cast<int>(kernel),
          {stride[0], stride[1]},
          {padding[2], padding[0]},
          {dilation[0], dilation[1]}};
}

inline void check_depthwise_weight(const at::Tensor& weight, const char* name, const at::Tensor& image,
                                   const char* image_name) {
  check_like(weight, name, image, image_name);
  TORCH_CHECK_VALUE(
      weight.dim() == 4 && weight.size(0) == image.size(1) && weight.size(1) == 1 && weight.size(2) == weight.size(3),
      name, " must be [C, 1, k, k] with the C = ", image.size(1), " channels of ", image_name, ", got ",
      weight.sizes());
}

}  // namespace densecrf
