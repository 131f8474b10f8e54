#include "attn_out.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "buffer.h"
#include "linear.h"

namespace psyfast {
namespace {

// A block's rows should stay in the second-level cache beside a stretch of the weights.
constexpr int64_t kBlockBytes = 192 * 1024;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("attn_out: " + what); }

void check(const AttnOutArgs& args, int num_threads) {
  if (args.num_tokens < 0 || args.width < 1 || args.hidden < 1) {
    refuse("o is [" + std::to_string(args.num_tokens) + ", " + std::to_string(args.width) +
           "] and the hidden size " + std::to_string(args.hidden) + ", expected positive sizes");
  }
  if (num_threads < 1) refuse("num_threads is " + std::to_string(num_threads) + ", expected 1 or more");
  if (args.panels == nullptr) refuse("packed weights are null, expected memory of them");
  if (args.num_tokens > 0 && (args.o == nullptr || args.x == nullptr)) {
    refuse("o or x is null, expected memory of both");
  }
}

}  // namespace

void attn_out(const AttnOutArgs& args, Isa isa, int num_threads) {
  const LinearKernels& kernels = linear_kernels(isa);
  check(args, num_threads);
  const bool bf16 = args.lane == Element::kBf16;
  AttnOutTask task = {bf16,      args.o,         args.width, args.panels, inner_steps(args.width, args.lane),
                      args.bias, args.post_norm, args.x,     args.hidden, args.gate};
  task.gate.num_steps = inner_steps(args.hidden, args.lane);
  const RowForm form = row_form(args.lane, kernels.bf16_rows);
  const int64_t row_stride = operand_stride(form, args.width);
  const int64_t x_stride = args.gate.panels == nullptr ? 0 : operand_stride(form, args.hidden);
  const int64_t y_stride = post_norm_stride(args.post_norm, args.hidden);
  const RowBlocks blocks = split_rows(
      args.num_tokens, fitting_rows((row_stride + x_stride + y_stride) * 4, kBlockBytes), num_threads);
#pragma omp parallel num_threads(team_of(blocks.count, num_threads))
  {
    const Buffer<uint32_t> rows(blocks.rows * row_stride);
    const Buffer<uint32_t> x_rows(blocks.rows * x_stride);
    const Buffer<float> product(blocks.rows * kPanelColumns);
    const Buffer<float> y(blocks.rows * y_stride);
    const AttnOutScratch scratch = {rows.data,    row_stride, x_rows.data, x_stride,
                                    product.data, y.data,     y_stride};
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks.count; ++i) {
      const int64_t first = i * blocks.rows;
      kernels.attn_out(task, first, std::min(args.num_tokens, first + blocks.rows), scratch);
    }
  }
}

}  // namespace psyfast
