// Final RMSNorm of scored rows, written in the form that a level's kernels multiply. Baseline flags: the same
// bits on every level.
#pragma once

#include <cstdint>

#include "pack.h"
#include "panels.h"

namespace psyfast {

enum class RowForm { kFp32, kBf16Widened, kBf16Pairs };

struct NormWeights {
  const float* weight;  // [hidden]
  int64_t hidden;
  double eps;
  bool unit_offset;
};

RowForm row_form(Element lane, Bf16Rows bf16_rows);

// 32-bit words of a row, without padding.
int64_t row_words(RowForm form, int64_t hidden);

// y: [count]; out: row_words(form, count) words, or y itself in the form kFp32. An odd last pair is filled
// with zero.
void put_operands(const float* y, int64_t count, RowForm form, void* out);

// x: [hidden]; scratch: [hidden]; out: row_words(form, hidden) words.
void norm_row(const float* x, const NormWeights& norm, RowForm form, float* scratch, void* out);

}  // namespace psyfast
