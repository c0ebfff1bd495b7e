// Neighbouring channels of a pixel: stored as they are, moved by one instruction of up to 16 bytes, and computed with
// in the type of sums.
#pragma once

#include <cstring>
#include <type_traits>

#include "../separable_conv.h"
#include "conv_types.h"
#include "launch.h"

namespace densecrf::cuda {

// The most channels that one instruction moves.
template <class T>
constexpr int kPacketChannels = 16 / static_cast<int>(sizeof(T));

// Whether every pixel of the image begins at a multiple of 16 bytes, and packets of that size hold its channels.
template <class T>
bool fits_packets(const ImageView<T>& image, int64_t channels) {
  constexpr int width = kPacketChannels<std::remove_const_t<T>>;
  return channels % width == 0 && image.batch_stride % width == 0 && image.pixel_stride % width == 0 &&
         reinterpret_cast<uintptr_t>(image.data) % 16 == 0;
}

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

__device__ __forceinline__ float to_accumulator(float x) { return x; }
__device__ __forceinline__ double to_accumulator(double x) { return x; }
__device__ __forceinline__ float to_accumulator(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_accumulator(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void from_accumulator(float x, float& to) { to = x; }
__device__ __forceinline__ void from_accumulator(double x, double& to) { to = x; }
__device__ __forceinline__ void from_accumulator(float x, __half& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void from_accumulator(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

// V channels from an address that is a multiple of their size.
template <class T, int V>
struct alignas(sizeof(T) * V) Packet {
  static constexpr int kBytes = sizeof(T) * V;
  using Word = std::conditional_t<kBytes == 2, unsigned short, unsigned>;
  Word words[kBytes / sizeof(Word)];

  static __device__ __forceinline__ Packet load(const T* from) {
    if constexpr (kBytes == 16) {
      const uint4 all = __ldg(reinterpret_cast<const uint4*>(from));
      return {{all.x, all.y, all.z, all.w}};
    } else if constexpr (kBytes == 8) {
      const uint2 all = __ldg(reinterpret_cast<const uint2*>(from));
      return {{all.x, all.y}};
    } else {
      return {{__ldg(reinterpret_cast<const Word*>(from))}};
    }
  }

  __device__ __forceinline__ void store(T* to) const {
    if constexpr (kBytes == 16)
      *reinterpret_cast<uint4*>(to) = uint4{words[0], words[1], words[2], words[3]};
    else if constexpr (kBytes == 8)
      *reinterpret_cast<uint2*>(to) = uint2{words[0], words[1]};
    else
      *reinterpret_cast<Word*>(to) = words[0];
  }

  __device__ __forceinline__ Accumulator<T> at(int i) const {
    if constexpr (sizeof(T) == 8)
      return __longlong_as_double(
          static_cast<long long>(static_cast<unsigned long long>(words[2 * i + 1]) << 32 | words[2 * i]));
    else if constexpr (sizeof(T) == 4)
      return __uint_as_float(words[i]);
    else if constexpr (V == 1)
      return half_number(words[0]);
    else
      return half_number(i % 2 == 0 ? words[i / 2] & 0xFFFFu : words[i / 2] >> 16);
  }

  __device__ __forceinline__ void set(int i, Accumulator<T> x) {
    if constexpr (sizeof(T) == 8) {
      const auto bits = static_cast<unsigned long long>(__double_as_longlong(x));
      words[2 * i] = static_cast<unsigned>(bits);
      words[2 * i + 1] = static_cast<unsigned>(bits >> 32);
    } else if constexpr (sizeof(T) == 4) {
      words[i] = __float_as_uint(x);
    } else if constexpr (V == 1) {
      words[0] = half_bits(x);
    } else {
      const unsigned bits = half_bits(x);
      words[i / 2] = i % 2 == 0 ? (words[i / 2] & 0xFFFF0000u) | bits : (words[i / 2] & 0xFFFFu) | bits << 16;
    }
  }

 private:
  static __device__ __forceinline__ float half_number(unsigned bits) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      return __uint_as_float(bits << 16);
    else
      return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  }
  static __device__ __forceinline__ unsigned short half_bits(float x) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      return __bfloat16_as_ushort(__float2bfloat16_rn(x));
    else
      return __half_as_ushort(__float2half_rn(x));
  }
};

// The activation of each channel, of two halves at a time.
template <class T, int V>
__device__ __forceinline__ Packet<T, V> activated(Packet<T, V> packet, Activation activation) {
  if constexpr (sizeof(T) == 2 && V > 1) {
    using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
    Pair zero, six;
    from_accumulator(0.0f, zero.x);
    from_accumulator(6.0f, six.x);
    zero.y = zero.x;
    six.y = six.x;
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      Pair pair;
      memcpy(&pair, &packet.words[i], sizeof(pair));
      if (activation != Activation::none) pair = __hmax2_nan(pair, zero);
      if (activation == Activation::relu6) pair = __hmin2_nan(pair, six);
      memcpy(&packet.words[i], &pair, sizeof(pair));
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) packet.set(i, activate(packet.at(i), activation));
  }
  return packet;
}

}  // namespace densecrf::cuda
