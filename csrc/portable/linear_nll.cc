#include "linear_nll_kernels.h"

namespace psyfast {
namespace portable {
// clang-format off: the body needs what comes before it
#include "portable/vec.inc"
#include "product_body.inc"
#include "functions_body.inc"
#include "exp2_polynomial.inc"
#include "linear_nll_body.inc"
// clang-format on
}  // namespace portable
}  // namespace psyfast
