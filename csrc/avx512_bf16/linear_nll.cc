#include <immintrin.h>

#include "linear_nll_kernels.h"

namespace psyfast {
namespace avx512_bf16 {
// clang-format off: the body needs what comes before it
#include "avx512/vec.inc"
#include "avx512_bf16/bf16_pairs.inc"
#include "product_body.inc"
#include "functions_body.inc"
#include "avx512/exp2_table.inc"
#include "linear_nll_body.inc"
// clang-format on
}  // namespace avx512_bf16
}  // namespace psyfast
