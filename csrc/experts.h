// experts: RMSNorm, a router that chooses a few of many MLPs for each token, and their weighted sum.
#pragma once

#include <cstdint>

#include "isa.h"
#include "linear_kernels.h"
#include "pack.h"

namespace psyfast {

// Results of a token's experts are kept until all are there: so many bytes of them at a time.
constexpr int64_t kExpertsWaveBytes = int64_t{128} << 20;

struct ExpertsArgs {
  float* x;  // [num_tokens, hidden], added to in place
  int64_t num_tokens;
  int64_t hidden;
  NormScale norm;            // as mlp's
  const uint32_t* router;    // pack_columns of [num_experts, hidden]
  const float* router_bias;  // [num_experts], padded with zeros to whole panels; or null
  int64_t num_experts;
  int64_t num_used;  // experts a token
  bool normalised;   // the weights of a token's experts sum to one; else they are shares of all experts'
  // Each expert's projections, as mlp's.
  const uint32_t* const* gate_up;
  const uint32_t* const* down;
  const float* gate_up_bias;  // [num_experts, ceil(feed_forward / 32), 64], in the panels' order; or null
  const float* down_bias;     // [num_experts, whole panels of hidden]; or null
  Element lane;
  int64_t feed_forward;
  Activation activation;
};

// A row's experts in ascending order, those of the largest logits, of equal ones the first, and their weights
// by the softmax. A NaN among the logits makes all weights NaN.
void choose_experts(const float* logits, int64_t num_experts, int64_t num_used, bool normalised,
                    int64_t* chosen, float* weight);

// A row's bits depend on the row, the weights and the level alone: not on num_tokens, the other rows or
// num_threads. Throws std::invalid_argument for sizes that are not positive or do not fit together, and for
// null pointers.
void experts(const ExpertsArgs& args, Isa isa, int num_threads);

}  // namespace psyfast
