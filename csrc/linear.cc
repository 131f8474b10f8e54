#include "linear.h"

#include <algorithm>

#include "levels.h"
#include "panels.h"

namespace psyfast {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

const LinearKernels& linear_kernels(Isa isa) { return PSY_TABLE_OF(isa, kLinear); }

RowBlocks split_rows(int64_t num_rows, int64_t max_rows, int num_threads) {
  if (num_rows == 0) return {1, 0};
  int64_t rows = ceil_div(num_rows, num_threads);
  if (num_rows >= num_threads * kTileRows) {
    const int64_t count = ceil_div(ceil_div(num_rows, max_rows), num_threads) * num_threads;
    rows = ceil_div(ceil_div(num_rows, count), kTileRows) * kTileRows;
  }
  return {rows, ceil_div(num_rows, rows)};
}

int64_t fitting_rows(int64_t bytes, int64_t budget) {
  return std::min(kMaxBlockRows, std::max<int64_t>(1, budget / bytes / kTileRows) * kTileRows);
}

int64_t operand_stride(RowForm form, int64_t values) {
  constexpr int64_t kWhole = 2 * kMaxLanes;
  return row_words(form, ceil_div(values, kWhole) * kWhole) + kRowPadding;
}

int64_t post_norm_stride(const NormScale& norm, int64_t hidden) {
  if (norm.scale == nullptr) return 0;
  return ceil_div(hidden, kPanelColumns) * kPanelColumns + kRowPadding;
}

int team_of(int64_t num_tasks, int num_threads) {
  return static_cast<int>(std::min<int64_t>(num_threads, std::max<int64_t>(1, num_tasks)));
}

}  // namespace psyfast
