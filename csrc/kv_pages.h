// The packed pages of one layer's keys and values: what attn_in writes and attention multiplies. Plain data
// only: read by translation units built with different -m flags.
//
// A page holds kPageSlots positions. Both operands are panels of 64 columns as weights are:
//
//   K of a page and head:  [steps of E][64 slots]             q · K   is a product over E, a column a key
//   V of a page and head:  [ceil(E / 64)][steps of slots][64] p · V   is a product over keys, a column a
//   dimension
//
// A step is one fp32 number (lane fp32) or a pair of bf16 along the inner dimension, the even one low (lane
// bf16). Pages are ordered [page][kv head]. Slots without a token and columns behind E hold zeros.
#pragma once

#include <stdint.h>

#include "panels.h"

namespace psyfast {

constexpr int64_t kPageSlots = 64;

struct KvPages {
  uint32_t* k;  // [num_pages, num_kv_heads, k_steps, 64]
  uint32_t* v;  // [num_pages, num_kv_heads, v_panels, v_steps, 64]
  int64_t num_pages;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t k_steps;   // E (fp32) or ceil(E / 2) (bf16)
  int64_t v_panels;  // ceil(E / 64)
  int64_t v_steps;   // 64 (fp32) or 32 (bf16)
};

}  // namespace psyfast
