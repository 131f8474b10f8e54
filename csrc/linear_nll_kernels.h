// What one ISA level's kernels of linear_nll take and give. Plain data only: this header is read by
// translation units built with different -m flags, so it may hold no inline function and include no C++
// standard header.
#pragma once

#include <stdint.h>

#include "panels.h"

namespace psyfast {

// A vocabulary block is 1,024 columns. Sums inside a block are fp32, blocks are merged in double and in
// order: this number is part of what defines a result's bits.
constexpr int64_t kPanelsPerBlock = 16;
constexpr int64_t kMaxOptions = 64;

// The packed head: fp32 `[ceil(V/64)][D][64]` floats, or bf16 `[ceil(V/64)][ceil(D/2)][64]` pairs, even d
// low.
struct HeadPanels {
  const uint32_t* words;
  int64_t vocab;
  int64_t num_steps;  // words a column: D (fp32) or ceil(D/2) (bf16)
  bool bf16;
  float scale;
  float soft_cap;  // 0: none
};

// Some scored rows, normalised, in the form that the level and the lane want.
struct HeadRows {
  const void* values;  // [num_rows, stride] floats or pairs
  int64_t stride;      // in 32-bit words
  int64_t num_rows;
  const int64_t* target;        // [num_rows]
  const float* target_logit;    // [num_rows]
  int64_t num_options;          // K
  const int64_t* option_id;     // [num_rows, K], ascending; only the first option_count[row] count
  const int32_t* option_slot;   // [num_rows, K], the column of HeadRows::option_logit that each belongs to
  const int32_t* option_count;  // [num_rows]
  float* option_logit;          // [num_rows, K]
};

// Running sums of one row inside a block, relative to the running maximum, one a vector lane.
struct RowState {
  float sum[kMaxLanes];       // sum of exp(l - max)
  float weighted[kMaxLanes];  // sum of (l - max) exp(l - max)
  float max;
  int32_t next_option;
  int64_t argmax;
  int64_t rank;
};

// What one vocabulary block says about one row.
struct BlockPartial {
  double sum;
  double weighted;
  int64_t argmax;
  int64_t rank;
  float max;
};

struct LinearNllKernels {
  Bf16Rows bf16_rows;
  // target_logit[row] of every row, the same bits as the row's tile gives.
  void (*target_logits)(const HeadPanels& head, const HeadRows& rows, float* target_logit);
  // Panels [first_panel, last_panel) for all rows: partial[row * partial_stride].
  // logits: [num_rows, 64] scratch; state: [num_rows] scratch.
  void (*score_block)(const HeadPanels& head, const HeadRows& rows, int64_t first_panel, int64_t last_panel,
                      float* logits, RowState* state, BlockPartial* partial, int64_t partial_stride);
  // exp(x) for x <= 0, for the test of its error bound; count must be a multiple of kMaxLanes.
  void (*exp_nonpositive)(const float* x, float* out, int64_t count);
  // tanh(x), likewise.
  void (*tanh_any)(const float* x, float* out, int64_t count);
};

namespace portable {
extern const LinearNllKernels kLinearNll;
}
namespace avx2 {
extern const LinearNllKernels kLinearNll;
}
namespace avx512 {
extern const LinearNllKernels kLinearNll;
}
namespace avx512_bf16 {
extern const LinearNllKernels kLinearNll;
}

}  // namespace psyfast
