#include "capability.h"

#include <cstdlib>
#include <cstring>

namespace densecrf {

static Capability detect() {
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

Capability cpu_capability() {
  static const Capability capability = detect();
  return capability;
}

}  // namespace densecrf
