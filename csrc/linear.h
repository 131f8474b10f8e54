// What attn_in, attn_out and mlp share: their kernels, and how rows are split into the blocks that threads
// take.
#pragma once

#include <cstdint>

#include "isa.h"
#include "linear_kernels.h"
#include "norm_rows.h"

namespace psyfast {

// The kernels of a level; throws std::invalid_argument where the machine lacks it.
const LinearKernels& linear_kernels(Isa isa);

struct RowBlocks {
  int64_t rows;   // of every block but the last
  int64_t count;  // of blocks
};

// As few blocks as hold `max_rows` at most and keep every thread at work; of whole tiles, where there are
// enough rows. The split changes no result's bits.
RowBlocks split_rows(int64_t num_rows, int64_t max_rows, int num_threads);

// Rows of `bytes` each that fit a budget, in whole tiles; at least one tile, at most kMaxBlockRows.
constexpr int64_t kMaxBlockRows = 192;
int64_t fitting_rows(int64_t bytes, int64_t budget);

// Words from one row of operands to the next: whole vectors are stored, and no stride is a power of two.
int64_t operand_stride(RowForm form, int64_t values);

// Numbers from one row of a product to the next where a norm follows it, in whole panels; 0 where none does.
int64_t post_norm_stride(const NormScale& norm, int64_t hidden);

// Threads worth starting for a number of tasks.
int team_of(int64_t num_tasks, int num_threads);

}  // namespace psyfast
