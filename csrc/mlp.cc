#include "mlp.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "buffer.h"
#include "linear.h"

namespace psyfast {
namespace {

// A block's rows of both products should stay in the second-level cache beside a stretch of the weights.
constexpr int64_t kBlockBytes = 384 * 1024;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("mlp: " + what); }

void check(const MlpArgs& args, int num_threads) {
  if (args.num_tokens < 0 || args.hidden < 1 || args.feed_forward < 1) {
    refuse("x is [" + std::to_string(args.num_tokens) + ", " + std::to_string(args.hidden) +
           "] and the feed-forward width " + std::to_string(args.feed_forward) + ", expected positive sizes");
  }
  if (num_threads < 1) refuse("num_threads is " + std::to_string(num_threads) + ", expected 1 or more");
  if (args.gate_up == nullptr || args.down == nullptr) {
    refuse("packed weights are null, expected memory of each");
  }
  if (args.num_tokens > 0 && args.x == nullptr) refuse("x is null, expected memory of it");
}

}  // namespace

Activation parse_activation(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  if (name == "clamped_swiglu") return Activation::kClampedSwiglu;
  refuse("activation is '" + name + "', expected silu, gelu, gelu_pytorch_tanh or clamped_swiglu");
}

void mlp(const MlpArgs& args, Isa isa, int num_threads) {
  const LinearKernels& kernels = linear_kernels(isa);
  check(args, num_threads);
  MlpTask task = {};
  task.bf16 = args.lane == Element::kBf16;
  task.x = args.x;
  task.hidden = args.hidden;
  task.norm = args.norm;
  task.gate_up = args.gate_up;
  task.num_steps = inner_steps(args.hidden, args.lane);
  task.down = args.down;
  task.down_steps = inner_steps(args.feed_forward, args.lane);
  task.feed_forward = args.feed_forward;
  task.activation = args.activation;
  task.post_norm = args.post_norm;

  const RowForm form = row_form(args.lane, kernels.bf16_rows);
  const int64_t row_stride = operand_stride(form, args.hidden);
  const int64_t gated_stride = operand_stride(form, std::min(args.feed_forward, kFeedForwardBlock));
  const int64_t y_stride = post_norm_stride(args.post_norm, args.hidden);
  const int64_t row_bytes = (row_stride + gated_stride + y_stride) * 4;
  const RowBlocks blocks = split_rows(args.num_tokens, fitting_rows(row_bytes, kBlockBytes), num_threads);
#pragma omp parallel num_threads(team_of(blocks.count, num_threads))
  {
    const Buffer<uint32_t> rows(blocks.rows * row_stride);
    const Buffer<uint32_t> gated(blocks.rows * gated_stride);
    const Buffer<float> product(blocks.rows * kPanelColumns);
    const Buffer<float> y(blocks.rows * y_stride);
    const MlpScratch scratch = {rows.data,    row_stride, gated.data, gated_stride,
                                product.data, y.data,     y_stride};
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks.count; ++i) {
      const int64_t first = i * blocks.rows;
      kernels.mlp(task, first, std::min(args.num_tokens, first + blocks.rows), scratch);
    }
  }
}

}  // namespace psyfast
