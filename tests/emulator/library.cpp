// Lets the emulated kernels take the place of the CPU's in torch.ops.densecrf_cuda, and gives it back.
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <memory>

#include "cuda/register.h"
#include "emulator.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// torch warns of kernels that are overridden, which is what is wanted here.
class Silence : public c10::WarningHandler {
 public:
  void process(const c10::Warning&) override {}
};

std::unique_ptr<torch::Library> library;  // its kernels are in force as long as it lives

}  // namespace

EXPORT void densecrf_emulator_enable(int on) {
  if (!on) return library.reset();
  if (library) return;
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard guard(&silence);
  library = std::make_unique<torch::Library>(torch::Library::IMPL, "densecrf_cuda", c10::DispatchKey::CPU, __FILE__,
                                             __LINE__);
  densecrf::register_lattice(*library);
  densecrf::register_mean_field(*library);
  densecrf::register_separable_conv(*library);
}

EXPORT void densecrf_emulator_seed(uint64_t seed) { emulator::set_seed(seed); }

EXPORT uint64_t densecrf_emulator_switches() { return emulator::switches(); }
