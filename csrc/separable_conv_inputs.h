// What the operators of the separable convolution are given, checked and brought to what the kernels of a device read.
// The layout of a result, contiguous or channels_last, is that of the operator's first image.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <utility>

#include "separable_conv_checks.h"

namespace densecrf {

// The type and layout of what an operator returns, and those that the kernels compute in.
struct Formats {
  at::ScalarType result_type, type;
  at::MemoryFormat result_layout, layout;

  static Formats of(const at::Tensor& image, const KernelTraits& kernels) {
    const auto layout = image.suggest_memory_format();
    return {image.scalar_type(), kernels.type(image.scalar_type()), layout, kernels.layout(layout)};
  }

  // The tensor, or a copy, in the type and layout that the kernels read.
  at::Tensor readable(const at::Tensor& tensor) const { return converted(tensor, type, layout); }

  // A result of the kernels as the operator returns it.
  at::Tensor finish(const at::Tensor& result) const { return converted(result, result_type, result_layout); }

 private:
  static at::Tensor converted(const at::Tensor& tensor, at::ScalarType type, at::MemoryFormat layout) {
    return tensor.to(type, /*non_blocking=*/false, /*copy=*/false, layout).contiguous(layout);
  }
};

// The arguments of _depthwise_conv2d and _depthwise_conv2d_moments.
struct DepthwiseInputs {
  DepthwiseShape shape;
  Formats formats;
  at::Tensor input;   // [B, C, H, W], in the formats of the kernels
  at::Tensor weight;  // [C, 1, k, k], contiguous
  Activation pre;
  AffineTensors affine;

  at::Tensor empty_output() const { return empty_output(shape.channels); }
  at::Tensor empty_output(int64_t channels) const {
    return at::empty({shape.batch, channels, shape.out_size.y, shape.out_size.x}, input.options(), formats.layout);
  }
  // A mean or variance, in the accumulation type.
  at::Tensor empty_moment() const {
    return at::empty({shape.channels}, input.options().dtype(accumulation_type(formats.type)));
  }
};

inline DepthwiseInputs parse_depthwise(const at::Tensor& input, const at::Tensor& weight, const char* weight_name,
                                       const Geometry& geometry, c10::string_view pre_activation,
                                       const NamedVector& scale, const NamedVector& shift, c10::string_view activation,
                                       const char* activation_name, const KernelTraits& kernels) {
  check_image(input, "input", "[B, C, H, W]");
  check_depthwise_weight(weight, weight_name, input, "input");
  const DepthwiseShape shape =
      shape_of(input.size(0), input.size(1), {input.size(2), input.size(3)}, weight.size(2), geometry);
  const Formats formats = Formats::of(input, kernels);
  return {shape,
          formats,
          formats.readable(input),
          weight.to(formats.type).contiguous(),
          parse_activation(pre_activation, "pre_activation"),
          {parse_vector(scale, shape.channels, input), parse_vector(shift, shape.channels, input),
           parse_activation(activation, activation_name)}};
}

// The arguments of _depthwise_conv2d.
inline DepthwiseInputs parse_depthwise(const at::Tensor& input, const at::Tensor& weight, const Geometry& geometry,
                                       c10::string_view pre_activation, const std::optional<at::Tensor>& scale,
                                       const std::optional<at::Tensor>& shift, c10::string_view activation,
                                       const KernelTraits& kernels) {
  return parse_depthwise(input, weight, "weight", geometry, pre_activation, {scale, "scale"}, {shift, "shift"},
                         activation, "activation", kernels);
}

// The arguments of _depthwise_conv2d_moments.
inline DepthwiseInputs parse_moments(const at::Tensor& input, const at::Tensor& weight, const Geometry& geometry,
                                     c10::string_view pre_activation, const KernelTraits& kernels) {
  const DepthwiseInputs inputs =
      parse_depthwise(input, weight, geometry, pre_activation, std::nullopt, std::nullopt, "none", kernels);
  TORCH_CHECK_VALUE(inputs.shape.batch > 0, "input must have at least one image to take moments of, got ",
                    input.sizes());
  return inputs;
}

// The arguments of _depthwise_conv2d_input_gradient.
struct InputGradientInputs {
  DepthwiseShape shape;
  Formats formats;
  at::Tensor grad;    // [B, C, H', W'], in the formats of the kernels
  at::Tensor weight;  // [C, 1, k, k], contiguous

  at::Tensor empty_result() const {
    return at::empty({shape.batch, shape.channels, shape.size.y, shape.size.x}, grad.options(), formats.layout);
  }
};

inline void check_grad(const at::Tensor& grad, const DepthwiseShape& shape) {
  check_sizes(grad, "grad", {shape.batch, shape.channels, shape.out_size.y, shape.out_size.x});
}

inline InputGradientInputs parse_input_gradient(const at::Tensor& grad, const at::Tensor& weight,
                                                at::IntArrayRef input_size, const Geometry& geometry,
                                                const KernelTraits& kernels) {
  check_image(grad, "grad", "[B, C, H', W']");
  check_depthwise_weight(weight, "weight", grad, "grad");
  TORCH_CHECK_VALUE(input_size.size() == 2 && input_size[0] >= 0 && input_size[1] >= 0,
                    "input_size must be two numbers, not negative, got ", input_size);
  const DepthwiseShape shape =
      shape_of(grad.size(0), grad.size(1), {input_size[0], input_size[1]}, weight.size(2), geometry);
  check_grad(grad, shape);
  const Formats formats = Formats::of(grad, kernels);
  return {shape, formats, formats.readable(grad), weight.to(formats.type).contiguous()};
}

// The arguments of _depthwise_conv2d_weight_gradient.
struct WeightGradientInputs {
  DepthwiseShape shape;
  Formats formats;
  at::Tensor grad;   // [B, C, H', W'], in the formats of the kernels
  at::Tensor input;  // [B, C, H, W], in the formats of the kernels
  Activation pre;

  // In the accumulation type.
  at::Tensor empty_result() const {
    return at::empty({shape.channels, 1, shape.kernel, shape.kernel},
                     input.options().dtype(accumulation_type(formats.type)));
  }
};

inline WeightGradientInputs parse_weight_gradient(const at::Tensor& grad, const at::Tensor& input,
                                                  at::IntArrayRef kernel_size, const Geometry& geometry,
                                                  c10::string_view pre_activation, const KernelTraits& kernels) {
  check_image(input, "input", "[B, C, H, W]");
  check_like(grad, "grad", input, "input");
  TORCH_CHECK_VALUE(kernel_size.size() == 2 && kernel_size[0] == kernel_size[1],
                    "kernel_size must be two equal numbers, got ", kernel_size);
  const DepthwiseShape shape =
      shape_of(input.size(0), input.size(1), {input.size(2), input.size(3)}, kernel_size[0], geometry);
  check_grad(grad, shape);
  const Formats formats = Formats::of(input, kernels);
  return {shape, formats, formats.readable(grad), formats.readable(input),
          parse_activation(pre_activation, "pre_activation")};
}

// The arguments of atrous_separable_conv2d.
struct SeparableInputs {
  DepthwiseInputs depthwise;
  at::Tensor pointwise;  // [O, C], contiguous, in the type of the kernels
  AffineTensors affine;
  at::Tensor residual;  // undefined, or [B, O, H', W'] in the formats of the kernels

  int64_t out_channels() const { return pointwise.size(0); }
  at::Tensor empty_output() const { return depthwise.empty_output(out_channels()); }
};

inline SeparableInputs parse_separable(const at::Tensor& input, const at::Tensor& depthwise_weight,
                                       const at::Tensor& pointwise_weight, const Geometry& geometry,
                                       c10::string_view pre_activation,
                                       const std::optional<at::Tensor>& depthwise_scale,
                                       const std::optional<at::Tensor>& depthwise_shift,
                                       c10::string_view depthwise_activation, const std::optional<at::Tensor>& scale,
                                       const std::optional<at::Tensor>& shift, c10::string_view activation,
                                       const std::optional<at::Tensor>& residual, const KernelTraits& kernels) {
  DepthwiseInputs depthwise = parse_depthwise(
      input, depthwise_weight, "depthwise_weight", geometry, pre_activation, {depthwise_scale, "depthwise_scale"},
      {depthwise_shift, "depthwise_shift"}, depthwise_activation, "depthwise_activation", kernels);
  const DepthwiseShape& shape = depthwise.shape;
  check_like(pointwise_weight, "pointwise_weight", input, "input");
  const bool flat = pointwise_weight.dim() == 2;
  TORCH_CHECK_VALUE(
      (flat || (pointwise_weight.dim() == 4 && pointwise_weight.size(2) == 1 && pointwise_weight.size(3) == 1)) &&
          pointwise_weight.size(1) == shape.channels,
      "pointwise_weight must be [O, C] or [O, C, 1, 1] with the C = ", shape.channels, " channels of input, got ",
      pointwise_weight.sizes());
  const int64_t out_channels = pointwise_weight.size(0);
  AffineTensors affine{parse_vector({scale, "scale"}, out_channels, input),
                       parse_vector({shift, "shift"}, out_channels, input), parse_activation(activation, "activation")};
  at::Tensor addend;
  if (residual.has_value()) {
    check_like(*residual, "residual", input, "input");
    check_sizes(*residual, "residual", {shape.batch, out_channels, shape.out_size.y, shape.out_size.x});
    addend = depthwise.formats.readable(*residual);
  }
  at::Tensor pointwise =
      pointwise_weight.to(depthwise.formats.type).reshape({out_channels, shape.channels}).contiguous();
  return {std::move(depthwise), std::move(pointwise), std::move(affine), std::move(addend)};
}

}  // namespace densecrf
