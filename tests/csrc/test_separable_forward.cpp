// The separable and the depthwise convolution against plain loops in double, in both layouts, in slices of wider
// tensors, for any number of threads.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "convolutions.h"
#include "separable_forward.h"

using namespace densecrf;

namespace {

struct Case {
  DepthwiseShape shape;
  int64_t out_channels;
};

std::vector<Case> cases() {
  return {
      {make_shape(2, 5, {9, 11}, 3, {1, 1}, {1, 1}, {1, 1}), 3},
      {make_shape(1, 21, {13, 37}, 3, {1, 1}, {2, 2}, {2, 2}), 40},
      {make_shape(2, 70, {7, 6}, 3, {1, 1}, {6, 6}, {6, 6}), 33},     // as wide as the image
      {make_shape(1, 3, {5, 5}, 3, {1, 1}, {36, 36}, {36, 36}), 17},  // only the centre is live
      {make_shape(1, 33, {33, 33}, 3, {1, 1}, {12, 12}, {12, 12}), 64},
      {make_shape(3, 17, {12, 19}, 3, {2, 2}, {1, 1}, {1, 1}), 31},
      {make_shape(1, 4, {11, 18}, 5, {2, 1}, {4, 2}, {2, 1}), 16},
      {make_shape(1, 9, {10, 16}, 3, {2, 2}, {4, 3}, {4, 3}), 5},
      {make_shape(1, 8, {16, 9}, 7, {1, 2}, {0, 3}, {2, 1}), 8},
      {make_shape(2, 1, {8, 8}, 1, {2, 2}, {0, 0}, {1, 1}), 1},
      {make_shape(1, 2, {3, 2}, 3, {1, 1}, {5, 4}, {1, 2}), 50},     // rows of nothing but padding
      {make_shape(40, 6, {1, 2}, 3, {1, 1}, {1, 1}, {1, 1}), 7},     // tiles over several images
      {make_shape(1, 512, {9, 8}, 3, {1, 1}, {4, 4}, {4, 4}), 45},   // rows a whole number of pages apart
      {make_shape(1, 800, {5, 33}, 3, {1, 1}, {1, 1}, {1, 1}), 19},  // the product in several depths
      {make_shape(1, 66, {70, 130}, 3, {1, 1}, {3, 3}, {3, 3}), 20},
      {make_shape(2, 300, {4, 5}, 5, {1, 1}, {2, 2}, {1, 1}), 2},
  };
}

// What the three operators around the products do: `plain` has nothing of it.
struct Options {
  Activation pre, middle, last;
  bool affine, residual;
};
constexpr Options kPlain{Activation::none, Activation::none, Activation::none, false, false};
constexpr Options kFull{Activation::relu, Activation::relu6, Activation::relu, true, true};
constexpr Options kMixed{Activation::relu6, Activation::none, Activation::relu6, true, false};

template <class T>
struct Problem {
  Problem(const Case& c, bool channels_last, const Options& options, unsigned seed = 1)
      : shape(c.shape),
        out_channels(c.out_channels),
        options(options),
        channels_last(channels_last),
        input(shape.batch, shape.channels, shape.size, channels_last),
        residual(shape.batch, out_channels, shape.out_size, channels_last, 2),
        weight(shape.channels * shape.taps()),
        pointwise(out_channels * shape.channels),
        middle_scale(shape.channels),
        middle_shift(shape.channels),
        scale(out_channels),
        shift(out_channels) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<T> uniform(T(-1), T(1));
    input.each([&](T& x, auto...) { x = 8 * uniform(random); });
    residual.each([&](T& x, auto...) { x = uniform(random); });
    for (auto* numbers : {&weight, &pointwise, &middle_scale, &middle_shift, &scale, &shift})
      for (T& x : *numbers) x = uniform(random);
  }

  SeparableProblem<T> problem() const {
    const auto affine = [&](const std::vector<T>& scale, const std::vector<T>& shift, Activation activation) {
      return Affine<T>{options.affine ? scale.data() : nullptr, options.affine ? shift.data() : nullptr, activation};
    };
    SeparableProblem<T> result{
        {shape, input.view(), weight.data(), options.pre, affine(middle_scale, middle_shift, options.middle)},
        pointwise.data(),
        out_channels,
        affine(scale, shift, options.last),
        {}};
    if (options.residual) result.residual = residual.view();
    return result;
  }

  Images<T> depthwise(const Pool& pool) const {
    Images<T> out(shape.batch, shape.channels, shape.out_size, channels_last);
    depthwise_forward<T>(problem().depthwise, out.view(), pool);
    return out;
  }
  Images<T> separable(const Pool& pool) const {
    Images<T> out(shape.batch, out_channels, shape.out_size, channels_last);
    separable_forward<T>(problem(), out.view(), pool);
    return out;
  }
  // As with the product of a library: P v is there already.
  Images<T> finished(Images<T> product, const Pool& pool) const {
    finish_pointwise<T>(problem(), product.view(), pool);
    return product;
  }

  DepthwiseShape shape;
  int64_t out_channels;
  Options options;
  bool channels_last;
  Images<T> input, residual;
  std::vector<T> weight, pointwise, middle_scale, middle_shift, scale, shift;
};

// NaN equals NaN alone.
void check_close(double a, double b, double tolerance) {
  CHECK(std::isnan(a) == std::isnan(b));
  CHECK(std::isnan(a) || std::abs(a - b) <= tolerance);
}

// D pre(x) with its affine and activation.
template <class T>
Images<double> plain_depthwise(const Problem<T>& p) {
  const DepthwiseShape& s = p.shape;
  Images<double> out(s.batch, s.channels, s.out_size, false);
  out.each([&](double& sum, int64_t b, int64_t c, int64_t oy, int64_t ox) {
    sum = 0;
    for (int i = 0; i < s.kernel; ++i)
      for (int j = 0; j < s.kernel; ++j) {
        const int64_t y = oy * s.stride.y - s.padding.y + i * s.dilation.y;
        const int64_t x = ox * s.stride.x - s.padding.x + j * s.dilation.x;
        if (y < 0 || y >= s.size.y || x < 0 || x >= s.size.x) continue;
        const double tap = activate<double>(p.input.at(b, c, y, x), p.options.pre);
        sum += p.weight[c * s.taps() + i * s.kernel + j] * tap;
      }
    if (p.options.affine) sum = p.middle_scale[c] * sum + p.middle_shift[c];
    sum = activate(sum, p.options.middle);
  });
  return out;
}

template <class T>
void matches_plain_loops(const Case& c, bool channels_last, const Options& options) {
  const Problem<T> p(c, channels_last, options);
  const DepthwiseShape& s = p.shape;
  // Sums of n products below m are off by at most n · m · n epsilons; v is below 8 taps + 1 and so is its error.
  const double epsilon = std::numeric_limits<T>::epsilon(), taps = s.taps(), bound = 8 * taps + 1;
  const double depth = static_cast<double>(s.channels);

  Images<double> expected = plain_depthwise(p);
  const Images<T> v = p.depthwise(serial_pool());
  expected.each([&](double& x, int64_t b, int64_t c, int64_t y, int64_t at) {
    check_close(v.at(b, c, y, at), x, epsilon * bound * (taps + 2));
  });
  CHECK(v.spare_is_untouched());

  const Images<T> y = p.separable(serial_pool());
  Images<T> product(s.batch, p.out_channels, s.out_size, channels_last);
  Images<double> result(s.batch, p.out_channels, s.out_size, channels_last);
  result.each([&](double& sum, int64_t b, int64_t o, int64_t oy, int64_t ox) {
    sum = 0;
    for (int64_t k = 0; k < s.channels; ++k) sum += p.pointwise[o * s.channels + k] * expected.at(b, k, oy, ox);
    product.at(b, o, oy, ox) = static_cast<T>(sum);
    if (p.options.affine) sum = p.scale[o] * sum + p.shift[o];
    if (p.options.residual) sum += p.residual.at(b, o, oy, ox);
    sum = activate(sum, p.options.last);
  });
  const Images<T> finished = p.finished(product, serial_pool());
  const double tolerance = epsilon * bound * (depth * (taps + 2) + depth * std::sqrt(depth));
  result.each([&](double& x, int64_t b, int64_t o, int64_t oy, int64_t ox) {
    check_close(y.at(b, o, oy, ox), x, tolerance);
    check_close(finished.at(b, o, oy, ox), x, 4 * epsilon * (depth * bound + 2));
  });
  CHECK(y.spare_is_untouched() && finished.spare_is_untouched());
}

template <class T>
void results_do_not_depend_on_threads(const Case& c, bool channels_last) {
  const Problem<T> p(c, channels_last, kFull);
  const Images<T> v = p.depthwise(serial_pool()), y = p.separable(serial_pool()), z = p.finished(y, serial_pool());
  for (const int count : {2, 3, 7}) {
    CHECK(p.depthwise(threads(count)).data == v.data);
    CHECK(p.separable(threads(count)).data == y.data);
    CHECK(p.finished(y, threads(count)).data == z.data);
  }
}

// A NaN reaches the pixels whose taps read it and no other, past every activation.
void nan_is_kept(bool channels_last) {
  const Case c{make_shape(1, 37, {9, 21}, 3, {1, 1}, {4, 4}, {4, 4}), 29};
  for (const Options& options : {kPlain, kFull, kMixed}) {
    Problem<float> p(c, channels_last, options);
    p.input.at(0, 17, 4, 20) = std::numeric_limits<float>::quiet_NaN();
    Images<float> v = p.depthwise(serial_pool()), y = p.separable(serial_pool());
    const auto reached = [](int64_t row, int64_t x) { return row % 4 == 0 && (x == 16 || x == 20); };
    v.each([&](float& value, int64_t, int64_t channel, int64_t row, int64_t x) {
      CHECK(std::isnan(value) == (channel == 17 && reached(row, x)));
    });
    y.each(
        [&](float& value, int64_t, int64_t, int64_t row, int64_t x) { CHECK(std::isnan(value) == reached(row, x)); });
  }
}

// The layers of DeepLab are computed here; a few pixels do not pay for bringing large weights into panels.
void library_is_for_few_pixels() {
  const auto wins = [](int64_t batch, int64_t channels, int64_t out_channels, int64_t size, bool channels_last) {
    return library_gemm_wins(make_shape(batch, channels, {size, size}, 3, {1, 1}, {1, 1}, {1, 1}), out_channels,
                             channels_last);
  };
  for (const bool channels_last : {false, true}) {
    CHECK(!wins(1, 256, 256, 129, channels_last) && !wins(1, 728, 728, 33, channels_last));
    CHECK(!wins(1, 1536, 2048, 33, channels_last) && !wins(1, 2048, 256, 33, channels_last));
    CHECK(wins(1, 2048, 256, 1, channels_last));
    CHECK(!wins(1, 40, 30, 1, channels_last));
  }
  CHECK(wins(1, 728, 728, 12, true) && !wins(1, 728, 728, 12, false) && !wins(4, 728, 728, 12, true));
}

}  // namespace

int main() {
  library_is_for_few_pixels();
  for (const bool channels_last : {false, true}) {
    for (const Case& c : cases()) {
      for (const Options& options : {kPlain, kFull, kMixed}) {
        matches_plain_loops<float>(c, channels_last, options);
        matches_plain_loops<double>(c, channels_last, options);
      }
      results_do_not_depend_on_threads<float>(c, channels_last);
      results_do_not_depend_on_threads<double>(c, channels_last);
    }
    nan_is_kept(channels_last);
  }
}
