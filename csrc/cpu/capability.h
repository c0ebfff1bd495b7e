// What the processor can do, asked once; every table of kernels is chosen by it.
#pragma once

namespace densecrf {

enum class Capability { baseline, avx2, avx512 };

// DENSECRF_CPU_CAPABILITY=baseline|avx2|avx512 lowers it.
Capability cpu_capability();

}  // namespace densecrf

#define DENSECRF_DECLARE_TABLE(ISA, Table, name) \
  namespace ISA {                                \
  template <class T>                             \
  const Table<T>& name();                        \
  }

// Defines choose<T>(): the table that ISA::name<T>() returns for the best instruction set of this processor. Stands
// inside the namespace densecrf.
#if defined(__x86_64__)
#define DENSECRF_CHOOSE_TABLE(Table, name, choose)                        \
  DENSECRF_DECLARE_TABLE(baseline, Table, name)                           \
  DENSECRF_DECLARE_TABLE(avx2, Table, name)                               \
  DENSECRF_DECLARE_TABLE(avx512, Table, name)                             \
  template <class T>                                                      \
  const Table<T>& choose() {                                              \
    if (cpu_capability() == Capability::avx512) return avx512::name<T>(); \
    if (cpu_capability() == Capability::avx2) return avx2::name<T>();     \
    return baseline::name<T>();                                           \
  }                                                                       \
  template const Table<float>& choose<float>();                           \
  template const Table<double>& choose<double>();
#else
#define DENSECRF_CHOOSE_TABLE(Table, name, choose) \
  DENSECRF_DECLARE_TABLE(baseline, Table, name)    \
  template <class T>                               \
  const Table<T>& choose() {                       \
    return baseline::name<T>();                    \
  }                                                \
  template const Table<float>& choose<float>();    \
  template const Table<double>& choose<double>();
#endif
