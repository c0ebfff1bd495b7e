// Chooses the table of kernels once, by what the processor can do.

#include "kernels.h"

#include <cstdlib>
#include <cstring>

namespace densecrf {

#define DENSECRF_DECLARE(ISA) \
  namespace ISA {             \
  template <class F>          \
  const Kernels<F>& table();  \
  }
DENSECRF_DECLARE(baseline)
#if defined(__x86_64__)
DENSECRF_DECLARE(avx2)
DENSECRF_DECLARE(avx512)
#endif
#undef DENSECRF_DECLARE

namespace {

enum class Capability { baseline, avx2, avx512 };

Capability detect() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("DENSECRF_CPU_CAPABILITY");
  const bool any = wanted == nullptr || std::strcmp(wanted, "avx512") == 0;
  if (any && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    return Capability::avx512;
  if ((any || std::strcmp(wanted, "avx2") == 0) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return Capability::avx2;
#endif
  return Capability::baseline;
}

}  // namespace

template <class F>
const Kernels<F>& kernels() {
  static const Capability capability = detect();
#if defined(__x86_64__)
  if (capability == Capability::avx512) return avx512::table<F>();
  if (capability == Capability::avx2) return avx2::table<F>();
#endif
  (void)capability;
  return baseline::table<F>();
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace densecrf
