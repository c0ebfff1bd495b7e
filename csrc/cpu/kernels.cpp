#include "kernels.h"

#include "capability.h"

namespace densecrf {

DENSECRF_CHOOSE_TABLE(Kernels, table, kernels)

}  // namespace densecrf
