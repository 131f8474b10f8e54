#include <immintrin.h>

#include "linear_kernels.h"

namespace psyfast {
namespace avx2 {
// clang-format off: each needs what comes before it
#include "avx2/vec.inc"
#include "product_body.inc"
#include "avx2/convert.inc"
#include "functions_body.inc"
#include "exp2_polynomial.inc"
#include "operands_body.inc"
#include "rows_body.inc"
#include "attn_in_body.inc"
#include "activations_body.inc"
#include "attn_out_body.inc"
#include "mlp_body.inc"
// clang-format on

extern const LinearKernels kLinear;
const LinearKernels kLinear = {kBf16Rows, attn_in, attn_out, mlp, router, activate};
}  // namespace avx2
}  // namespace psyfast
