// attention over pages, tile by tile of a table (psyfast/ops/gpu/kernel_set.py, AttentionTiles); see
// attention.cu.
#pragma once

#include "operand.h"

namespace psy::cuda {

constexpr int kPageSlots = 64;      // positions of a page, and of a key block: one page
constexpr int kMmaQueryRows = 64;   // of a tile in bf16 and fp16
constexpr int kFp32QueryRows = 16;  // in fp32

struct AttentionTables {
  const int* tile_rows;   // [tiles, 2]: first row, row after the last
  const int* bounds;      // [tiles, 4]: start, full_start, full_stop, stop of its key blocks
  const int* index;       // [blocks]: first position / 64
  const int* pages;       // [blocks]: page ids
  const int* block_rows;  // [blocks, 2]: rows that may see it
  int num_tiles;
};

struct AttentionProblem {
  const void* q;                  // [rows, num_heads, head_dim]
  const void *k_pages, *v_pages;  // [pages, num_kv_heads, 64, head_dim]
  void* o;                        // [rows, num_heads · head_dim]
  const std::int64_t* positions;  // [rows]
  const float* sinks;             // [num_heads] or null
  int num_heads, num_kv_heads, head_dim;
  float scale, soft_cap;  // scale > 0; soft_cap 0: none
  int window;             // 0: none
};

// Whether heads of this size can be attended to: 64, 80, 96, 128, 256.
bool has_head_dim(std::int64_t head_dim);

void attention(const AttentionProblem& problem, const AttentionTables& tables, Operand operand,
               cudaStream_t stream);

}  // namespace psy::cuda
