#include <immintrin.h>

#include "linear_kernels.h"

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
#include "attn_in_body.inc"
#include "activations_body.inc"
#include "attn_out_body.inc"
#include "mlp_body.inc"
// clang-format on

extern const LinearKernels kLinear;
const LinearKernels kLinear = {kBf16Rows, attn_in, attn_out, mlp, router, activate};
}  // namespace avx512_bf16
}  // namespace psyfast
