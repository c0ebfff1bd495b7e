// Which way a GPU takes through a separable convolution: one kernel, or a depthwise kernel and a library's product. The
// least times of both are compared that memory and arithmetic allow, so the choice depends on shapes and the GPU alone.
#pragma once

#include <stdexcept>
#include <string>

#include "separable_conv.h"

namespace densecrf {

enum class ConvPath { fused, library };

// What the pointwise product is computed in.
enum class Arithmetic { half, bfloat16, tf32, exact_float, exact_double };

constexpr bool uses_tensor_cores(Arithmetic arithmetic) {
  return arithmetic != Arithmetic::exact_float && arithmetic != Arithmetic::exact_double;
}

// What GPUs of a compute capability reach in long runs, in 10^12 bytes or operations per second.
struct DeviceRates {
  double memory, half, tf32, single;  // `single`: of the ordinary cores, in float
  double own_share;                   // of the library's rate with tensor cores that mma.sync reaches
};

inline DeviceRates device_rates(int compute_capability) {
  if (compute_capability >= 120) return {1.6, 200, 100, 90, 0.8};
  if (compute_capability >= 100) return {7.0, 1800, 900, 65, 0.3};
  if (compute_capability >= 90) return {4.3, 790, 400, 55, 0.6};
  if (compute_capability >= 89) return {0.9, 150, 75, 60, 0.8};
  if (compute_capability >= 86) return {0.8, 70, 35, 25, 0.8};
  if (compute_capability >= 80) return {1.7, 270, 135, 17, 0.8};
  return {0.28, 45, 0, 7, 0.8};
}

// Of the library's rate with ordinary cores that the fused kernel reaches.
constexpr double kOwnShareOfSingle = 0.7;

// How many outputs a block of the tensor cores' kernel computes: blocks side by side compute the same depthwise stage
// again, and what a tile has more than there are outputs is computed in vain.
constexpr int fused_tile_outputs(int64_t out_channels) {
  if (out_channels <= 32) return 32;
  if (out_channels <= 64) return 64;
  return out_channels <= 128 || ceil_div(out_channels, 256) * 2 > ceil_div(out_channels, 128) ? 128 : 256;
}

inline ConvPath separable_conv_path(const DepthwiseShape& shape, int64_t out_channels, Arithmetic arithmetic,
                                    int compute_capability) {
  if (arithmetic == Arithmetic::exact_double) return ConvPath::library;  // which has tensor cores for it
  if (arithmetic == Arithmetic::tf32 && compute_capability < 80) arithmetic = Arithmetic::exact_float;
  if (arithmetic == Arithmetic::bfloat16 && compute_capability < 80) return ConvPath::library;
  const DeviceRates rates = device_rates(compute_capability);
  const bool tensor = uses_tensor_cores(arithmetic), half = arithmetic <= Arithmetic::bfloat16;
  const double product_rate = half ? rates.half : tensor ? rates.tf32 : rates.single;
  const double own_rate = product_rate * (tensor ? rates.own_share : kOwnShareOfSingle);

  const auto pixels = static_cast<double>(shape.batch * shape.out_pixels()), bytes = half ? 2.0 : 4.0;
  const auto channels = static_cast<double>(shape.channels), outputs = static_cast<double>(out_channels);
  const double input = bytes * static_cast<double>(shape.batch * shape.pixels()) * channels;
  const double middle = bytes * pixels * channels, result = bytes * pixels * outputs,
               factor = bytes * channels * outputs;
  const double depthwise = 2 * shape.taps() * pixels * channels, product = 2 * pixels * channels * outputs;
  const int tile = fused_tile_outputs(out_channels);
  const auto tiles = static_cast<double>(ceil_div(out_channels, tile));

  const auto longer = [](double a, double b) { return a > b ? a : b; };
  const double apart = longer((input + middle) / rates.memory, depthwise / rates.single) +
                       longer((middle + factor + result) / rates.memory, product / product_rate);
  const double own_product = product * (tiles * tile / outputs) / own_rate,
               own_depthwise = depthwise * tiles / rates.single;
  // tensor cores work beside the ordinary ones
  const double arithmetic_time = tensor ? longer(own_product, own_depthwise) : own_product + own_depthwise;
  const double fused = longer((input + factor + result) / rates.memory, arithmetic_time);
  return fused < apart ? ConvPath::fused : ConvPath::library;
}

inline Arithmetic arithmetic_of(const std::string& type, bool allow_tf32) {
  if (type == "float16") return Arithmetic::half;
  if (type == "bfloat16") return Arithmetic::bfloat16;
  if (type == "float32") return allow_tf32 ? Arithmetic::tf32 : Arithmetic::exact_float;
  if (type == "float64") return Arithmetic::exact_double;
  throw std::invalid_argument("dtype must be float16, bfloat16, float32 or float64, not " + type);
}

}  // namespace densecrf
