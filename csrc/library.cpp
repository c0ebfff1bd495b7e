// Defines every operator; the files of each device only implement them.

#include <torch/library.h>

TORCH_LIBRARY(densecrf_cuda, m) {
#define DENSECRF_SCHEMA(schema) m.def(schema);
#include "../densecrf_cuda/schemas.def"
#undef DENSECRF_SCHEMA
}
