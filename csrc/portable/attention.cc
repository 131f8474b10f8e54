#include "attention_kernels.h"

namespace psyfast {
namespace portable {
// clang-format off: the body needs what comes before it
#include "portable/vec.inc"
#include "product_body.inc"
#include "portable/convert.inc"
#include "functions_body.inc"
#include "exp2_polynomial.inc"
#include "operands_body.inc"
#include "attention_weights.inc"
#include "attention_strip.inc"
#include "attention_body.inc"
// clang-format on
}  // namespace portable
}  // namespace psyfast
