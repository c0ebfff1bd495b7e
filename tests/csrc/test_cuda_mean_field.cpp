// The CUDA kernels of mean field, run by the emulator: the fused way and the one in steps give the same Q to rounding,
// and every schedule the same bits. (Against the CPU they are tested through the operators.)
#include "cuda/mean_field.h"
#include "cuda_images.h"
#include "emulator.h"

using namespace densecrf;

namespace {

// Q after a few updates with one Potts term; `steps` takes the way that is not fused.
std::vector<float> infer(const Image& image, const Tables<float>& tables, const std::vector<float>& unary, int channels,
                         float weight, bool steps) {
  const int64_t points = image.grid.points(), size = points * channels;
  std::vector<float> out(unary.size()), x(unary.size()), q(unary.size());
  std::vector<unsigned long long> faults(image.batch);
  cuda::MeanFieldProblem<float> problem{};
  problem.grid = image.grid;
  problem.batch = image.batch;
  problem.channels = channels;
  problem.unary = {unary.data(), size, 1, points};
  problem.iterations = 3;
  problem.tolerance = -1;
  problem.output = Output::probabilities;
  problem.out = out.data();
  problem.faults = faults.data();
  const cuda::Term<float> term{{nullptr, 0}, {nullptr, 0}, Compatibility::potts, &weight, slice_gain<float>(image.d)};
  const int stride = static_cast<int>(ceil_div(channels, cuda::kVector) * cuda::kVector);
  Rows<float> rows(view(image, tables), image.batch, stride);
  if (steps) {
    const cuda::BatchView<float> target{q.data(), size, channels, 1};
    for (int iteration = 0; iteration <= problem.iterations; ++iteration) {
      cuda::load_logits(problem, x.data(), {});
      if (iteration > 0) {
        cuda::splat(rows.buffers, cuda::BatchView<const float>{q.data(), size, channels, 1}, channels, term.splat_scale,
                    {});
        cuda::RowBatch<float, float> batch{{rows.buffers}, 1};
        cuda::gather_and_blur(batch, false, {});
        cuda::slice(batch.of[0], channels, term.slice_scale, cuda::ChannelFactor<float>{&weight, 0, 1}, true,
                    cuda::BatchView<float>{x.data(), size, channels, 1}, {});
      }
      cuda::update(problem, iteration, x.data(), target, {});
    }
  } else {
    cuda::FusedTerms<float> terms{{{rows.buffers}, 1}, {term}};
    cuda::infer_fused(problem, terms, {});
  }
  int64_t vertices = tables.vertices;
  std::vector<int64_t> status(image.batch, -1);
  cuda::finish(problem, cuda::LatticeWords{{&vertices}, 1}, status.data(), {});
  for (const int64_t word : status) CHECK(word == 0);
  return out;
}

void check_mean_field(const Image& image, int channels) {
  const Tables<float> tables = build_emulated<float>(image, image.entries());
  const std::vector<float> unary = noise<float>(image.batch * image.grid.points() * channels, 2);
  // Row sums of the filter are about 30: this weight changes labels without deciding all of them.
  const float weight = 0.05f;
  emulator::set_seed(1);
  const std::vector<float> fused = infer(image, tables, unary, channels, weight, false);
  emulator::set_seed(2);
  CHECK(infer(image, tables, unary, channels, weight, false) == fused);
  const std::vector<float> stepped = infer(image, tables, unary, channels, weight, true);
  CHECK(difference(stepped, fused) < 1e-5);  // both round in float, in other orders
  CHECK(difference(fused, noise<float>(fused.size(), 3)) > 0.1);
}

}  // namespace

int main() {
  for (const int channels : {1, 2, 5, 21, 32}) check_mean_field(Image(17, 33, 5, 2, 2), channels);
}
