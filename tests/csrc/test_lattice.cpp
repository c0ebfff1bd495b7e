// The geometry of one point, and the keys of vertices: closed forms, and the same simplex in every vector width.
#include "lattice.h"

#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "kernels.h"

using namespace densecrf;

namespace {

template <class T>
Simplex<T, kMaxDimension> enclose(const std::vector<T>& feature) {
  const int d = static_cast<int>(feature.size());
  T scale[kMaxDimension];
  for (int i = 0; i < d; ++i) scale[i] = elevation_scale<T>(i, d);
  Simplex<T, kMaxDimension> simplex;
  simplex.enclose(feature.data(), scale, d);
  return simplex;
}

// Σ_k weight_k vertex_k is the elevated point, weights are in [0, 1] and sum to one, ranks are a permutation.
void weights_reproduce_the_point(int d, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0.0, 20.0);
  std::vector<double> feature(d);
  for (double& f : feature) f = normal(random);
  const auto simplex = enclose(feature);
  CHECK(simplex.in_range(d) != 0);

  double sum = 0;
  std::vector<int> seen(d + 1, 0);
  for (int k = 0; k <= d; ++k) {
    CHECK(simplex.weight[k] > -1e-12 && simplex.weight[k] < 1 + 1e-12);
    sum += simplex.weight[k];
    ++seen[simplex.rank[k]];
  }
  CHECK(std::abs(sum - 1) < 1e-12);
  for (const int count : seen) CHECK(count == 1);

  // Elevated coordinates by their definition: e_j = Σ_{i>j} c_i - j c_j with c_i = s_i f_i, counted from 1.
  for (int j = 0; j <= d; ++j) {
    double elevated = j ? -j * elevation_scale<double>(j - 1, d) * feature[j - 1] : 0;
    for (int i = j + 1; i <= d; ++i) elevated += elevation_scale<double>(i - 1, d) * feature[i - 1];
    double mean = 0;
    for (int k = 0; k <= d; ++k)
      mean += simplex.weight[k] * (simplex.remainder[j] + (simplex.rank[j] <= d - k ? k : k - (d + 1)));
    CHECK(std::abs(mean - elevated) < 1e-9 * (1 + std::abs(elevated)));
  }
}

// All lanes of every instruction set find bit for bit what one scalar point finds.
void vectors_agree_with_scalars(int d) {
  std::mt19937 random(d);
  std::vector<float> features(static_cast<size_t>(d) * kTilePoints), scale(d);
  // Multiples of a third and of a half: exact ties among them.
  for (float& f : features) f = static_cast<float>(static_cast<int>(random() % 200)) / (random() % 2 ? 3.0f : 2.0f);
  for (int i = 0; i < d; ++i) scale[i] = elevation_scale<float>(i, d);
  std::vector<TileSimplices<float>> out(1);
  CHECK(kernels<float>().enclose(features.data(), scale.data(), d, kTilePoints, out.data()));
  for (int p = 0; p < kTilePoints; ++p) {
    std::vector<float> feature(d);
    for (int i = 0; i < d; ++i) feature[i] = features[i * kTilePoints + p];
    const auto simplex = enclose(feature);
    for (int i = 0; i <= d; ++i) {
      CHECK(out[0].weight[i * kTilePoints + p] == simplex.weight[i]);
      CHECK(out[0].remainder[i * kTilePoints + p] == static_cast<int32_t>(simplex.remainder[i]));
      CHECK(out[0].rank[i * kTilePoints + p] == simplex.rank[i]);
    }
  }
}

void unusable_features_are_out_of_range() {
  for (const float bad : {NAN, INFINITY, -INFINITY, 1e30f, -3e6f}) CHECK(enclose<float>({1.0f, bad}).in_range(2) == 0);
  CHECK(enclose<float>({1.0f, 1000.0f}).in_range(2) != 0);
}

// Fields of a key do not touch each other, up to the largest coordinates of either sign.
void keys_keep_their_coordinates(int d) {
  std::mt19937 random(d);
  std::vector<uint64_t> key(key_words(d), 0), moved(key_words(d));
  std::vector<int32_t> coordinate(d);
  for (int i = 0; i < d; ++i) {
    coordinate[i] = random() % 3 ? static_cast<int32_t>(random() % (2 * kKeyLimit - 1)) - (kKeyLimit - 1)
                                 : (random() % 2 ? kKeyLimit - 1 : -(kKeyLimit - 1));
    key[i / kFieldsPerWord] += static_cast<uint64_t>(coordinate[i] + kKeyLimit) * key_field(i);
  }
  for (int i = 0; i < d; ++i) CHECK(key_coordinate(key.data(), i) == coordinate[i]);
  for (int axis = 0; axis <= d; ++axis) {
    bool exists = true;
    for (int i = 0; i < d; ++i) {
      const int32_t target = coordinate[i] + (i == axis ? -d : 1);
      exists = exists && target < kKeyLimit && target >= -kKeyLimit;
    }
    CHECK(key_has_neighbour(key.data(), axis, d) == exists);
    if (!exists) continue;
    key_neighbour(key.data(), axis, d, moved.data());
    for (int i = 0; i < d; ++i) CHECK(key_coordinate(moved.data(), i) == coordinate[i] + (i == axis ? -d : 1));
  }
}

// The derivative of the weights by central differences, inside one simplex.
void gradient_matches_differences(int d) {
  std::mt19937 random(7 * d);
  std::normal_distribution<double> normal(0.0, 3.0);
  std::vector<double> feature(d), vertex(d + 1), scale(d), gradient(d);
  for (double& f : feature) f = normal(random);
  for (double& v : vertex) v = normal(random);
  for (int i = 0; i < d; ++i) scale[i] = elevation_scale<double>(i, d);
  const auto simplex = enclose(feature);
  int32_t rank[kMaxDimension + 1];
  for (int i = 0; i <= d; ++i) rank[i] = static_cast<int32_t>(simplex.rank[i]);
  feature_gradient(vertex.data(), rank, 1, scale.data(), d, gradient.data());
  const double step = 1e-7;  // weights are linear inside a simplex: only rounding, 1e-16 / 1e-7, remains
  for (int i = 0; i < d; ++i) {
    double difference = 0;
    for (const double sign : {1.0, -1.0}) {
      auto shifted = feature;
      shifted[i] += sign * step;
      const auto moved = enclose(shifted);
      for (int k = 0; k <= d; ++k) difference += sign * vertex[k] * moved.weight[k] / (2 * step);
    }
    CHECK(std::abs(difference - gradient[i]) < 1e-6 * (1 + std::abs(gradient[i])) * d);
  }
}

}  // namespace

int main() {
  for (const int d : {1, 2, 3, 5, 8, 16, 48})
    for (unsigned seed = 0; seed < 50; ++seed) weights_reproduce_the_point(d, seed);
  for (const int d : {1, 2, 3, 4, 5, 7, 16, 48}) vectors_agree_with_scalars(d);
  unusable_features_are_out_of_range();
  for (int round = 0; round < 20; ++round)
    for (const int d : {1, 2, 3, 4, 5, 6, 7, 16, 48}) keys_keep_their_coordinates(d);
  for (const int d : {1, 2, 5, 9}) gradient_matches_differences(d);
  CHECK(round_to_even(0.5f) == 0.0f && round_to_even(1.5f) == 2.0f && round_to_even(-2.5) == -2.0);
}
