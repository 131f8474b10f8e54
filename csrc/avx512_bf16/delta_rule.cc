#include <immintrin.h>

#include "delta_rule_kernels.h"

namespace psyfast {
namespace avx512_bf16 {
// clang-format off: each needs what comes before it
#include "avx512/vec.inc"
#include "avx512_bf16/bf16_pairs.inc"
#include "product_body.inc"
#include "avx512/convert.inc"
#include "avx512_bf16/narrow.inc"
#include "functions_body.inc"
#include "avx512/exp2_table.inc"
#include "operands_body.inc"
#include "rows_body.inc"
#include "activations_body.inc"
#include "delta_rule_body.inc"
// clang-format on

extern const DeltaKernels kDelta;
const DeltaKernels kDelta = {kBf16Rows, project, delta_chunk};
}  // namespace avx512_bf16
}  // namespace psyfast
