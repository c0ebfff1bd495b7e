// Gradients and moments of the depthwise convolution against plain loops in double, in both layouts, in slices of wider
// tensors, for any number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "convolutions.h"
#include "depthwise_gradient.h"

using namespace densecrf;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::vector<DepthwiseShape> shapes() {
  return {
      make_shape(2, 5, {9, 11}, 3, {1, 1}, {1, 1}, {1, 1}),
      make_shape(1, 21, {13, 37}, 3, {1, 1}, {2, 2}, {2, 2}),
      make_shape(2, 70, {7, 6}, 3, {1, 1}, {6, 6}, {6, 6}),     // as wide as the image
      make_shape(1, 3, {5, 5}, 3, {1, 1}, {36, 36}, {36, 36}),  // only the centre is live
      make_shape(1, 33, {33, 33}, 3, {1, 1}, {12, 12}, {12, 12}),
      make_shape(3, 17, {12, 19}, 3, {2, 2}, {1, 1}, {1, 1}),
      make_shape(1, 4, {11, 18}, 5, {2, 1}, {4, 2}, {2, 1}),
      make_shape(1, 9, {10, 16}, 3, {2, 2}, {4, 3}, {4, 3}),
      make_shape(1, 8, {16, 9}, 7, {1, 2}, {0, 3}, {2, 1}),
      make_shape(2, 1, {8, 8}, 1, {2, 2}, {0, 0}, {1, 1}),
      make_shape(1, 2, {3, 2}, 3, {1, 1}, {5, 4}, {1, 2}),      // rows of nothing but padding
      make_shape(1, 66, {70, 130}, 3, {1, 1}, {3, 3}, {3, 3}),  // several blocks of rows
      make_shape(40, 2, {5, 70}, 5, {1, 1}, {2, 2}, {1, 1}),    // blocks over several images
  };
}

// Calls function(b, c, oy, ox, tap, y, x) for every tap inside of the image.
template <class Function>
void for_taps(const DepthwiseShape& s, Function function) {
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t c = 0; c < s.channels; ++c)
      for (int64_t oy = 0; oy < s.out_size.y; ++oy)
        for (int64_t ox = 0; ox < s.out_size.x; ++ox)
          for (int i = 0; i < s.kernel; ++i)
            for (int j = 0; j < s.kernel; ++j) {
              const int64_t y = oy * s.stride.y - s.padding.y + i * s.dilation.y;
              const int64_t x = ox * s.stride.x - s.padding.x + j * s.dilation.x;
              if (y < 0 || y >= s.size.y || x < 0 || x >= s.size.x) continue;
              function(b, c, oy, ox, c * s.taps() + i * s.kernel + j, y, x);
            }
}

// |a - b| <= tolerance · scale; NaN equals NaN alone.
void check_close(double a, double b, double tolerance, double scale) {
  CHECK(std::isnan(a) == std::isnan(b));
  CHECK(std::isnan(a) || std::abs(a - b) <= tolerance * scale);
}

// One call of each kernel.
template <class T>
struct Results {
  Results(const DepthwiseShape& s, const Images<T>& input, const Images<T>& grad, const std::vector<T>& weight,
          Activation pre, const Pool& pool)
      : grad_input(s.batch, s.channels, s.size, input.channels_last),
        grad_weight(weight.size()),
        mean(s.channels),
        variance(s.channels) {
    depthwise_input_gradient<T>(s, grad.view(), weight.data(), grad_input.view(), pool);
    depthwise_weight_gradient<T>(s, grad.view(), input.view(), pre, grad_weight.data(), pool);
    depthwise_moments<T>({s, input.view(), weight.data(), pre, {}}, mean.data(), variance.data(), pool);
  }
  bool operator==(const Results& other) const {
    return grad_input.data == other.grad_input.data && grad_weight == other.grad_weight && mean == other.mean &&
           variance == other.variance;
  }
  Images<T> grad_input;
  std::vector<T> grad_weight, mean, variance;
};

template <class T>
struct Problem {
  Problem(const DepthwiseShape& s, bool channels_last, unsigned seed)
      : input(s.batch, s.channels, s.size, channels_last),
        grad(s.batch, s.channels, s.out_size, channels_last),
        weight(s.channels * s.taps()) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<T> uniform(T(-1), T(1));
    input.each([&](T& x, auto...) { x = 8 * uniform(random); });
    grad.each([&](T& x, auto...) { x = uniform(random); });
    for (T& w : weight) w = uniform(random);
  }
  Images<T> input, grad;
  std::vector<T> weight;
};

template <class T>
void matches_plain_loops(const DepthwiseShape& s, bool channels_last, Activation pre) {
  Problem<T> problem(s, channels_last, 1);
  Results<T> got(s, problem.input, problem.grad, problem.weight, pre, serial_pool());
  Images<double> grad_input(s.batch, s.channels, s.size, channels_last), out(s.batch, s.channels, s.out_size, false);
  std::vector<double> grad_weight(problem.weight.size());
  grad_input.each([](double& x, auto...) { x = 0; });
  out.each([](double& x, auto...) { x = 0; });
  for_taps(s, [&](int64_t b, int64_t c, int64_t oy, int64_t ox, int64_t tap, int64_t y, int64_t x) {
    const double g = problem.grad.at(b, c, oy, ox), w = problem.weight[tap];
    const double v = activate<double>(problem.input.at(b, c, y, x), pre);
    grad_input.at(b, c, y, x) += w * g;
    grad_weight[tap] += g * v;
    out.at(b, c, oy, ox) += w * v;
  });

  // A sum of n products of |a b| <= m is off by at most n · m · n epsilons; in practice by its square root.
  const double epsilon = std::numeric_limits<T>::epsilon();
  const double taps = s.taps(), pixels = static_cast<double>(s.batch * s.out_pixels());
  got.grad_input.each([&](T& x, int64_t b, int64_t c, int64_t y, int64_t at) {
    check_close(x, grad_input.at(b, c, y, at), epsilon * taps, taps);
  });
  CHECK(got.grad_input.spare_is_untouched());
  for (size_t i = 0; i < grad_weight.size(); ++i)
    check_close(got.grad_weight[i], grad_weight[i], epsilon * 8 * std::sqrt(pixels), std::sqrt(pixels));
  for (int64_t c = 0; c < s.channels; ++c) {
    double mean = 0, variance = 0;
    out.each([&](double& x, int64_t, int64_t channel, int64_t, int64_t) { mean += channel == c ? x / pixels : 0; });
    out.each([&](double& x, int64_t, int64_t channel, int64_t, int64_t) {
      variance += channel == c ? (x - mean) * (x - mean) / pixels : 0;
    });
    check_close(got.mean[c], mean, epsilon * 8 * taps, taps);
    check_close(got.variance[c], variance, epsilon * 64 * taps, taps);
  }
}

// <D x, g> = <x, D transposed g> = <w, weight gradient>, with D x from the plain loops.
void gradients_are_adjoint(const DepthwiseShape& s, bool channels_last) {
  Problem<double> problem(s, channels_last, 2);
  Results<double> got(s, problem.input, problem.grad, problem.weight, Activation::none, serial_pool());
  double forward = 0, to_input = 0, to_weight = 0;
  for_taps(s, [&](int64_t b, int64_t c, int64_t oy, int64_t ox, int64_t tap, int64_t y, int64_t x) {
    forward += problem.weight[tap] * problem.input.at(b, c, y, x) * problem.grad.at(b, c, oy, ox);
  });
  problem.input.each(
      [&](double& x, int64_t b, int64_t c, int64_t y, int64_t at) { to_input += x * got.grad_input.at(b, c, y, at); });
  for (size_t i = 0; i < problem.weight.size(); ++i) to_weight += problem.weight[i] * got.grad_weight[i];
  const double scale = static_cast<double>(s.batch * s.channels * s.pixels() * s.taps());
  check_close(to_input, forward, 1e-15, scale);
  check_close(to_weight, forward, 1e-15, scale);
}

template <class T>
void results_do_not_depend_on_threads(const DepthwiseShape& s, bool channels_last) {
  const Problem<T> problem(s, channels_last, 3);
  const Results<T> one(s, problem.input, problem.grad, problem.weight, Activation::relu, serial_pool());
  for (const int count : {2, 3, 7})
    CHECK(Results<T>(s, problem.input, problem.grad, problem.weight, Activation::relu, threads(count)) == one);
}

// One NaN in the input reaches exactly the weights and channels that it has a part in; so does one in the gradient.
void nan_is_kept(bool channels_last) {
  const DepthwiseShape s = make_shape(1, 19, {9, 21}, 3, {1, 1}, {4, 4}, {4, 4});
  for (const Activation pre : {Activation::none, Activation::relu, Activation::relu6}) {
    Problem<float> problem(s, channels_last, 4);
    problem.input.at(0, 17, 0, 0) = static_cast<float>(kNaN);  // in the corner: live for the taps up and left alone
    const Results<float> got(s, problem.input, problem.grad, problem.weight, pre, serial_pool());
    for (int64_t c = 0; c < s.channels; ++c) {
      CHECK(std::isnan(got.mean[c]) == (c == 17) && std::isnan(got.variance[c]) == (c == 17));
      for (int t = 0; t < 9; ++t) CHECK(std::isnan(got.grad_weight[c * 9 + t]) == (c == 17 && t / 3 < 2 && t % 3 < 2));
    }
  }
  Problem<float> problem(s, channels_last, 5);
  problem.grad.at(0, 2, 4, 20) = static_cast<float>(kNaN);
  Results<float> got(s, problem.input, problem.grad, problem.weight, Activation::none, serial_pool());
  got.grad_input.each([&](float& x, int64_t, int64_t c, int64_t y, int64_t at) {
    CHECK(std::isnan(x) == (c == 2 && y % 4 == 0 && (at == 16 || at == 20)));
  });
}

// With E[x²] - E[x]² in float nothing would be left of the variance 1/12 beside the squared mean of 10⁸.
void moments_of_large_means(bool channels_last) {
  const DepthwiseShape s = make_shape(2, 6, {64, 65}, 1, {1, 1}, {0, 0}, {1, 1});
  Problem<float> problem(s, channels_last, 6);
  std::mt19937 random(7);
  std::uniform_int_distribution<int> steps(0, 16);
  double sum = 0, squares = 0;
  problem.input.each([&](float& x, int64_t, int64_t c, int64_t, int64_t) {
    const int step = steps(random);
    x = 10000.0f + static_cast<float>(step) / 16;  // exact in float
    if (c == 5) sum += step / 16.0, squares += step * step / 256.0;
  });
  std::fill(problem.weight.begin(), problem.weight.end(), 1.0f);
  const Results<float> got(s, problem.input, problem.grad, problem.weight, Activation::none, serial_pool());
  const double pixels = static_cast<double>(s.batch * s.out_pixels()), mean = sum / pixels;
  // The mean of a row is rounded by half of 10⁴ epsilons, 6e-4, and those of different rows scatter by 0.036, the
  // standard deviation over the square root of 65: at most twice the product goes into the variance.
  CHECK(std::abs(got.mean[5] - (10000 + mean)) <= 1e4 * std::numeric_limits<float>::epsilon());
  CHECK(std::abs(got.variance[5] - (squares / pixels - mean * mean)) <= 4.3e-5);
}

}  // namespace

int main() {
  for (const bool channels_last : {false, true}) {
    for (const DepthwiseShape& shape : shapes()) {
      for (const Activation pre : {Activation::none, Activation::relu, Activation::relu6}) {
        matches_plain_loops<float>(shape, channels_last, pre);
        matches_plain_loops<double>(shape, channels_last, pre);
      }
      gradients_are_adjoint(shape, channels_last);
      results_do_not_depend_on_threads<float>(shape, channels_last);
      results_do_not_depend_on_threads<double>(shape, channels_last);
    }
    nan_is_kept(channels_last);
    moments_of_large_means(channels_last);
  }
}
