// densecrf_cuda._C: the facts of the build, and choices that follow from them. It is not linked against torch, so it
// loads beside any torch, and the package can compare versions before it loads the library of the operators.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>
#include <utility>

#include "separable_conv_path.h"

namespace py = pybind11;

namespace {

py::tuple split(const std::string& words) {
  py::list list;
  std::istringstream stream(words);
  for (std::string word; stream >> word;) list.append(word);
  return py::tuple(list);
}

py::object none_if_empty(const std::string& text) {
  return text.empty() ? py::object(py::none()) : py::object(py::str(text));
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#else
  return "unknown";
#endif
}

// What the CPU kernels are compiled for; which of them runs is chosen when the library is loaded.
const char* instruction_sets() {
#if defined(__x86_64__) && defined(__GNUC__)
  return "baseline avx2 avx512";
#else
  return "baseline";
#endif
}

// The way that a GPU would take, so that the choice can be seen without one.
const char* separable_conv_path(int64_t batch, int64_t channels, int64_t out_channels, std::pair<int64_t, int64_t> size,
                                std::pair<int64_t, int64_t> out_size, int kernel_size, const std::string& dtype,
                                bool allow_tf32, std::pair<int, int> capability) {
  densecrf::DepthwiseShape shape{};
  shape.batch = batch;
  shape.channels = channels;
  shape.size = {size.first, size.second};
  shape.out_size = {out_size.first, out_size.second};
  shape.kernel = kernel_size;
  const auto arithmetic = densecrf::arithmetic_of(dtype, allow_tf32);
  const int compute_capability = 10 * capability.first + capability.second;
  const auto path = densecrf::separable_conv_path(shape, out_channels, arithmetic, compute_capability);
  return path == densecrf::ConvPath::fused ? "fused" : "library";
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts of the build of densecrf_cuda.";
  m.attr("package_version") = DENSECRF_PACKAGE_VERSION;
  m.attr("torch_version") = DENSECRF_TORCH_VERSION;
  m.attr("python_version") = PY_VERSION;
  m.attr("cuda_version") = none_if_empty(DENSECRF_CUDA_VERSION);
  m.attr("cuda_archs") = split(DENSECRF_CUDA_ARCHS);
  m.attr("cuda_decision") = DENSECRF_CUDA_DECISION;
  m.attr("cuda_kernels") = DENSECRF_CUDA_KERNELS != 0;
  m.attr("compiler") = compiler();
  m.attr("cxx_standard") = static_cast<int>(__cplusplus / 100 % 100);
  m.attr("instruction_sets") = split(instruction_sets());
  using py::literals::operator""_a;
  m.def("separable_conv_path", &separable_conv_path, py::kw_only(), "batch"_a, "channels"_a, "out_channels"_a, "size"_a,
        "out_size"_a, "kernel_size"_a, "dtype"_a, "allow_tf32"_a, "capability"_a);
}
