// CPU implementations of the separable convolution's operators: checks, allocation and dispatch.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "../separable_conv_views.h"
#include "depthwise.h"
#include "depthwise_gradient.h"
#include "glue.h"
#include "separable_forward.h"

namespace densecrf {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class T>
DepthwiseProblem<T> depthwise_problem(const DepthwiseInputs& inputs) {
  return {inputs.shape, image_view<const T>(inputs.input, inputs.formats.layout), inputs.weight.const_data_ptr<T>(),
          inputs.pre, inputs.affine.view<T>()};
}

template <class T>
SeparableProblem<T> separable_problem(const SeparableInputs& inputs) {
  SeparableProblem<T> problem{depthwise_problem<T>(inputs.depthwise),
                              inputs.pointwise.const_data_ptr<T>(),
                              inputs.out_channels(),
                              inputs.affine.view<T>(),
                              {}};
  if (inputs.residual.defined())
    problem.residual = image_view<const T>(inputs.residual, inputs.depthwise.formats.layout);
  return problem;
}

// One image as the matrix that a library multiplies: [pixels, channels] where channels are last, else its transpose.
template <class T>
Tensor image_matrix(const Tensor& images, int64_t image, const ImageView<T>& view, bool last) {
  const int64_t pixels = images.size(2) * images.size(3), channels = images.size(1);
  const int64_t offset = images.storage_offset() + image * view.batch_stride;
  return last ? images.as_strided({pixels, channels}, {view.pixel_stride, 1}, offset)
              : images.as_strided({channels, pixels}, {view.channel_stride, 1}, offset);
}

// out = P middle, before the affine map.
template <class T>
void multiply(const Tensor& pointwise, const Tensor& middle, const Tensor& out, at::MemoryFormat layout) {
  // The caller's autocast and gradients are no business of a product inside of an operator.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const bool last = layout == at::MemoryFormat::ChannelsLast;
  const auto from = image_view<const T>(middle, layout);
  const auto to = image_view<T>(out, layout);
  for (int64_t b = 0; b < out.size(0); ++b) {
    const Tensor v = image_matrix(middle, b, from, last);
    Tensor y = image_matrix(out, b, to, last);
    if (last)
      at::mm_out(y, v, pointwise.t());
    else
      at::mm_out(y, pointwise, v);
  }
}

// `out` is addressable in the layout of the call.
void compute(const SeparableInputs& inputs, const Tensor& out) {
  if (out.numel() == 0) return;
  const auto layout = inputs.depthwise.formats.layout;
  const DepthwiseShape& shape = inputs.depthwise.shape;
  dispatch(inputs.depthwise.formats.type, [&](auto zero) {
    using T = decltype(zero);
    const SeparableProblem<T> problem = separable_problem<T>(inputs);
    const ImageView<T> result = image_view<T>(out, layout);
    if (!library_gemm_wins(shape, inputs.out_channels(), layout == at::MemoryFormat::ChannelsLast))
      return separable_forward(problem, result, aten_pool());
    const Tensor middle = with_huge_pages(inputs.depthwise.empty_output());
    depthwise_forward(problem.depthwise, image_view<T>(middle, layout), aten_pool());
    multiply<T>(inputs.pointwise, middle, out, layout);
    finish_pointwise(problem, result, aten_pool());
  });
}

Tensor atrous_separable_conv2d(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                               at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                               c10::string_view pre_activation, const OptionalTensor& depthwise_scale,
                               const OptionalTensor& depthwise_shift, c10::string_view depthwise_activation,
                               const OptionalTensor& scale, const OptionalTensor& shift, c10::string_view activation,
                               const OptionalTensor& residual) {
  const SeparableInputs inputs = parse_separable(input, depthwise_weight, pointwise_weight, {stride, padding, dilation},
                                                 pre_activation, depthwise_scale, depthwise_shift, depthwise_activation,
                                                 scale, shift, activation, residual, kCpuKernels);
  const Tensor out = with_huge_pages(inputs.empty_output());
  compute(inputs, out);
  return inputs.depthwise.formats.finish(out);
}

Tensor& atrous_separable_conv2d_out(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                                    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                    c10::string_view pre_activation, const OptionalTensor& depthwise_scale,
                                    const OptionalTensor& depthwise_shift, c10::string_view depthwise_activation,
                                    const OptionalTensor& scale, const OptionalTensor& shift,
                                    c10::string_view activation, const OptionalTensor& residual, Tensor& out) {
  const SeparableInputs inputs = parse_separable(input, depthwise_weight, pointwise_weight, {stride, padding, dilation},
                                                 pre_activation, depthwise_scale, depthwise_shift, depthwise_activation,
                                                 scale, shift, activation, residual, kCpuKernels);
  check_out(out, inputs, input,
            {input, depthwise_weight, pointwise_weight, depthwise_scale.value_or(Tensor()),
             depthwise_shift.value_or(Tensor()), scale.value_or(Tensor()), shift.value_or(Tensor()),
             residual.value_or(Tensor())});
  const Formats& formats = inputs.depthwise.formats;
  if (formats.type == formats.result_type && is_addressable(out, formats.layout)) {
    compute(inputs, out);
    return out;
  }
  const Tensor result = inputs.empty_output();
  compute(inputs, result);
  return out.copy_(result);
}

Tensor depthwise_conv2d(const Tensor& input, const Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                        at::IntArrayRef dilation, c10::string_view pre_activation, const OptionalTensor& scale,
                        const OptionalTensor& shift, c10::string_view activation) {
  const DepthwiseInputs inputs = parse_depthwise(input, weight, {stride, padding, dilation}, pre_activation, scale,
                                                 shift, activation, kCpuKernels);
  const Tensor out = with_huge_pages(inputs.empty_output());
  if (out.numel() > 0)
    dispatch(inputs.formats.type, [&](auto zero) {
      using T = decltype(zero);
      depthwise_forward(depthwise_problem<T>(inputs), image_view<T>(out, inputs.formats.layout), aten_pool());
    });
  return inputs.formats.finish(out);
}

Tensor input_gradient(const Tensor& grad, const Tensor& weight, at::IntArrayRef input_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation) {
  const InputGradientInputs inputs =
      parse_input_gradient(grad, weight, input_size, {stride, padding, dilation}, kCpuKernels);
  const Tensor result = with_huge_pages(inputs.empty_result());
  if (result.numel() > 0)
    dispatch(inputs.formats.type, [&](auto zero) {
      using T = decltype(zero);
      const auto layout = inputs.formats.layout;
      depthwise_input_gradient(inputs.shape, image_view<const T>(inputs.grad, layout),
                               inputs.weight.const_data_ptr<T>(), image_view<T>(result, layout), aten_pool());
    });
  return inputs.formats.finish(result);
}

Tensor weight_gradient(const Tensor& grad, const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, c10::string_view pre_activation) {
  const WeightGradientInputs inputs =
      parse_weight_gradient(grad, input, kernel_size, {stride, padding, dilation}, pre_activation, kCpuKernels);
  const Tensor result = inputs.empty_result();
  if (inputs.shape.batch == 0) return result.zero_().to(inputs.formats.result_type);
  dispatch(inputs.formats.type, [&](auto zero) {
    using T = decltype(zero);
    const auto layout = inputs.formats.layout;
    depthwise_weight_gradient(inputs.shape, image_view<const T>(inputs.grad, layout),
                              image_view<const T>(inputs.input, layout), inputs.pre, result.mutable_data_ptr<T>(),
                              aten_pool());
  });
  return result.to(inputs.formats.result_type);
}

std::tuple<Tensor, Tensor> moments(const Tensor& input, const Tensor& weight, at::IntArrayRef stride,
                                   at::IntArrayRef padding, at::IntArrayRef dilation, c10::string_view pre_activation) {
  const DepthwiseInputs inputs = parse_moments(input, weight, {stride, padding, dilation}, pre_activation, kCpuKernels);
  const Tensor mean = inputs.empty_moment(), variance = inputs.empty_moment();
  dispatch(inputs.formats.type, [&](auto zero) {
    using T = decltype(zero);
    depthwise_moments(depthwise_problem<T>(inputs), mean.mutable_data_ptr<T>(), variance.mutable_data_ptr<T>(),
                      aten_pool());
  });
  return {mean, variance};
}

}  // namespace

TORCH_LIBRARY_IMPL(densecrf_cuda, CPU, m) {
  m.impl("atrous_separable_conv2d", atrous_separable_conv2d);
  m.impl("atrous_separable_conv2d.out", atrous_separable_conv2d_out);
  m.impl("_depthwise_conv2d", depthwise_conv2d);
  m.impl("_depthwise_conv2d_input_gradient", input_gradient);
  m.impl("_depthwise_conv2d_weight_gradient", weight_gradient);
  m.impl("_depthwise_conv2d_moments", moments);
}

}  // namespace densecrf
