// What one ISA level's attention kernel takes. Plain data only: read by translation units built with
// different -m flags, so this header holds no inline function and includes no C++ standard header.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kv_pages.h"
#include "panels.h"

namespace psyfast {

// Keys are reduced in blocks of whole pages at absolute multiples of 256 positions: part of what defines the
// bits.
constexpr int64_t kBlockPages = 4;
constexpr int64_t kBlockKeys = kBlockPages * kPageSlots;
// Rows (query, head of the group) of a task at most: queries and results stay in the second-level cache.
constexpr int64_t kMaxTaskRows = 384;

// Working memory of a thread.
struct AttentionScratch {
  uint32_t* queries;  // [kMaxTaskRows, query_stride]
  float* out;         // [kMaxTaskRows, v_panels * 64]
  float* offset;      // [kMaxTaskRows]: minus what a row's exponents are relative to, in log2 units
  float* threshold;   // [kMaxTaskRows]: a score above it moves that reference; -inf before a row's first key
  float* sum;         // [kMaxTaskRows, kMaxLanes]: lanes of the sum of weights
  int64_t* position;  // [kMaxTaskRows]
  float* tops;        // [kTileRows, kMaxLanes]: lanes of the largest scores of a strip
  float* scores;      // [2, kBlockPages, kTileRows, 64]
  uint32_t* weights;  // [kBlockPages, kTileRows, 32]: pairs of weights, where a level wants pairs
};

// Queries [first, last) for all query heads of one kv head.
struct AttentionTask {
  KvPages pages;
  bool bf16;
  const void* q;         // [num_queries, num_heads, head_dim] of fp32 or bf16
  void* out;             // likewise
  int64_t query_stride;  // words between rows of AttentionScratch::queries
  int64_t num_heads;
  int64_t kv_head;
  int64_t first;
  int64_t last;
  const int64_t* position;    // [num_queries]
  const int32_t* segment;     // [num_queries], rising
  const int64_t* kv_indptr;   // [num_segments + 1]
  const int64_t* kv_indices;  // pages of each segment in order of position
  float scale;
  float soft_cap;      // 0: none
  int64_t window;      // keys a query sees at most, itself included
  const float* sinks;  // [num_heads], or null
  bool join_segments;  // rows of several segments may share a tile
};

struct AttentionKernels {
  Bf16Rows bf16_rows;
  void (*attend)(const AttentionTask& task, const AttentionScratch& scratch);
  // 2^x for x <= 64.5 as the fp32 and the bf16 lane compute it, for the test of its bounds; count a multiple
  // of kMaxLanes.
  void (*exp2_fine)(const float* x, float* out, int64_t count);
  void (*exp2_coarse)(const float* x, float* out, int64_t count);
};

namespace portable {
extern const AttentionKernels kAttention;
}
namespace avx2 {
extern const AttentionKernels kAttention;
}
namespace avx512 {
extern const AttentionKernels kAttention;
}
namespace avx512_bf16 {
extern const AttentionKernels kAttention;
}

}  // namespace psyfast
