#include <immintrin.h>

#include "delta_rule_kernels.h"

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
#include "activations_body.inc"
#include "delta_rule_body.inc"
// clang-format on

extern const DeltaKernels kDelta;
const DeltaKernels kDelta = {kBf16Rows, project, delta_chunk};
}  // namespace avx2
}  // namespace psyfast
