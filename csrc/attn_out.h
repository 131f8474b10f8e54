// attn_out: a gate of its input, output projection, bias, post-norm and the residual's sum.
#pragma once

#include <cstdint>

#include "isa.h"
#include "linear_kernels.h"
#include "pack.h"

namespace psyfast {

struct AttnOutArgs {
  const void* o;  // [num_tokens, width], fp32 or bf16 as the lane
  int64_t num_tokens;
  int64_t width;           // query heads times their dimension
  const uint32_t* panels;  // pack_columns of [hidden, width]
  Element lane;
  const float* bias;    // [hidden], zeros up to whole panels; or null
  NormScale post_norm;  // scale [hidden] and kVectorPadding more, zeros there; or null
  float* x;             // [num_tokens, hidden], added to in place
  int64_t hidden;
  // panels: pack_columns of [width, hidden], or null; num_steps is filled in
  OutputGate gate = {nullptr, 0, {nullptr, 0.0}, GateActivation::kSigmoid};
};

// A row's bits depend on the row, the weights and the level alone: not on num_tokens, the other rows or
// num_threads. Throws std::invalid_argument for sizes that are not positive and for null pointers.
void attn_out(const AttnOutArgs& args, Isa isa, int num_threads);

}  // namespace psyfast
