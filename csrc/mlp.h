// mlp: RMSNorm, gate and up projection, activation, down projection, post-norm and the residual's sum.
#pragma once

#include <cstdint>
#include <string>

#include "isa.h"
#include "linear_kernels.h"
#include "pack.h"

namespace psyfast {

struct MlpArgs {
  float* x;  // [num_tokens, hidden], added to in place
  int64_t num_tokens;
  int64_t hidden;
  NormScale norm;  // scale [hidden] and kVectorPadding more, zeros there; or null
  // pack_columns of 32 columns of the gate and the same 32 of up in turn, the last ones padded with zeros.
  const uint32_t* gate_up;
  const uint32_t* down;  // pack_columns of [hidden, feed_forward]
  Element lane;
  int64_t feed_forward;
  Activation activation;
  NormScale post_norm;  // likewise, or null
};

// Throws std::invalid_argument for a name that is none of silu, gelu, gelu_pytorch_tanh and clamped_swiglu.
Activation parse_activation(const std::string& name);

// A row's bits depend on the row, the weights and the level alone: not on num_tokens, the other rows or
// num_threads. Throws std::invalid_argument for sizes that are not positive and for null pointers.
void mlp(const MlpArgs& args, Isa isa, int num_threads);

}  // namespace psyfast
