// attn_in: RMSNorm, projection to queries, keys and values, bias, norms of heads, rotary embedding, and the
// write of K and V into packed pages.
#pragma once

#include <cstdint>

#include "isa.h"
#include "linear_kernels.h"
#include "pack.h"

namespace psyfast {

struct AttnInArgs {
  const float* x;  // [num_tokens, hidden]
  int64_t num_tokens;
  int64_t hidden;
  // Of rows; scale [hidden] and kVectorPadding more, zeros there, the unit offset included; or null for none.
  NormScale norm;
  // pack_columns of the heads' columns, each head padded to whole panels: those of q, then k, then v.
  const uint32_t* panels;
  Element lane;
  const float* bias;  // [heads, ceil(E / 64) * 64] and kVectorPadding more, zeros where a head is padded
  // Scale [ceil(E / 64) * 64] and kVectorPadding more, zeros there; or null. With heads_together the norm is
  // over all query heads of a row, or all key heads: scale [heads, ceil(E / 64) * 64], zeros where a head is
  // padded.
  NormScale q_norm;
  NormScale k_norm;
  bool heads_together;
  const float* cos;  // [num_positions, num_pairs], likewise sin; null if num_pairs is 0
  const float* sin;
  int64_t num_positions;
  int64_t num_pairs;
  int64_t num_heads;
  KvPages pages;
  const int64_t* position;  // [num_tokens]
  const int64_t* slot;      // [num_tokens], page * 64 + slot of the page; no two alike
  const int64_t* copy_run;  // [num_copy_runs, 4]: page from, page to, first slot, slot after the last
  int64_t num_copy_runs;
  const int64_t* row;  // [num_rows], ascending tokens whose queries are wanted; null: all tokens
  int64_t num_rows;
  void* q;  // [num_rows, num_heads, head_dim], fp32 or bf16 as the lane
};

// A row's bits depend on the row, its position, the weights and the level alone: not on num_tokens, the other
// rows, `row` or num_threads. Throws std::invalid_argument for sizes, positions, slots, runs and rows that do
// not fit, and for null pointers.
void attn_in(const AttnInArgs& args, Isa isa, int num_threads);

}  // namespace psyfast
