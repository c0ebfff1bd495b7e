// The CUDA kernels of the depthwise convolution, run by the emulator, against plain loops in double; every schedule
// gives the same bits.
#include "cuda/depthwise.h"

#include "conv_images.h"
#include "emulator.h"

using namespace densecrf;

namespace {

constexpr int kSchedules = 3;

struct Values {
  std::vector<double> sums, sizes;  // sizes: the same sums of magnitudes, which rounding errors go by

  explicit Values(int64_t count) : sums(static_cast<size_t>(count)), sizes(static_cast<size_t>(count)) {}
  void add(int64_t at, double product) {
    sums[static_cast<size_t>(at)] += product;
    sizes[static_cast<size_t>(at)] += std::fabs(product);
  }
};

// Runs the kernels with several schedules, which must agree to the bit.
template <class T, class Run>
std::vector<T> same_bits(int64_t count, Run run) {
  std::vector<T> first;
  for (int seed = 1; seed <= kSchedules; ++seed) {
    std::vector<T> out(static_cast<size_t>(count), stored<T>(seed));
    emulator::set_seed(static_cast<uint64_t>(seed));
    run(out.data());
    if (seed == 1) first = out;
    CHECK(std::memcmp(first.data(), out.data(), first.size() * sizeof(T)) == 0);
  }
  return first;
}

// `terms` roundings of the accumulator and one of the result.
template <class T>
void check_close(const std::vector<T>& got, const Values& expected, double terms) {
  CHECK(got.size() == expected.sums.size());
  for (size_t n = 0; n < got.size(); ++n) {
    const double error = std::fabs(number(got[n]) - expected.sums[n]);
    const double rounding = terms * kRounding<cuda::Accumulator<T>> * expected.sizes[n];
    // below 2^-14 halves lie evenly, 2^-24 apart
    CHECK(error <= rounding + kRounding<T> * (std::fabs(expected.sums[n]) + rounding) + 0x1p-25);
  }
}

template <class T>
void check_forward(const DepthwiseShape& shape, Activation pre, Activation activation, bool affine, int64_t wide) {
  using A = cuda::Accumulator<T>;
  const int64_t channels = shape.channels, in = shape.batch * shape.pixels(), out = shape.batch * shape.out_pixels();
  const auto input = random_numbers<T>(in * channels, 1), weight = random_numbers<T>(channels * shape.taps(), 2);
  const auto scale = random_numbers<A>(channels, 3), shift = random_numbers<A>(channels, 4);
  // the result is a slice of the channels of a wider image, the rest of which stays as it is
  const auto got = same_bits<T>(out * wide, [&](T* to) {
    cuda::DepthwiseProblem<T> problem{shape, pixels_view<const T>(input.data(), shape.pixels(), channels),
                                      weight.data(), pre};
    problem.affine.activation = activation;
    if (affine) problem.affine = {scale.data(), shift.data(), activation};
    for (int64_t n = 0; n < out * wide; ++n) to[n] = stored<T>(7);
    cuda::depthwise_forward(problem, pixels_view(to + (wide - channels), shape.out_pixels(), wide), {});
  });
  Values sums(out * wide);
  for (int64_t b = 0; b < shape.batch; ++b)
    for_taps(shape, [&](int64_t to, int tap, int64_t from) {
      for (int64_t c = 0; c < channels; ++c)
        sums.add((b * shape.out_pixels() + to) * wide + (wide - channels) + c,
                 number(weight[c * shape.taps() + tap]) *
                     activate(number(input[(b * shape.pixels() + from) * channels + c]), pre));
    });
  for (int64_t n = 0; n < out * wide; ++n) {
    const int64_t c = n % wide - (wide - channels);
    double& sum = sums.sums[n];
    if (c < 0) {
      sum = 7;
      continue;
    }
    if (affine) {
      sum = scale[c] * sum + shift[c];
      sums.sizes[n] = std::fabs(scale[c]) * sums.sizes[n] + std::fabs(shift[c]);
    }
    sum = activate(sum, activation);
  }
  check_close(got, sums, shape.taps() + 1);
}

template <class T>
void check_input_gradient(const DepthwiseShape& shape) {
  const int64_t channels = shape.channels, in = shape.batch * shape.pixels(), out = shape.batch * shape.out_pixels();
  const auto grad = random_numbers<T>(out * channels, 1), weight = random_numbers<T>(channels * shape.taps(), 2);
  const auto got = same_bits<T>(in * channels, [&](T* to) {
    cuda::depthwise_input_gradient(shape, pixels_view<const T>(grad.data(), shape.out_pixels(), channels),
                                   weight.data(), pixels_view(to, shape.pixels(), channels), {});
  });
  Values sums(in * channels);
  for (int64_t b = 0; b < shape.batch; ++b)
    for_taps(shape, [&](int64_t from, int tap, int64_t to) {
      for (int64_t c = 0; c < channels; ++c)
        sums.add((b * shape.pixels() + to) * channels + c,
                 number(weight[c * shape.taps() + tap]) * number(grad[(b * shape.out_pixels() + from) * channels + c]));
    });
  check_close(got, sums, shape.taps());
}

template <class T>
void check_weight_gradient(const DepthwiseShape& shape, Activation pre) {
  using A = cuda::Accumulator<T>;
  const int64_t channels = shape.channels, in = shape.batch * shape.pixels(), out = shape.batch * shape.out_pixels();
  const auto grad = random_numbers<T>(out * channels, 1), input = random_numbers<T>(in * channels, 2);
  const auto got = same_bits<T>(channels * shape.taps(), [&](T* to) {
    std::vector<A> workspace(static_cast<size_t>(cuda::weight_gradient_workspace<T>(shape)), A(NAN));
    cuda::depthwise_weight_gradient(shape, pixels_view<const T>(grad.data(), shape.out_pixels(), channels),
                                    pixels_view<const T>(input.data(), shape.pixels(), channels), pre, to,
                                    workspace.data(), {});
  });
  Values sums(channels * shape.taps());
  for (int64_t b = 0; b < shape.batch; ++b)
    for_taps(shape, [&](int64_t to, int tap, int64_t from) {
      for (int64_t c = 0; c < channels; ++c)
        sums.add(c * shape.taps() + tap, number(grad[(b * shape.out_pixels() + to) * channels + c]) *
                                             activate(number(input[(b * shape.pixels() + from) * channels + c]), pre));
    });
  check_close(got, sums, static_cast<double>(out));
}

template <class T>
void check_moments(const DepthwiseShape& shape, Activation pre) {
  using A = cuda::Accumulator<T>;
  const int64_t channels = shape.channels, in = shape.batch * shape.pixels(), out = shape.batch * shape.out_pixels();
  auto input = random_numbers<T>(in * channels, 1);
  const auto weight = random_numbers<T>(channels * shape.taps(), 2);
  for (T& x : input) x = stored<T>(number(x) + 8);  // so that the mean is far from zero
  const auto got = same_bits<A>(2 * channels, [&](A* to) {
    const cuda::DepthwiseProblem<T> problem{shape, pixels_view<const T>(input.data(), shape.pixels(), channels),
                                            weight.data(), pre};
    std::vector<A> workspace(static_cast<size_t>(cuda::moments_workspace<T>(shape)), A(NAN));
    cuda::depthwise_moments(problem, to, to + channels, workspace.data(), {});
  });
  Values sums(out * channels);
  for (int64_t b = 0; b < shape.batch; ++b)
    for_taps(shape, [&](int64_t to, int tap, int64_t from) {
      for (int64_t c = 0; c < channels; ++c)
        sums.add((b * shape.out_pixels() + to) * channels + c,
                 number(weight[c * shape.taps() + tap]) *
                     activate(number(input[(b * shape.pixels() + from) * channels + c]), pre));
    });
  for (int64_t c = 0; c < channels; ++c) {
    double mean = 0, variance = 0, size = 0;
    for (int64_t n = c; n < out * channels; n += channels) {
      mean += sums.sums[n] / static_cast<double>(out);
      size = std::fmax(size, sums.sizes[n]);
    }
    for (int64_t n = c; n < out * channels; n += channels)
      variance += (sums.sums[n] - mean) * (sums.sums[n] - mean) / static_cast<double>(out);
    // each number is off by the roundings of its terms, and the mean by one more wherever sets of numbers are joined
    const double error = static_cast<double>(shape.taps() + out) * kRounding<A> * size;
    CHECK(std::fabs(got[c] - mean) <= error);
    CHECK(std::fabs(got[channels + c] - variance) <= 4 * error * (std::sqrt(variance) + error));
  }
}

template <class T>
void check_shape(const DepthwiseShape& shape, Activation pre = Activation::none,
                 Activation activation = Activation::none, bool affine = false, int64_t more = 0) {
  check_forward<T>(shape, pre, activation, affine, shape.channels + more);
  check_input_gradient<T>(shape);
  check_weight_gradient<T>(shape, pre);
  check_moments<T>(shape, pre);
}

template <class T>
void check_type() {
  const int packet = cuda::kPacketChannels<T>;
  // every kernel size, stride and dilation: some strips end early, and some classes are shorter than others
  for (const int kernel : {1, 3, 5, 7}) check_shape<T>(same_shape(1, packet, {9, 15}, kernel, {1, 1}, {1, 1}));
  for (const int64_t stride : {1, 2})
    for (const int64_t dilation : {2, 3})
      check_shape<T>(same_shape(2, packet, {9, 17}, 3, {stride, stride}, {dilation, dilation}));
  check_shape<T>(same_shape(2, packet, {8, 13}, 3, {2, 2}, {1, 1}));
  check_shape<T>(same_shape(1, packet, {11, 14}, 5, {1, 2}, {2, 1}));
  // rates beyond the image, where the taps in the middle are alive and others never are
  check_shape<T>(same_shape(1, packet, {5, 5}, 3, {1, 1}, {36, 36}));
  check_shape<T>(same_shape(1, packet, {5, 9}, 3, {1, 1}, {6, 6}));
  // channels that make no packets, more than one block of packets, and a slice of a wider image
  check_shape<T>(same_shape(1, packet + 1, {4, 7}, 3, {1, 1}, {1, 1}), Activation::relu);
  check_shape<T>(same_shape(1, 19 * packet, {3, 8}, 3, {1, 1}, {1, 1}), Activation::relu6, Activation::relu, true,
                 packet);
  check_shape<T>(same_shape(1, packet, {3, 8}, 3, {1, 1}, {1, 1}), Activation::none, Activation::relu6, true, 1);
  // several strips for each thread, and several parts of the sums
  check_shape<T>(same_shape(2, 16 * packet, {17, 40}, 3, {1, 1}, {1, 1}), Activation::relu);
  // padding of one side alone, as TensorFlow pads at stride 2, and none
  DepthwiseShape shape = same_shape(1, packet, {8, 10}, 3, {2, 2}, {1, 1});
  shape.padding = {0, 0};
  shape.out_size = {4, 5};
  check_shape<T>(shape);
  shape.out_size = {3, 4};
  check_shape<T>(shape);
}

}  // namespace

int main() {
  check_type<float>();
  check_type<double>();
  check_type<__half>();
  check_type<__nv_bfloat16>();
}
