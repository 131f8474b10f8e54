#include <immintrin.h>

#include "attention_kernels.h"

namespace psyfast {
namespace avx512_bf16 {
// clang-format off: the body needs what comes before it
#include "avx512/vec.inc"
#include "avx512_bf16/bf16_pairs.inc"
#include "product_body.inc"
#include "functions_body.inc"
#include "avx512/exp2_table.inc"
// clang-format on

// Sixteen weights of each of two vectors, rounded to bf16, the first vector's low.
static PSY_INLINE void store_weights(uint32_t* out, Vec a, Vec b) {
  const __m512bh pairs = _mm512_cvtne2ps_pbh(b, a);
  __builtin_memcpy(out, &pairs, sizeof pairs);
}

#include "attention_body.inc"
}  // namespace avx512_bf16
}  // namespace psyfast
