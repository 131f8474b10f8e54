// What one ISA level's kernels of delta_rule take. Plain data only: this header is read by translation units
// built with different -m flags, so it may hold no inline function and include no C++ standard header.
//
// Letters: E dimensions of a key, V of a value, R value heads that a key head serves, W taps of the
// convolution. A state S [E, V] and the writes U of a chunk are stored in panels of 64 columns of V.
#pragma once

#include "linear_kernels.h"

namespace psyfast {

// Positions between the borders at which states stand. Part of what defines a result's bits.
constexpr int64_t kDeltaChunk = 64;
// The widest filter that is taken.
constexpr int64_t kMaxConvWidth = 64;
// Under the root of a key's or a query's sum of squares: as the models were trained.
constexpr double kUnitEps = 1e-6;

// out = norm(x) Wᵀ for rows of x.
struct ProjectTask {
  bool bf16;
  const float* x;  // [num_tokens, hidden]
  int64_t hidden;
  NormScale norm;
  const uint32_t* panels;  // [num_panels, num_steps, 64]
  int64_t num_panels;
  int64_t num_steps;
  float* out;  // [num_tokens, num_panels * 64]
};

struct ProjectScratch {
  uint32_t* rows;      // [rows, row_stride]: the normalised rows
  int64_t row_stride;  // words
  float* product;      // [rows, 64]
};

// Sizes, and what all chunks of a key head share.
struct DeltaHead {
  bool bf16;              // of the output
  int64_t key_dim;        // E
  int64_t value_dim;      // V
  int64_t num_values;     // R
  int64_t conv_width;     // W
  int64_t k_panels;       // ceil(E / 64)
  int64_t v_panels;       // ceil(V / 64)
  int64_t columns;        // (2 k_panels + R v_panels) · 64: of q, k and each value head
  const float* channels;  // [num_tokens, channel_stride], moved to this head's columns
  int64_t channel_stride;
  const float* filter;     // [W, columns], the oldest position first
  const float* log_decay;  // [num_tokens, heads_stride], moved to this head's first value head
  const float* write;      // likewise
  int64_t heads_stride;
  NormScale head_norm;  // [V]
  void* o;              // [num_tokens, o_stride], fp32 or bf16, moved to this head's columns
  int64_t o_stride;
};

// What is known of a chunk's positions before a row: read by all that fork off inside of the chunk.
struct DeltaChunk {
  float* keys;        // [E, 64]: Kᵀ, a column a position
  float* writes;      // [R, v_panels, 64 positions, 64]
  double* log_decay;  // [R, 64]: sums from the chunk's border
};

// Rows [first_row, first_row + count) at the chunk's positions from `offset` on.
struct DeltaRows {
  int64_t first_row;
  int64_t offset;
  int64_t count;
  const int64_t* before;  // [W − 1]: the rows before the first on its path, the nearest first; −1: none
  const float* state;     // [R, v_panels, E, 64] at the chunk's border; null: zeros
  float* next_state;      // at the next border, where all 64 positions are known; null: not wanted
};

struct DeltaScratch {
  float* channels;  // [64, columns]: convolved
  float* keys;      // [64, row_stride]: of unit length
  float* queries;   // likewise, divided by √E
  int64_t row_stride;
  float* product;         // [max(E, 64), 64]
  float* key_products;    // [64, 64]: K Kᵀ
  float* query_products;  // [64, 64]: Q Kᵀ
  float* values;          // [64, v_panels · 64]
  float* weights;         // [2, 64]
  float* decayed_keys;    // [E, 64 + kRowPadding]
};

struct DeltaKernels {
  Bf16Rows bf16_rows;
  void (*project)(const ProjectTask& task, int64_t first, int64_t last, const ProjectScratch& scratch);
  void (*chunk)(const DeltaHead& head, const DeltaChunk& chunk, const DeltaRows& rows,
                const DeltaScratch& scratch);
};

namespace portable {
extern const DeltaKernels kDelta;
}
namespace avx2 {
extern const DeltaKernels kDelta;
}
namespace avx512 {
extern const DeltaKernels kDelta;
}
namespace avx512_bf16 {
extern const DeltaKernels kDelta;
}

}  // namespace psyfast
