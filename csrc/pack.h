// Packs weights [V, D] into panels of 64 columns, the operand of every CPU product.
#pragma once

#include <cstdint>

#include "kv_pages.h"

namespace psyfast {

enum class Element { kFp32, kBf16 };

// 32-bit words that a column of `inner` numbers takes: one each (fp32), or one a pair (bf16).
int64_t inner_steps(int64_t inner, Element lane);

// 32-bit words of the packed form: fp32 `[ceil(V/64)][D][64]`, bf16 `[ceil(V/64)][ceil(D/2)][64]` pairs.
int64_t packed_words(int64_t num_columns, int64_t inner, Element lane);

// Packed column c is row row_of_column[c] of weights [num_rows, inner] of `source`, row-major, or zeros where
// it is -1; null: the rows in their order. An odd inner dimension and the last panel are padded with zeros.
// fp32 from bf16 is exact, bf16 from fp32 rounds to nearest even. Throws std::invalid_argument for null
// pointers, sizes that are not positive and other numbers in row_of_column.
void pack_columns(const void* weights, Element source, int64_t num_rows, int64_t inner,
                  const int64_t* row_of_column, int64_t num_columns, Element lane, uint32_t* packed,
                  int num_threads);

// The pages of a layer with the sizes that follow from the lane.
KvPages kv_pages(uint32_t* k, uint32_t* v, int64_t num_pages, int64_t num_kv_heads, int64_t head_dim,
                 Element lane);

}  // namespace psyfast
