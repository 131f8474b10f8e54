// Choosing one of the tables that every ISA level defines under the same name in its own namespace.
#pragma once

#include "isa.h"

#ifdef PSY_HAVE_AVX2
#define PSY_AVX2_TABLE(table) &avx2::table
#else
#define PSY_AVX2_TABLE(table) static_cast<decltype(&portable::table)>(nullptr)
#endif
#ifdef PSY_HAVE_AVX512
#define PSY_AVX512_TABLE(table) &avx512::table
#else
#define PSY_AVX512_TABLE(table) static_cast<decltype(&portable::table)>(nullptr)
#endif
#ifdef PSY_HAVE_AVX512_BF16
#define PSY_AVX512_BF16_TABLE(table) &avx512_bf16::table
#else
#define PSY_AVX512_BF16_TABLE(table) static_cast<decltype(&portable::table)>(nullptr)
#endif

// The table of a level; throws std::invalid_argument where the machine or the build lacks it.
#define PSY_TABLE_OF(isa, table)                                                     \
  level_table(isa, &portable::table, PSY_AVX2_TABLE(table), PSY_AVX512_TABLE(table), \
              PSY_AVX512_BF16_TABLE(table))

namespace psyfast {

template <class Table>
const Table& level_table(Isa isa, const Table* portable, const Table* avx2, const Table* avx512,
                         const Table* avx512_bf16) {
  require_isa(isa);
  const Table* tables[] = {portable, avx2, avx512, avx512_bf16};
  return *tables[static_cast<int>(isa)];
}

}  // namespace psyfast
