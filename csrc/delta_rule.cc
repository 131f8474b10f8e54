#include "delta_rule.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.h"
#include "delta_walk.h"
#include "levels.h"
#include "linear.h"

namespace psyfast {
namespace {

// The normalised rows of a block should stay in the second-level cache beside a stretch of the weights.
constexpr int64_t kBlockBytes = 192 * 1024;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("delta_rule: " + what); }

std::string text(int64_t number) { return std::to_string(number); }

int64_t panels_of(int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }

void check_sizes(const DeltaRuleArgs& args, int num_threads) {
  if (args.num_tokens < 0 || args.hidden < 1 || args.key_dim < 1 || args.value_dim < 1) {
    refuse(text(args.num_tokens) + " tokens of " + text(args.hidden) + ", heads of " + text(args.key_dim) +
           " and " + text(args.value_dim) + ", expected positive sizes");
  }
  if (args.num_key_heads < 1 || args.num_value_heads < 1 || args.num_value_heads % args.num_key_heads != 0) {
    refuse(text(args.num_value_heads) + " value heads do not share " + text(args.num_key_heads) +
           " key heads evenly; check the model's configuration");
  }
  if (args.conv_width < 1 || args.conv_width > kMaxConvWidth) {
    refuse("the convolution has " + text(args.conv_width) + " taps, expected 1 to " + text(kMaxConvWidth));
  }
  if (num_threads < 1) refuse("num_threads is " + text(num_threads) + ", expected 1 or more");
}

void check_pointers(const DeltaRuleArgs& args) {
  if (args.panels == nullptr || args.decay_write_panels == nullptr || args.filter == nullptr) {
    refuse("packed weights or the filter are null, expected memory of each");
  }
  if (args.log_rate == nullptr || args.time_bias == nullptr || args.head_norm.scale == nullptr) {
    refuse("log_rate, time_bias or the heads' norm are null, expected memory of each");
  }
  if (args.num_segments > 0 &&
      (args.qo_indptr == nullptr || args.start == nullptr || args.parent_row == nullptr)) {
    refuse("the segments' tables are null, expected memory of each");
  }
  if (args.num_tokens > 0 && (args.x == nullptr || args.o == nullptr))
    refuse("x or o is null, expected memory of both");
}

DeltaSegments segments_of(const DeltaRuleArgs& args) {
  return DeltaSegments(args.num_segments, args.qo_indptr, args.start, args.parent_row, args.num_tokens);
}

// out = norm(x) Wᵀ of all tokens.
void project_all(const DeltaRuleArgs& args, const uint32_t* panels, int64_t num_panels,
                 const DeltaKernels& kernels, int num_threads, float* out) {
  const ProjectTask task = {
      args.lane == Element::kBf16,         args.x, args.hidden, args.norm, panels, num_panels,
      inner_steps(args.hidden, args.lane), out};
  const int64_t row_stride = operand_stride(row_form(args.lane, kernels.bf16_rows), args.hidden);
  const RowBlocks blocks =
      split_rows(args.num_tokens, fitting_rows(row_stride * 4, kBlockBytes), num_threads);
#pragma omp parallel num_threads(team_of(blocks.count, num_threads))
  {
    const Buffer<uint32_t> rows(blocks.rows * row_stride);
    const Buffer<float> product(blocks.rows * kPanelColumns);
    const ProjectScratch scratch = {rows.data, row_stride, product.data};
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks.count; ++i) {
      const int64_t first = i * blocks.rows;
      kernels.project(task, first, std::min(args.num_tokens, first + blocks.rows), scratch);
    }
  }
}

double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

// a and b in place: log decay and write strength.
void to_decay_and_write(const DeltaRuleArgs& args, float* rows, int64_t stride, int num_threads) {
  const int64_t H = args.num_value_heads;
  std::vector<double> rate(static_cast<size_t>(H));
  for (int64_t h = 0; h < H; ++h)
    rate[static_cast<size_t>(h)] = std::exp(static_cast<double>(args.log_rate[h]));
#pragma omp parallel for schedule(static) num_threads(team_of(args.num_tokens, num_threads))
  for (int64_t token = 0; token < args.num_tokens; ++token) {
    float* a = rows + token * stride;
    for (int64_t h = 0; h < H; ++h) {
      const double x = static_cast<double>(a[h]) + static_cast<double>(args.time_bias[h]);
      a[h] = static_cast<float>(-rate[static_cast<size_t>(h)] * softplus(x));
      a[H + h] = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(a[H + h]))));
    }
  }
}

DeltaHead head_of(const DeltaRuleArgs& args) {
  DeltaHead head = {};
  head.bf16 = args.lane == Element::kBf16;
  head.key_dim = args.key_dim;
  head.value_dim = args.value_dim;
  head.num_values = args.num_value_heads / args.num_key_heads;
  head.conv_width = args.conv_width;
  head.k_panels = panels_of(args.key_dim);
  head.v_panels = panels_of(args.value_dim);
  head.columns = (2 * head.k_panels + head.num_values * head.v_panels) * kPanelColumns;
  head.head_norm = args.head_norm;
  head.o_stride = args.num_value_heads * args.value_dim;
  return head;
}

}  // namespace

void delta_rule(const DeltaRuleArgs& args, Isa isa, int num_threads) {
  const DeltaKernels& kernels = PSY_TABLE_OF(isa, kDelta);
  check_sizes(args, num_threads);
  check_pointers(args);
  const DeltaSegments segments = segments_of(args);
  if (args.num_tokens == 0) return;

  DeltaHead shared = head_of(args);
  const int64_t heads_panels = panels_of(2 * args.num_value_heads);
  shared.heads_stride = heads_panels * kPanelColumns;
  const Buffer<float> decay_write(args.num_tokens * shared.heads_stride);
  project_all(args, args.decay_write_panels, heads_panels, kernels, num_threads, decay_write.data);
  to_decay_and_write(args, decay_write.data, shared.heads_stride, num_threads);

  // As many heads at a time as there are threads: channels of all would take more memory than the residual.
  const int64_t group = std::min<int64_t>(args.num_key_heads, num_threads);
  const int64_t head_panels = shared.columns / kPanelColumns;
  const int64_t head_words = head_panels * inner_steps(args.hidden, args.lane) * kPanelColumns;
  const Buffer<float> channels(args.num_tokens * group * shared.columns);
  const int64_t element_bytes = shared.bf16 ? 2 : 4;
  const int64_t num_roots = static_cast<int64_t>(segments.roots.size());
  for (int64_t first = 0; first < args.num_key_heads; first += group) {
    const int64_t heads = std::min(group, args.num_key_heads - first);
    project_all(args, args.panels + first * head_words, heads * head_panels, kernels, num_threads,
                channels.data);
#pragma omp parallel num_threads(team_of(heads* num_roots, num_threads))
    {
      DeltaWalk walk(shared, segments);
#pragma omp for schedule(dynamic, 1)
      for (int64_t task = 0; task < heads * num_roots; ++task) {
        DeltaHead head = shared;
        const int64_t key_head = first + task % heads;
        const int64_t value_head = key_head * head.num_values;
        head.channels = channels.data + task % heads * head.columns;
        head.channel_stride = heads * head.columns;
        head.filter = args.filter + key_head * args.conv_width * head.columns;
        head.log_decay = decay_write.data + value_head;
        head.write = decay_write.data + args.num_value_heads + value_head;
        head.o = static_cast<char*>(args.o) + value_head * args.value_dim * element_bytes;
        walk.run(head, segments.roots[static_cast<size_t>(task / heads)], kernels);
      }
    }
  }
}

}  // namespace psyfast
