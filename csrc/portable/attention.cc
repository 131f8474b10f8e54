#include "attention_kernels.h"

namespace psyfast {
namespace portable {
// clang-format off: the body needs what comes before it
#include "portable/vec.inc"
#include "product_body.inc"
#include "functions_body.inc"
#include "exp2_polynomial.inc"
// clang-format on

#include "attention_body.inc"
}  // namespace portable
}  // namespace psyfast
