#include <immintrin.h>

#include "attention_kernels.h"

namespace psyfast {
namespace avx2 {
// clang-format off: the body needs what comes before it
#include "avx2/vec.inc"
#include "product_body.inc"
#include "functions_body.inc"
#include "exp2_polynomial.inc"
// clang-format on

#include "attention_body.inc"
}  // namespace avx2
}  // namespace psyfast
