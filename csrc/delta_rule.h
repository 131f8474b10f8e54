// delta_rule: projections, short convolution and gated delta rule of a forest's tokens, each head's output
// normalised.
#pragma once

#include <cstdint>

#include "delta_rule_kernels.h"
#include "isa.h"
#include "pack.h"

namespace psyfast {

// Letters as in delta_rule_kernels.h. A key head's columns are those of q, of k and of each of its R value
// heads, each padded with zeros to whole panels.
struct DeltaRuleArgs {
  const float* x;  // [num_tokens, hidden]
  int64_t num_tokens;
  int64_t hidden;
  NormScale norm;
  const uint32_t* panels;  // pack_columns of [key heads, columns] by hidden
  // Of [2 · value heads] by hidden, and zeros up to whole panels: a, then b, of
  //   log decay = −exp(log_rate) softplus(a + time_bias)      write strength = 1 / (1 + e^−b)
  const uint32_t* decay_write_panels;
  Element lane;
  const float* filter;     // [key heads, conv_width, columns], the oldest position first
  const float* log_rate;   // [value heads]
  const float* time_bias;  // [value heads]
  NormScale head_norm;     // scale [value_dim] and kVectorPadding more
  int64_t num_key_heads;
  int64_t num_value_heads;
  int64_t key_dim;
  int64_t value_dim;
  int64_t conv_width;
  // Segments in an order in which the parent stands before its forks; a segment's tokens are consecutive.
  int64_t num_segments;
  const int64_t* qo_indptr;   // [num_segments + 1]
  const int64_t* start;       // [num_segments]: position of the first token
  const int64_t* parent_row;  // [num_segments]: the row before it on its path; -1 for a root
  void* o;                    // [num_tokens, num_value_heads * value_dim], fp32 or bf16 as the lane
};

// A row's bits depend on its path, the weights and the level alone: not on what else there is, where the path
// forks, or num_threads. Throws std::invalid_argument for sizes, segments and pointers that do not fit.
void delta_rule(const DeltaRuleArgs& args, Isa isa, int num_threads);

}  // namespace psyfast
