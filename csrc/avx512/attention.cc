#include <immintrin.h>

#include "attention_kernels.h"

namespace psyfast {
namespace avx512 {
// clang-format off: the body needs what comes before it
#include "avx512/vec.inc"
#include "avx512/bf16_widened.inc"
#include "product_body.inc"
#include "avx512/convert.inc"
#include "avx512/narrow.inc"
#include "functions_body.inc"
#include "avx512/exp2_table.inc"
#include "operands_body.inc"
#include "attention_weights.inc"
#include "attention_strip.inc"
#include "attention_body.inc"
// clang-format on
}  // namespace avx512
}  // namespace psyfast
