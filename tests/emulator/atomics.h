// Atomic operations, for the very types that CUDA has them for: uint64_t is not one of them.
#pragma once

#include "emulator.h"

namespace emulator {

// Replaces *address by change(*address) and returns what was there.
template <class T, class Change>
T atomically(T* address, Change change) {
  const Interleaving interleaving;
  const T old = *address;
  *address = static_cast<T>(change(old));
  return old;
}

}  // namespace emulator

#define EMULATOR_ATOMIC(name, T, result)                                     \
  inline T name(T* address, T value) {                                       \
    return emulator::atomically(address, [value](T old) { return result; }); \
  }

#define EMULATOR_ATOMIC_CAS(T)                                                                              \
  inline T atomicCAS(T* address, T compare, T value) {                                                      \
    return emulator::atomically(address, [compare, value](T old) { return old == compare ? value : old; }); \
  }

EMULATOR_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
EMULATOR_ATOMIC(atomicAdd, unsigned, old + value)
EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + value)
EMULATOR_ATOMIC(atomicAdd, float, old + value)
EMULATOR_ATOMIC(atomicAdd, double, old + value)
EMULATOR_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
EMULATOR_ATOMIC(atomicSub, unsigned, old - value)
EMULATOR_ATOMIC_CAS(int)
EMULATOR_ATOMIC_CAS(unsigned)
EMULATOR_ATOMIC_CAS(unsigned long long)
EMULATOR_ATOMIC_CAS(unsigned short)
EMULATOR_ATOMIC(atomicExch, float, (static_cast<void>(old), value))

#define EMULATOR_INTEGER_ATOMICS(T)                               \
  EMULATOR_ATOMIC(atomicMin, T, value < old ? value : old)        \
  EMULATOR_ATOMIC(atomicMax, T, value > old ? value : old)        \
  EMULATOR_ATOMIC(atomicExch, T, (static_cast<void>(old), value)) \
  EMULATOR_ATOMIC(atomicOr, T, old | value)                       \
  EMULATOR_ATOMIC(atomicAnd, T, old& value)                       \
  EMULATOR_ATOMIC(atomicXor, T, old ^ value)

EMULATOR_INTEGER_ATOMICS(int)
EMULATOR_INTEGER_ATOMICS(unsigned)
EMULATOR_INTEGER_ATOMICS(unsigned long long)
EMULATOR_ATOMIC(atomicMin, long long, value < old ? value : old)
EMULATOR_ATOMIC(atomicMax, long long, value > old ? value : old)

#undef EMULATOR_ATOMIC
#undef EMULATOR_ATOMIC_CAS
#undef EMULATOR_INTEGER_ATOMICS
