#include "experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.h"
#include "linear.h"

namespace psyfast {
namespace {

// As mlp's: a block's rows stay in the second-level cache.
constexpr int64_t kBlockBytes = 384 * 1024;
[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("experts: " + what); }

void check(const ExpertsArgs& args, int num_threads) {
  if (args.num_tokens < 0 || args.hidden < 1 || args.feed_forward < 1) {
    refuse("x is [" + std::to_string(args.num_tokens) + ", " + std::to_string(args.hidden) +
           "] and the feed-forward width " + std::to_string(args.feed_forward) + ", expected positive sizes");
  }
  if (args.num_used < 1 || args.num_used > args.num_experts) {
    refuse(std::to_string(args.num_used) + " experts a token of " + std::to_string(args.num_experts) +
           ", expected at least one, and no more than there are");
  }
  if (num_threads < 1) refuse("num_threads is " + std::to_string(num_threads) + ", expected 1 or more");
  if (args.router == nullptr || args.gate_up == nullptr || args.down == nullptr) {
    refuse("packed weights are null, expected memory of each");
  }
  for (int64_t e = 0; e < args.num_experts; ++e) {
    if (args.gate_up[e] == nullptr || args.down[e] == nullptr) {
      refuse("packed weights of expert " + std::to_string(e) + " are null, expected memory of each");
    }
  }
  if (args.num_tokens > 0 && args.x == nullptr) refuse("x is null, expected memory of it");
}

int64_t whole_panels(int64_t columns) {
  return (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
}

// Which experts a wave's tokens meet. An entry is a token under one of its experts; entries stand expert
// after expert, in order of tokens.
struct Routes {
  explicit Routes(const ExpertsArgs& args, int64_t num_tokens)
      : chosen(static_cast<size_t>(num_tokens * args.num_used)),
        weight(chosen.size()),
        entry(chosen.size()),
        token(chosen.size()),
        start(static_cast<size_t>(args.num_experts + 1)) {}

  std::vector<int64_t> chosen;  // [tokens, num_used], likewise weight and entry
  std::vector<float> weight;
  std::vector<int64_t> entry;
  std::vector<int64_t> token;  // of each entry
  std::vector<int64_t> start;  // of each expert's entries, and where the last one's end
};

void choose(const ExpertsArgs& args, const LinearKernels& kernels, const float* x, int64_t num_tokens,
            int num_threads, Routes* routes) {
  RouterTask task = {};
  task.bf16 = args.lane == Element::kBf16;
  task.x = x;
  task.hidden = args.hidden;
  task.norm = args.norm;
  task.panels = args.router;
  task.num_steps = inner_steps(args.hidden, args.lane);
  task.bias = args.router_bias;
  task.num_experts = args.num_experts;
  const int64_t row_stride = operand_stride(row_form(args.lane, kernels.bf16_rows), args.hidden);
  const int64_t logit_stride = whole_panels(args.num_experts) + kRowPadding;
  const RowBlocks blocks =
      split_rows(num_tokens, fitting_rows((row_stride + logit_stride) * 4, kBlockBytes), num_threads);
#pragma omp parallel num_threads(team_of(blocks.count, num_threads))
  {
    const Buffer<uint32_t> rows(blocks.rows * row_stride);
    const Buffer<float> product(blocks.rows * kPanelColumns);
    const Buffer<float> logits(blocks.rows * logit_stride);
    const RouterScratch scratch = {rows.data, row_stride, product.data, logits.data, logit_stride};
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks.count; ++i) {
      const int64_t first = i * blocks.rows;
      const int64_t last = std::min(num_tokens, first + blocks.rows);
      kernels.router(task, first, last, scratch);
      for (int64_t t = first; t < last; ++t) {
        choose_experts(logits.data + (t - first) * logit_stride, args.num_experts, args.num_used,
                       args.normalised, routes->chosen.data() + t * args.num_used,
                       routes->weight.data() + t * args.num_used);
      }
    }
  }
}

void sort_by_expert(int64_t num_used, Routes* routes) {
  std::fill(routes->start.begin(), routes->start.end(), 0);
  for (int64_t expert : routes->chosen) ++routes->start[static_cast<size_t>(expert + 1)];
  std::partial_sum(routes->start.begin(), routes->start.end(), routes->start.begin());
  std::vector<int64_t> next(routes->start.begin(), routes->start.end() - 1);
  for (size_t i = 0; i < routes->chosen.size(); ++i) {
    const int64_t entry = next[static_cast<size_t>(routes->chosen[i])]++;
    routes->entry[i] = entry;
    routes->token[static_cast<size_t>(entry)] = static_cast<int64_t>(i) / num_used;
  }
}

struct ExpertBlock {
  int64_t expert, first, last;  // entries
};

// Every expert's entries in blocks of at most max_rows. The split changes no result's bits.
std::vector<ExpertBlock> blocks_of(const Routes& routes, int64_t max_rows) {
  std::vector<ExpertBlock> blocks;
  for (size_t e = 0; e + 1 < routes.start.size(); ++e) {
    const RowBlocks split = split_rows(routes.start[e + 1] - routes.start[e], max_rows, 1);
    for (int64_t i = 0; i < split.count; ++i) {
      const int64_t first = routes.start[e] + i * split.rows;
      blocks.push_back({static_cast<int64_t>(e), first, std::min(routes.start[e + 1], first + split.rows)});
    }
  }
  return blocks;
}

// y, [entries, y_stride]: each entry's expert of its token.
void evaluate(const ExpertsArgs& args, const LinearKernels& kernels, float* x, const Routes& routes, float* y,
              int64_t y_stride, int num_threads) {
  MlpTask common = {};
  common.bf16 = args.lane == Element::kBf16;
  common.x = x;
  common.hidden = args.hidden;
  common.token = routes.token.data();
  common.norm = args.norm;
  common.num_steps = inner_steps(args.hidden, args.lane);
  common.down_steps = inner_steps(args.feed_forward, args.lane);
  common.feed_forward = args.feed_forward;
  common.activation = args.activation;
  const RowForm form = row_form(args.lane, kernels.bf16_rows);
  const int64_t row_stride = operand_stride(form, args.hidden);
  const int64_t gated_stride = operand_stride(form, std::min(args.feed_forward, kFeedForwardBlock));
  const int64_t max_rows = fitting_rows((row_stride + gated_stride) * 4, kBlockBytes);
  const std::vector<ExpertBlock> blocks = blocks_of(routes, max_rows);
  const int64_t count = static_cast<int64_t>(blocks.size());
  const int64_t gate_up_columns = (args.feed_forward + kGatedColumns - 1) / kGatedColumns * kPanelColumns;
#pragma omp parallel num_threads(team_of(count, num_threads))
  {
    const Buffer<uint32_t> rows(max_rows * row_stride);
    const Buffer<uint32_t> gated(max_rows * gated_stride);
    const Buffer<float> product(max_rows * kPanelColumns);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; ++i) {
      const ExpertBlock& block = blocks[static_cast<size_t>(i)];
      MlpTask task = common;
      task.gate_up = args.gate_up[block.expert];
      task.down = args.down[block.expert];
      if (args.gate_up_bias != nullptr)
        task.gate_up_bias = args.gate_up_bias + block.expert * gate_up_columns;
      if (args.down_bias != nullptr)
        task.down_bias = args.down_bias + block.expert * whole_panels(args.hidden);
      kernels.mlp(task, block.first, block.last,
                  {rows.data, row_stride, gated.data, gated_stride, product.data, y + block.first * y_stride,
                   y_stride});
    }
  }
}

// x += Σ weight · y over a token's experts, in ascending order of experts, summed from zero.
void add_weighted(const ExpertsArgs& args, float* x, int64_t num_tokens, const Routes& routes, const float* y,
                  int64_t y_stride, int num_threads) {
  const int64_t num_used = args.num_used;
#pragma omp parallel for schedule(static) num_threads(team_of(num_tokens, num_threads))
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t c = 0; c < args.hidden; c += kPanelColumns) {
      const int64_t width = std::min(kPanelColumns, args.hidden - c);
      float sums[kPanelColumns] = {};
      for (int64_t j = t * num_used; j < (t + 1) * num_used; ++j) {
        const float weight = routes.weight[static_cast<size_t>(j)];
        const float* row = y + routes.entry[static_cast<size_t>(j)] * y_stride + c;
        for (int64_t d = 0; d < width; ++d) sums[d] += weight * row[d];
      }
      for (int64_t d = 0; d < width; ++d) x[t * args.hidden + c + d] += sums[d];
    }
  }
}

}  // namespace

void choose_experts(const float* logits, int64_t num_experts, int64_t num_used, bool normalised,
                    int64_t* chosen, float* weight) {
  float greatest = logits[0];
  bool has_nan = false;
  for (int64_t e = 0; e < num_experts; ++e) {
    greatest = std::max(greatest, logits[e]);
    has_nan = has_nan || std::isnan(logits[e]);
  }
  std::iota(chosen, chosen + num_used, 0);
  if (has_nan) {
    std::fill(weight, weight + num_used, std::nanf(""));
    return;
  }
  // The largest so far stay sorted by falling logits, of equal ones the first before the others.
  for (int64_t e = 0, count = 0; e < num_experts; ++e) {
    if (count == num_used && !(logits[e] > logits[chosen[count - 1]])) continue;
    int64_t place = count < num_used ? count++ : num_used - 1;
    for (; place > 0 && logits[e] > logits[chosen[place - 1]]; --place) chosen[place] = chosen[place - 1];
    chosen[place] = e;
  }
  std::sort(chosen, chosen + num_used);
  const auto exponential = [&](int64_t e) {
    return std::exp(static_cast<double>(logits[e]) - static_cast<double>(greatest));
  };
  double sum = 0.0;
  if (normalised) {
    for (int64_t j = 0; j < num_used; ++j) sum += exponential(chosen[j]);
  } else {
    for (int64_t e = 0; e < num_experts; ++e) sum += exponential(e);
  }
  for (int64_t j = 0; j < num_used; ++j) weight[j] = static_cast<float>(exponential(chosen[j]) / sum);
}

void experts(const ExpertsArgs& args, Isa isa, int num_threads) {
  const LinearKernels& kernels = linear_kernels(isa);
  check(args, num_threads);
  const int64_t y_stride = whole_panels(args.hidden) + kRowPadding;
  const int64_t a_token = args.num_used * y_stride * 4;
  const int64_t wave = std::min(args.num_tokens, std::max(kTileRows, kExpertsWaveBytes / a_token));
  const Buffer<float> y(wave * args.num_used * y_stride);
  for (int64_t first = 0; first < args.num_tokens; first += wave) {
    const int64_t count = std::min(wave, args.num_tokens - first);
    float* x = args.x + first * args.hidden;
    Routes routes(args, count);
    choose(args, kernels, x, count, num_threads, &routes);
    sort_by_expert(args.num_used, &routes);
    evaluate(args, kernels, x, routes, y.data, y_stride, num_threads);
    add_weighted(args, x, count, routes, y.data, y_stride, num_threads);
  }
}

}  // namespace psyfast
