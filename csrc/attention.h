// attention: causal attention of packed queries over the pages of their segments' paths.
#pragma once

#include <cstdint>

#include "attention_kernels.h"
#include "isa.h"
#include "pack.h"

namespace psyfast {

struct AttentionArgs {
  const void* q;  // [num_queries, num_heads, head_dim], fp32 or bf16 as the lane
  void* out;      // likewise
  Element lane;
  int64_t num_queries;
  int64_t num_heads;
  KvPages pages;
  const int64_t* position;    // [num_queries]
  const int64_t* qo_indptr;   // [num_segments + 1]
  const int64_t* kv_indptr;   // [num_segments + 1]
  const int64_t* kv_indices;  // [kv_indptr[num_segments]]
  int64_t num_segments;
  float scale;
  float soft_cap;      // 0: none
  int64_t window;      // 0: none
  const float* sinks;  // [num_heads], or null
  bool join_segments;  // whether short segments fill tiles together; changes no bit
};

// The kernels of a level; throws std::invalid_argument where the machine lacks it.
const AttentionKernels& attention_kernels(Isa isa);

// A query's bits depend on its row, its keys and the level alone: not on the other queries, how segments
// share pages or num_threads. Throws std::invalid_argument for shapes, tables and pages that do not fit
// together.
void attention(const AttentionArgs& args, Isa isa, int num_threads);

}  // namespace psyfast
