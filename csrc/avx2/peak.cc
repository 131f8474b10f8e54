#include <immintrin.h>

#include "peak_kernels.h"

namespace psyfast {
namespace avx2 {
// clang-format off: the body needs what comes before it
#include "avx2/vec.inc"
#include "product_body.inc"
#include "peak_body.inc"
// clang-format on
}  // namespace avx2
}  // namespace psyfast
