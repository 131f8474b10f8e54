// linear_nll: final RMSNorm, LM head, log-sum-exp, and what is read off it, for the scored rows; no [N, V]
// buffer.
#pragma once

#include <cstdint>

#include "isa.h"
#include "linear_nll_kernels.h"
#include "pack.h"

namespace psyfast {

struct LinearNllArgs {
  const float* x;  // [num_rows, hidden], before the final norm
  int64_t num_rows;
  int64_t hidden;
  const float* norm_weight;  // [hidden]
  double eps;
  bool unit_offset;        // the norm multiplies by 1 + weight
  const uint32_t* panels;  // pack_columns of the head [vocab, hidden]
  Element lane;
  int64_t vocab;
  float scale;
  float soft_cap;            // 0: none
  const int64_t* target;     // [num_rows]
  const int64_t* option_id;  // [num_rows, num_options], -1: none; null if num_options is 0
  int64_t num_options;
  float* nll;         // [num_rows]
  int64_t* argmax;    // [num_rows]
  int64_t* rank;      // [num_rows]
  float* entropy;     // [num_rows]
  float* option_nll;  // [num_rows, num_options]
};

// The kernels of a level; throws std::invalid_argument where the machine lacks it.
const LinearNllKernels& linear_nll_kernels(Isa isa);

// A row with a NaN or +inf among its logits yields NaN and the ids -1; other rows are not touched by it.
// A row's bits depend on the row, the head and the level alone: not on num_rows, the other rows or
// num_threads. Throws std::invalid_argument for bad shapes, ids outside the vocabulary and null pointers.
void linear_nll(const LinearNllArgs& args, Isa isa, int num_threads);

}  // namespace psyfast
