// The fused separable convolution on the emulator against its definition in double precision: every way to multiply,
// every tile, halos, tails, slices, and the same bits whatever the order of threads.
#include <cstring>

#include "emulator.h"
#include "separable_cases.h"

namespace densecrf {
namespace {

using cuda::Multiply;

const Activation kNone = Activation::none, kRelu = Activation::relu, kRelu6 = Activation::relu6;

// Sizes around those of the tiles: 128 pixels in bands of four rows, 32, 64, 128 or 256 outputs, 8 to 32 channels.
const SeparableCase kCases[] = {
    {"one of each", 1, 1, 1, {1, 1}},
    {"tails of everything", 2, 41, 33, {7, 9}, 3, {1, 1}, {1, 1}, 1, 1, 1, 1, kRelu, kRelu6, kRelu, true, true, 3, 5},
    {"whole packets", 1, 48, 40, {6, 23}, 3, {1, 1}, {1, 1}, 1, 1, 1, 1, kNone, kRelu, kRelu, true, true, 8, 16},
    {"stride and uneven padding", 2, 24, 16, {12, 11}, 3, {2, 2}, {1, 1}, 0, 1, 0, 1, kRelu, kRelu, kNone},
    {"stride in one direction", 1, 16, 8, {5, 14}, 3, {1, 2}, {2, 1}, 1, 1, 2, 2},
    {"dilation beyond the image", 1, 40, 24, {5, 6}, 3, {1, 1}, {36, 36}, 36, 36, 36, 36, kNone, kRelu, kRelu6},
    {"dilation within the image", 1, 16, 72, {13, 12}, 3, {1, 1}, {4, 6}, 6, 6, 4, 4, kRelu, kNone, kNone},
    {"kernel 5", 1, 24, 8, {6, 7}, 5, {1, 1}, {1, 2}, 4, 4, 2, 2, kRelu6, kNone, kRelu6, false, true},
    {"kernel 7", 1, 8, 8, {9, 5}, 7, {2, 1}, {1, 1}, 3, 3, 3, 3},
    {"kernel 1", 1, 64, 136, {3, 4}, 1, {1, 1}, {1, 1}, 0, 0, 0, 0, kNone, kNone, kRelu, false},
    {"planar output", 1, 24, 20, {6, 6}, 3, {1, 1}, {1, 1}, 1, 1, 1, 1, kNone, kNone, kRelu, true, true, 0, 0, true},
    {"several tiles of outputs", 1, 32, 304, {9, 17}, 3, {1, 1}, {1, 1}, 1, 1, 1, 1, kNone, kRelu, kNone},
    {"wide and low tile", 1, 16, 264, {4, 5}},
};

template <class T>
std::vector<T> run(const SeparableData<T>& data, Multiply multiply) {
  std::vector<T> out = data.background;
  cuda::separable_fused(data.problem(), data.view(out), multiply, {});
  return out;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// The outputs are close to what is expected, and what lies between them is as it was.
template <class T>
void check_outputs(const SeparableData<T>& data, std::vector<T> out, double factor_unit, const char* what) {
  const std::vector<Expected> expected = expected_outputs(data, factor_unit);
  size_t next = 0;
  for (int64_t image = 0; image < data.c.batch; ++image)
    for (int64_t pixel = 0; pixel < data.image_pixels(); ++pixel)
      for (int64_t output = 0; output < data.c.out_channels; ++output, ++next) {
        T& got = out[data.index(image, pixel, output)];
        const double difference = std::fabs(double(cuda::to_accumulator(got)) - expected[next].value);
        if (!(difference <= expected[next].tolerance)) {
          std::fprintf(stderr, "%s, %s: image %d, pixel %d, output %d: %g instead of %g ± %g\n", data.c.name, what,
                       int(image), int(pixel), int(output), double(cuda::to_accumulator(got)), expected[next].value,
                       expected[next].tolerance);
          std::exit(1);
        }
        got = data.background[data.index(image, pixel, output)];
      }
  CHECK(same_bits(out, data.background));
}

template <class T>
void every_case(Multiply multiply, double factor_unit, const char* what) {
  for (const SeparableCase& c : kCases) {
    const SeparableData<T> data(c);
    emulator::set_seed(1);
    const std::vector<T> first = run(data, multiply);
    check_outputs(data, first, factor_unit, what);
    emulator::set_seed(2);
    CHECK(same_bits(run(data, multiply), first));
  }
}

// After a library's product only affine, residual and activation are left; the product is noise here.
template <class T>
void the_end_alone() {
  for (const SeparableCase& c : kCases) {
    const SeparableData<T> data(c);
    std::vector<T> out = data.background;
    cuda::finish_pointwise(data.problem(), data.view(out), {});
    for (int64_t image = 0; image < c.batch; ++image)
      for (int64_t pixel = 0; pixel < data.image_pixels(); ++pixel)
        for (int64_t output = 0; output < c.out_channels; ++output) {
          const int64_t at = data.index(image, pixel, output);
          const Expected expected = data.finished(cuda::to_accumulator(data.background[at]), image, pixel, output);
          // three roundings on the way, and that of the type
          const double tolerance = 3 * unit<cuda::Accumulator<T>>() * expected.magnitude + stored<T>(expected.value);
          CHECK(std::fabs(double(cuda::to_accumulator(out[at])) - expected.value) <= tolerance);
          out[at] = data.background[at];
        }
    CHECK(same_bits(out, data.background));
  }
}

// A number that is none reaches every output whose taps see it, and no other, through every activation.
void not_a_number_spreads_as_far_as_the_taps() {
  SeparableCase c{"NaN", 1, 8, 8, {6, 6}};
  c.pre = c.middle = c.last = kRelu6;
  SeparableData<float> data(c);
  data.input[(2 * 6 + 5) * 8 + 3] = NAN;
  for (const Multiply multiply : {Multiply::exact, Multiply::tensor}) {
    const std::vector<float> out = run(data, multiply);
    for (int64_t i = 0; i < static_cast<int64_t>(out.size()); ++i) {
      const int64_t y = i / 48, x = i / 8 % 6;
      CHECK(std::isnan(out[i]) == (y >= 1 && y <= 3 && x >= 4));
    }
  }
}

void nothing_to_do_is_done() {
  SeparableCase c{"no image", 0, 8, 8, {6, 6}};
  CHECK(run(SeparableData<float>(c), Multiply::exact).empty());
  c = {"no channels", 1, 0, 8, {2, 2}};
  c.affine = false;
  for (const float y : run(SeparableData<float>(c), Multiply::exact)) CHECK(y == 0);
}

}  // namespace
}  // namespace densecrf

int main() {
  using namespace densecrf;
  nothing_to_do_is_done();
  not_a_number_spreads_as_far_as_the_taps();
  the_end_alone<float>();
  the_end_alone<double>();
  the_end_alone<__half>();
  the_end_alone<__nv_bfloat16>();
  every_case<float>(Multiply::exact, 0, "float");
  every_case<double>(Multiply::exact, 0, "double");
  // TF32 has 10 bits behind the point, and both factors are rounded
  every_case<float>(Multiply::tensor, 2.001 * std::ldexp(1, -11), "TF32");
  every_case<__half>(Multiply::tensor, unit<__half>(), "half");
  every_case<__nv_bfloat16>(Multiply::tensor, unit<__nv_bfloat16>(), "bfloat16");
  every_case<__nv_bfloat16>(Multiply::exact, unit<__nv_bfloat16>(), "bfloat16 without tensor cores");
}
