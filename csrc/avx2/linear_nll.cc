#include <immintrin.h>

#include "linear_nll_kernels.h"

namespace psyfast {
namespace avx2 {
// clang-format off: the body needs what comes before it
#include "avx2/vec.inc"
#include "product_body.inc"
#include "functions_body.inc"
#include "exp2_polynomial.inc"
#include "linear_nll_body.inc"
// clang-format on
}  // namespace avx2
}  // namespace psyfast
