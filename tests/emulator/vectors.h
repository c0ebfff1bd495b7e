// The vector types of CUDA with their sizes and alignments.
#pragma once

#define EMULATOR_VECTOR2(name, type, alignment) \
  struct alignas(alignment) name {              \
    type x, y;                                  \
  };                                            \
  inline name make_##name(type x, type y) { return name{x, y}; }

#define EMULATOR_VECTOR3(name, type) \
  struct name {                      \
    type x, y, z;                    \
  };                                 \
  inline name make_##name(type x, type y, type z) { return name{x, y, z}; }

#define EMULATOR_VECTOR4(name, type, alignment) \
  struct alignas(alignment) name {              \
    type x, y, z, w;                            \
  };                                            \
  inline name make_##name(type x, type y, type z, type w) { return name{x, y, z, w}; }

EMULATOR_VECTOR2(char2, signed char, 2)
EMULATOR_VECTOR2(uchar2, unsigned char, 2)
EMULATOR_VECTOR2(short2, short, 4)
EMULATOR_VECTOR2(ushort2, unsigned short, 4)
EMULATOR_VECTOR2(int2, int, 8)
EMULATOR_VECTOR2(uint2, unsigned, 8)
EMULATOR_VECTOR2(longlong2, long long, 16)
EMULATOR_VECTOR2(ulonglong2, unsigned long long, 16)
EMULATOR_VECTOR2(float2, float, 8)
EMULATOR_VECTOR2(double2, double, 16)

EMULATOR_VECTOR3(int3, int)
EMULATOR_VECTOR3(uint3, unsigned)
EMULATOR_VECTOR3(float3, float)
EMULATOR_VECTOR3(double3, double)

EMULATOR_VECTOR4(char4, signed char, 4)
EMULATOR_VECTOR4(uchar4, unsigned char, 4)
EMULATOR_VECTOR4(short4, short, 8)
EMULATOR_VECTOR4(ushort4, unsigned short, 8)
EMULATOR_VECTOR4(int4, int, 16)
EMULATOR_VECTOR4(uint4, unsigned, 16)
EMULATOR_VECTOR4(float4, float, 16)
EMULATOR_VECTOR4(double4, double, 16)

#undef EMULATOR_VECTOR2
#undef EMULATOR_VECTOR3
#undef EMULATOR_VECTOR4

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
