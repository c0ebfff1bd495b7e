// densecrf_cuda._C: the facts of the build. It is not linked against torch, so it loads beside any torch, and the
// package can compare versions before it loads the library of the operators.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

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
}
