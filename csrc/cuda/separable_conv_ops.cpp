// CUDA implementations of the separable convolution and its companions: checks, allocation and dispatch; the work is in
// depthwise.cu, depthwise_weight_gradient.cu, depthwise_moments.cu and separable_fused.cu.

#include <ATen/Context.h>
#include <ATen/ops/mm.h>

#include <tuple>

#include "../separable_conv_path.h"
#include "../separable_conv_views.h"
#include "depthwise.h"
#include "register.h"
#include "scope.h"
#include "separable_fused.h"

namespace densecrf::cuda {
namespace {

using at::Tensor;

template <class T>
struct Numbers {
  using Type = T;
};

// Calls function(Numbers<T>{}) for the type that the kernels store images in.
template <class Function>
void dispatch_numbers(at::ScalarType type, Function function) {
  if (type == at::kFloat)
    function(Numbers<float>{});
  else if (type == at::kDouble)
    function(Numbers<double>{});
  else if (type == at::kHalf)
    function(Numbers<__half>{});
  else
    function(Numbers<__nv_bfloat16>{});
}

template <class T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* written(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
ImageView<const T> read_image(const Tensor& image) {
  return image_view<const T>(image, at::MemoryFormat::ChannelsLast);
}

template <class T>
ImageView<T> written_image(const Tensor& image) {
  return image_view<T>(image, at::MemoryFormat::ChannelsLast);
}

// The kernels read 16 bytes at a time: a tensor that begins between them is copied.
Tensor aligned(const Tensor& tensor) {
  const bool fits = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  return fits ? tensor : tensor.clone();
}

void check_sides(const DepthwiseShape& shape) {
  for (const Pair& size : {shape.size, shape.out_size}) {
    TORCH_CHECK_VALUE(size.y <= kMaxSide && size.x <= kMaxSide, "an image must be at most ", kMaxSide,
                      " pixels high and wide on a GPU, with its padding, got ", size.y, " x ", size.x);
    TORCH_CHECK_VALUE(size.x * shape.channels <= kMaxRow, "a row of an image must have at most ", kMaxRow,
                      " numbers on a GPU, got ", size.x, " pixels of ", shape.channels, " channels");
  }
}

template <class T>
DepthwiseProblem<T> depthwise_problem(const DepthwiseInputs& inputs, const Tensor& input) {
  return {inputs.shape, read_image<T>(input), read<T>(inputs.weight), inputs.pre, inputs.affine.view<Accumulator<T>>()};
}

Tensor depthwise_conv2d(const Tensor& input, const Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                        at::IntArrayRef dilation, c10::string_view pre_activation, const std::optional<Tensor>& scale,
                        const std::optional<Tensor>& shift, c10::string_view activation) {
  const DeviceScope scope(input);
  const DepthwiseInputs inputs = parse_depthwise(input, weight, {stride, padding, dilation}, pre_activation, scale,
                                                 shift, activation, kCudaKernels);
  check_sides(inputs.shape);
  const Tensor out = inputs.empty_output();
  if (out.numel() > 0)
    dispatch_numbers(inputs.formats.type, [&](auto numbers) {
      using T = typename decltype(numbers)::Type;
      depthwise_forward(depthwise_problem<T>(inputs, inputs.input), written_image<T>(out), scope.stream());
    });
  return inputs.formats.finish(out);
}

Tensor depthwise_conv2d_input_gradient(const Tensor& grad, const Tensor& weight, at::IntArrayRef input_size,
                                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  const DeviceScope scope(grad);
  const InputGradientInputs inputs =
      parse_input_gradient(grad, weight, input_size, {stride, padding, dilation}, kCudaKernels);
  check_sides(inputs.shape);
  const Tensor out = inputs.empty_result();
  if (out.numel() > 0)
    dispatch_numbers(inputs.formats.type, [&](auto numbers) {
      using T = typename decltype(numbers)::Type;
      depthwise_input_gradient(inputs.shape, read_image<T>(inputs.grad), read<T>(inputs.weight), written_image<T>(out),
                               scope.stream());
    });
  return inputs.formats.finish(out);
}

Tensor depthwise_conv2d_weight_gradient(const Tensor& grad, const Tensor& input, at::IntArrayRef kernel_size,
                                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                        c10::string_view pre_activation) {
  const DeviceScope scope(input);
  const WeightGradientInputs inputs =
      parse_weight_gradient(grad, input, kernel_size, {stride, padding, dilation}, pre_activation, kCudaKernels);
  const DepthwiseShape& shape = inputs.shape;
  check_sides(shape);
  const Tensor out = at::empty({shape.channels, 1, shape.kernel, shape.kernel}, input.options());
  const Tensor source = aligned(inputs.input), grads = aligned(inputs.grad);
  dispatch_numbers(inputs.formats.type, [&](auto numbers) {
    using T = typename decltype(numbers)::Type;
    using A = Accumulator<T>;
    const Tensor sums = workspace(weight_gradient_workspace<T>(shape) * static_cast<int64_t>(sizeof(A)), source);
    depthwise_weight_gradient(shape, read_image<T>(grads), read_image<T>(source), inputs.pre, written<T>(out),
                              written<A>(sums), scope.stream());
  });
  return out;
}

std::tuple<Tensor, Tensor> depthwise_conv2d_moments(const Tensor& input, const Tensor& weight, at::IntArrayRef stride,
                                                    at::IntArrayRef padding, at::IntArrayRef dilation,
                                                    c10::string_view pre_activation) {
  const DeviceScope scope(input);
  const DepthwiseInputs inputs =
      parse_moments(input, weight, {stride, padding, dilation}, pre_activation, kCudaKernels);
  check_sides(inputs.shape);
  const Tensor mean = inputs.empty_moment(), variance = inputs.empty_moment();
  const Tensor source = aligned(inputs.input);
  dispatch_numbers(inputs.formats.type, [&](auto numbers) {
    using T = typename decltype(numbers)::Type;
    using A = Accumulator<T>;
    const Tensor sums = workspace(moments_workspace<T>(inputs.shape) * static_cast<int64_t>(sizeof(A)), source);
    depthwise_moments(depthwise_problem<T>(inputs, source), written<A>(mean), written<A>(variance), written<A>(sums),
                      scope.stream());
  });
  return {mean, variance};
}

// How far apart the rows are if the pixels of all images, in channels_last, are the rows of one matrix, else 0.
int64_t row_stride(const Tensor& image) {
  if (!is_addressable(image, at::MemoryFormat::ChannelsLast)) return 0;
  const int64_t pixels = image.size(2) * image.size(3);
  const int64_t stride = pixels == 1 ? image.stride(0) : image.stride(image.size(3) > 1 ? 3 : 2);
  if (image.size(0) == 1) return pixels == 1 ? image.size(1) : stride;
  return image.stride(0) == pixels * stride ? stride : 0;
}

// float32 is multiplied as TF32 where PyTorch's own products may be.
Arithmetic arithmetic_of(at::ScalarType type) {
  if (type == at::kHalf) return Arithmetic::half;
  if (type == at::kBFloat16) return Arithmetic::bfloat16;
  if (type == at::kDouble) return Arithmetic::exact_double;
  return at::globalContext().allowTF32CuBLAS() ? Arithmetic::tf32 : Arithmetic::exact_float;
}

// `out` is such a matrix.
template <class T>
void convolve(const SeparableInputs& inputs, const Tensor& out, cudaStream_t stream) {
  const DepthwiseInputs& depthwise = inputs.depthwise;
  SeparableProblem<T> problem{depthwise_problem<T>(depthwise, depthwise.input),
                              read<T>(inputs.pointwise),
                              inputs.out_channels(),
                              inputs.affine.view<Accumulator<T>>(),
                              {}};
  if (inputs.residual.defined()) problem.residual = read_image<T>(inputs.residual);
  const Arithmetic arithmetic = arithmetic_of(depthwise.formats.type);
  const ConvPath path = separable_conv_path(depthwise.shape, problem.out_channels, arithmetic, compute_capability());
  if (path == ConvPath::fused)
    return separable_fused(problem, written_image<T>(out),
                           uses_tensor_cores(arithmetic) ? Multiply::tensor : Multiply::exact, stream);
  const Tensor between = depthwise.empty_output();
  depthwise_forward(problem.depthwise, written_image<T>(between), stream);
  const int64_t channels = depthwise.shape.channels, pixels = depthwise.shape.batch * depthwise.shape.out_pixels();
  Tensor product = out.as_strided({pixels, inputs.out_channels()}, {row_stride(out), 1});
  at::mm_out(product, between.as_strided({pixels, channels}, {channels, 1}), inputs.pointwise.t());
  finish_pointwise(problem, written_image<T>(out), stream);
}

void convolve(const SeparableInputs& inputs, const Tensor& out, cudaStream_t stream) {
  if (out.numel() == 0) return;
  dispatch_numbers(inputs.depthwise.formats.type,
                   [&](auto numbers) { convolve<typename decltype(numbers)::Type>(inputs, out, stream); });
}

Tensor atrous_separable_conv2d(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                               at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                               c10::string_view pre_activation, const std::optional<Tensor>& depthwise_scale,
                               const std::optional<Tensor>& depthwise_shift, c10::string_view depthwise_activation,
                               const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                               c10::string_view activation, const std::optional<Tensor>& residual) {
  const DeviceScope scope(input);
  const SeparableInputs inputs = parse_separable(input, depthwise_weight, pointwise_weight, {stride, padding, dilation},
                                                 pre_activation, depthwise_scale, depthwise_shift, depthwise_activation,
                                                 scale, shift, activation, residual, kCudaKernels);
  check_sides(inputs.depthwise.shape);
  const Tensor out = inputs.empty_output();
  convolve(inputs, out, scope.stream());
  return inputs.depthwise.formats.finish(out);
}

Tensor& atrous_separable_conv2d_out(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                                    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                    c10::string_view pre_activation, const std::optional<Tensor>& depthwise_scale,
                                    const std::optional<Tensor>& depthwise_shift, c10::string_view depthwise_activation,
                                    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                    c10::string_view activation, const std::optional<Tensor>& residual, Tensor& out) {
  const DeviceScope scope(input);
  const SeparableInputs inputs = parse_separable(input, depthwise_weight, pointwise_weight, {stride, padding, dilation},
                                                 pre_activation, depthwise_scale, depthwise_shift, depthwise_activation,
                                                 scale, shift, activation, residual, kCudaKernels);
  const auto given = [](const std::optional<Tensor>& tensor) { return tensor.value_or(Tensor()); };
  check_out(out, inputs, input,
            {input, depthwise_weight, pointwise_weight, given(depthwise_scale), given(depthwise_shift), given(scale),
             given(shift), given(residual)});
  check_sides(inputs.depthwise.shape);
  if (row_stride(out) > 0) {
    convolve(inputs, out, scope.stream());
  } else {
    const Tensor result = inputs.empty_output();
    convolve(inputs, result, scope.stream());
    out.copy_(result);
  }
  return out;
}

}  // namespace

}  // namespace densecrf::cuda

namespace densecrf {

void register_separable_conv(torch::Library& library) {
  library.impl("atrous_separable_conv2d", cuda::atrous_separable_conv2d);
  library.impl("atrous_separable_conv2d.out", cuda::atrous_separable_conv2d_out);
  library.impl("_depthwise_conv2d", cuda::depthwise_conv2d);
  library.impl("_depthwise_conv2d_input_gradient", cuda::depthwise_conv2d_input_gradient);
  library.impl("_depthwise_conv2d_weight_gradient", cuda::depthwise_conv2d_weight_gradient);
  library.impl("_depthwise_conv2d_moments", cuda::depthwise_conv2d_moments);
}

}  // namespace densecrf
