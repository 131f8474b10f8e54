// What one ISA level's kernels of attn_in, attn_out, mlp and experts take. Plain data only: this header is
// read by translation units built with different -m flags, so it may hold no inline function and include no
// C++ standard header.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kv_pages.h"
#include "panels.h"

namespace psyfast {

// A panel of the gate and up projection holds these many columns of each: gate first.
constexpr int64_t kGatedColumns = kPanelColumns / 2;
// The feed-forward dimension is taken in blocks, each block's down projection is summed from zero and then
// added: this number is part of what defines a result's bits.
constexpr int64_t kFeedForwardBlock = 2048;
// Vectors of scales and biases, and rows of scratch, are padded to whole groups of this many numbers.
constexpr int64_t kVectorPadding = 2 * kMaxLanes;

// The last one is of the gate and the up projection together; the others' result multiplies the latter.
enum class Activation { kSilu, kGelu, kGeluTanh, kClampedSwiglu };

// RMSNorm: x / sqrt(mean(x²) + eps) · scale. Null scale: no norm.
struct NormScale {
  const float* scale;  // padded with zeros
  double eps;
};

// attn_in for one layer. Heads are those of the queries, then of the keys, then of the values; each is padded
// to whole panels.
struct AttnInTask {
  bool bf16;
  const float* x;  // [num_tokens, hidden]
  int64_t hidden;
  NormScale norm;
  const uint32_t* panels;  // [heads, panels_a_head, num_steps, 64]
  int64_t num_steps;       // words a column: hidden (fp32) or ceil(hidden / 2) (bf16)
  const float* bias;       // [heads, panels_a_head * 64], then kVectorPadding more
  NormScale q_norm;        // of a head; or of all query heads of a row together, [heads, panels_a_head * 64]
  NormScale k_norm;
  bool heads_together;
  const float* cos;  // [positions, num_pairs], likewise sin; not read if num_pairs is 0
  const float* sin;
  int64_t num_pairs;  // dimensions i and i + num_pairs turn together
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t panels_a_head;
  const int64_t* position;  // [num_tokens]
  const int64_t* slot;      // [num_tokens]: page * 64 + slot of the page
  KvPages pages;
  void* q;  // [rows, num_heads, head_dim], fp32 or bf16 as the lane
};

// Rows [first, last) of a list of tokens (null: the tokens themselves), heads [first_head, last_head).
struct AttnInBlock {
  const int64_t* token;
  int64_t first;
  int64_t last;
  int64_t first_head;
  int64_t last_head;
};

// Working memory of a thread, for a block's rows.
struct AttnInScratch {
  uint32_t* rows;      // [rows, row_stride]: the normalised rows
  int64_t row_stride;  // words
  float* product;      // [heads normalised together (or 1), panels_a_head, rows, 64]
  float* inverse;      // [rows]: of the root mean square of heads normalised together
  float* angles;       // [rows, 2, angle_stride]: cos, then sin
  int64_t angle_stride;
  float* head;      // [2, panels_a_head * 64 + kVectorPadding]
  uint32_t* words;  // [rows, word_stride]: one head's keys
  int64_t word_stride;
};

// What an output projection's input is multiplied by: activation(norm(x) Wᵀ). Null panels: nothing.
enum class GateActivation { kSigmoid, kSilu };
struct OutputGate {
  const uint32_t* panels;  // [ceil(width / 64), num_steps, 64]
  int64_t num_steps;
  NormScale norm;
  GateActivation activation;
};

struct AttnOutTask {
  bool bf16;
  const void* o;  // [num_tokens, width], fp32 or bf16 as the lane
  int64_t width;
  const uint32_t* panels;  // [ceil(hidden / 64), num_steps, 64]
  int64_t num_steps;
  const float* bias;    // [hidden], padded with zeros to whole panels; or null
  NormScale post_norm;  // of the product, before it is added to x
  float* x;             // [num_tokens, hidden]
  int64_t hidden;
  OutputGate gate;
};

struct AttnOutScratch {
  uint32_t* rows;      // [rows, row_stride]
  int64_t row_stride;  // words
  uint32_t* x_rows;    // [rows, x_stride]: the normalised rows, where there is a gate
  int64_t x_stride;
  float* product;  // [rows, 64]
  float* y;        // [rows, y_stride], where there is a post-norm
  int64_t y_stride;
};

struct MlpTask {
  bool bf16;
  float* x;  // [num_tokens, hidden]
  int64_t hidden;
  // One expert of several, where not null: row i of the task is x's row token[i], and its result stays in
  // scratch.y, in whole panels, in place of being added to x; there is no post-norm then.
  const int64_t* token;
  const float* gate_up_bias;  // of an expert: [ceil(feed_forward / 32), 64], or null
  const float* down_bias;     // of an expert: [hidden], padded to whole panels; or null
  NormScale norm;
  const uint32_t* gate_up;  // [ceil(feed_forward / 32), num_steps, 64]
  int64_t num_steps;
  const uint32_t* down;  // [ceil(hidden / 64), down_steps, 64]
  int64_t down_steps;
  int64_t feed_forward;
  Activation activation;
  NormScale post_norm;
};

struct MlpScratch {
  uint32_t* rows;      // [rows, row_stride]
  int64_t row_stride;  // words
  uint32_t* gated;     // [rows, gated_stride]: one block of act(gate) · up
  int64_t gated_stride;
  float* product;  // [rows, 64]
  float* y;        // [rows, y_stride], where there is a post-norm, or of an expert
  int64_t y_stride;
};

// What experts are chosen by: norm(x) Wᵀ.
struct RouterTask {
  bool bf16;
  const float* x;  // [num_tokens, hidden]
  int64_t hidden;
  NormScale norm;
  const uint32_t* panels;  // [ceil(experts / 64), num_steps, 64]
  int64_t num_steps;
  const float* bias;  // [num_experts], padded to whole panels; or null
  int64_t num_experts;
};

struct RouterScratch {
  uint32_t* rows;      // [rows, row_stride]
  int64_t row_stride;  // words
  float* product;      // [rows, 64]
  float* logits;       // [rows, logit_stride], in whole panels
  int64_t logit_stride;
};

struct LinearKernels {
  Bf16Rows bf16_rows;
  void (*attn_in)(const AttnInTask& task, const AttnInBlock& block, const AttnInScratch& scratch);
  void (*attn_out)(const AttnOutTask& task, int64_t first, int64_t last, const AttnOutScratch& scratch);
  void (*mlp)(const MlpTask& task, int64_t first, int64_t last, const MlpScratch& scratch);
  void (*router)(const RouterTask& task, int64_t first, int64_t last, const RouterScratch& scratch);
  // An activation as the fp32 or the bf16 lane computes it, for the test of its error bound; count must be a
  // multiple of 2 * kMaxLanes.
  void (*activate)(Activation activation, bool bf16, const float* x, float* out, int64_t count);
};

namespace portable {
extern const LinearKernels kLinear;
}
namespace avx2 {
extern const LinearKernels kLinear;
}
namespace avx512 {
extern const LinearKernels kLinear;
}
namespace avx512_bf16 {
extern const LinearKernels kLinear;
}

}  // namespace psyfast
