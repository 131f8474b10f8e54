#include "linear_nll.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.h"
#include "levels.h"
#include "norm_rows.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace psyfast {
namespace {

// Rows are taken in waves, so that normalised rows and block partials stay small whatever num_rows is.
constexpr int64_t kWaveRows = 2048;
// A row block and the head's panel should both stay in the second-level cache.
constexpr int64_t kRowBlockBytes = 192 * 1024;
constexpr int64_t kMaxBlockRows = 192;

int thread_id() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("linear_nll: " + what); }

void check_pointers(const LinearNllArgs& args) {
  if (args.norm_weight == nullptr || args.panels == nullptr) refuse("norm weight or packed head is null");
  if (args.num_rows == 0) return;
  if (args.x == nullptr || args.target == nullptr)
    refuse("hidden rows or targets are null, expected memory of both");
  if (args.nll == nullptr || args.argmax == nullptr || args.rank == nullptr || args.entropy == nullptr) {
    refuse("an output is null, expected memory of nll, argmax, rank and entropy");
  }
  if (args.num_options > 0 && (args.option_id == nullptr || args.option_nll == nullptr)) {
    refuse("option ids or option outputs are null, expected memory of both as there are option columns");
  }
}

void check_sizes(const LinearNllArgs& args, int num_threads) {
  if (args.num_rows < 0) refuse("got " + std::to_string(args.num_rows) + " rows, expected 0 or more");
  if (args.hidden <= 0 || args.vocab <= 0) {
    refuse("the head is [" + std::to_string(args.vocab) + ", " + std::to_string(args.hidden) +
           "], expected both sizes to be positive");
  }
  if (args.num_options < 0 || args.num_options > kMaxOptions) {
    refuse("got " + std::to_string(args.num_options) + " option columns, expected 0 to " +
           std::to_string(kMaxOptions) + "; split them over several calls");
  }
  if (!(args.soft_cap >= 0.0f) || !std::isfinite(args.soft_cap) || !std::isfinite(args.scale)) {
    refuse(
        "scale or soft cap is not usable, expected a finite scale and a soft cap that is positive or absent");
  }
  if (num_threads < 1) refuse("num_threads is " + std::to_string(num_threads) + ", expected 1 or more");
}

void check_ids(const LinearNllArgs& args) {
  const std::string vocabulary = ", but the head has " + std::to_string(args.vocab) +
                                 " tokens; expected 0 to " + std::to_string(args.vocab - 1);
  for (int64_t row = 0; row < args.num_rows; ++row) {
    const int64_t id = args.target[row];
    if (id < 0 || id >= args.vocab) {
      refuse("the target of row " + std::to_string(row) + " is " + std::to_string(id) + vocabulary);
    }
  }
  for (int64_t i = 0; i < args.num_rows * args.num_options; ++i) {
    const int64_t id = args.option_id[i];
    if (id < -1 || id >= args.vocab) {
      refuse("option " + std::to_string(i % args.num_options) + " of row " +
             std::to_string(i / args.num_options) + " is " + std::to_string(id) + vocabulary +
             ", or -1 for none");
    }
  }
}

// Buffers of a call, enough for one wave.
struct Wave {
  Wave(const LinearNllArgs& args, int64_t rows, int64_t row_stride, int64_t num_blocks, int64_t block_rows,
       int num_threads)
      : values(rows * row_stride),
        partials(rows * num_blocks),
        target_logit(rows),
        option_id(rows * args.num_options),
        option_slot(rows * args.num_options),
        option_count(rows),
        option_logit(rows * args.num_options),
        logits(num_threads * block_rows * kPanelColumns),
        states(num_threads * block_rows),
        scratch(num_threads * args.hidden) {}
  Buffer<uint32_t> values;
  Buffer<BlockPartial> partials;
  Buffer<float> target_logit;
  Buffer<int64_t> option_id;
  Buffer<int32_t> option_slot;
  Buffer<int32_t> option_count;
  Buffer<float> option_logit;
  Buffer<float> logits;     // [threads, block_rows, 64]
  Buffer<RowState> states;  // [threads, block_rows]
  Buffer<float> scratch;    // [threads, hidden]
};

// Ascending ids with the column each came from, so that a kernel meets them in the order of its panels.
void sort_options(const int64_t* ids, int64_t num_options, int64_t* sorted, int32_t* slot, int32_t* count) {
  int32_t kept = 0;
  for (int64_t k = 0; k < num_options; ++k) {
    if (ids[k] < 0) continue;
    int32_t at = kept++;
    for (; at > 0 && sorted[at - 1] > ids[k]; --at) {
      sorted[at] = sorted[at - 1];
      slot[at] = slot[at - 1];
    }
    sorted[at] = ids[k];
    slot[at] = static_cast<int32_t>(k);
  }
  *count = kept;
}

HeadRows rows_of(const LinearNllArgs& args, const Wave& wave, int64_t row_stride, int64_t wave_begin,
                 int64_t begin, int64_t end) {
  const int64_t k = args.num_options;
  return {wave.values.data + begin * row_stride,
          row_stride,
          end - begin,
          args.target + wave_begin + begin,
          wave.target_logit.data + begin,
          k,
          wave.option_id.data + begin * k,
          wave.option_slot.data + begin * k,
          wave.option_count.data + begin,
          wave.option_logit.data + begin * k};
}

// Merges the blocks' partials in block order, in double, and writes the row's results.
void merge_row(const LinearNllArgs& args, const BlockPartial* partial, int64_t num_blocks, float target_logit,
               const float* option_logit, int64_t row) {
  double max = -std::numeric_limits<double>::infinity();
  int64_t argmax = -1;
  int64_t rank = 0;
  for (int64_t b = 0; b < num_blocks; ++b) {
    if (static_cast<double>(partial[b].max) > max) {
      max = static_cast<double>(partial[b].max);
      argmax = partial[b].argmax;
    }
    rank += partial[b].rank;
  }
  double sum = 0.0;
  double weighted = 0.0;
  for (int64_t b = 0; b < num_blocks; ++b) {
    if (partial[b].sum == 0.0) continue;  // all −inf; a NaN is not equal to 0 and goes on
    const double difference = static_cast<double>(partial[b].max) - max;
    const double factor = std::exp(difference);
    sum += partial[b].sum * factor;
    // A block too far below adds nothing, and difference times 0 may be NaN.
    if (factor != 0.0) weighted += (partial[b].weighted + difference * partial[b].sum) * factor;
  }
  const double log_sum = std::log(sum);
  const bool usable = std::isfinite(log_sum) && std::isfinite(max);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  args.nll[row] = static_cast<float>(usable ? log_sum + (max - static_cast<double>(target_logit)) : nan);
  args.entropy[row] = static_cast<float>(usable ? std::max(0.0, log_sum - weighted / sum) : nan);
  args.argmax[row] = usable ? argmax : -1;
  args.rank[row] = usable ? rank : -1;
  for (int64_t k = 0; k < args.num_options; ++k) {
    const bool present = usable && args.option_id[row * args.num_options + k] >= 0;
    const double nll = present ? log_sum + (max - static_cast<double>(option_logit[k])) : nan;
    args.option_nll[row * args.num_options + k] = static_cast<float>(nll);
  }
}

}  // namespace

const LinearNllKernels& linear_nll_kernels(Isa isa) { return PSY_TABLE_OF(isa, kLinearNll); }

void linear_nll(const LinearNllArgs& args, Isa isa, int num_threads) {
  const LinearNllKernels& kernels = linear_nll_kernels(isa);
  check_sizes(args, num_threads);
  check_pointers(args);
  check_ids(args);
  if (args.num_rows == 0) return;

  const RowForm form = row_form(args.lane, kernels.bf16_rows);
  const int64_t row_stride = row_words(form, args.hidden) + kRowPadding;
  const int64_t fitting = std::max<int64_t>(1, kRowBlockBytes / (row_stride * 4) / kTileRows) * kTileRows;
  const int64_t wave_rows = std::min(kWaveRows, args.num_rows);
  const int64_t block_rows = std::min({fitting, kMaxBlockRows, wave_rows});
  const int64_t num_panels = (args.vocab + kPanelColumns - 1) / kPanelColumns;
  const int64_t num_blocks = (num_panels + kPanelsPerBlock - 1) / kPanelsPerBlock;
  const int64_t num_steps = inner_steps(args.hidden, args.lane);
  const HeadPanels head = {args.panels, args.vocab,   num_steps, args.lane == Element::kBf16,
                           args.scale,  args.soft_cap};
  const NormWeights norm = {args.norm_weight, args.hidden, args.eps, args.unit_offset};
  const Wave wave(args, wave_rows, row_stride, num_blocks, block_rows, num_threads);

  for (int64_t begin = 0; begin < args.num_rows; begin += wave_rows) {
    const int64_t rows = std::min(wave_rows, args.num_rows - begin);
    const int64_t row_blocks = (rows + block_rows - 1) / block_rows;
#pragma omp parallel num_threads(num_threads)
    {
      const int64_t thread = thread_id();
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; ++row) {
        norm_row(args.x + (begin + row) * args.hidden, norm, form, wave.scratch.data + thread * args.hidden,
                 wave.values.data + row * row_stride);
        const int64_t options = row * args.num_options;
        sort_options(args.option_id + begin * args.num_options + options, args.num_options,
                     wave.option_id.data + options, wave.option_slot.data + options,
                     wave.option_count.data + row);
        kernels.target_logits(head, rows_of(args, wave, row_stride, begin, row, row + 1),
                              wave.target_logit.data + row);
      }
      // Row blocks inside: threads that run at the same time share a vocabulary block in the last-level
      // cache.
#pragma omp for schedule(dynamic, 1)
      for (int64_t task = 0; task < num_blocks * row_blocks; ++task) {
        const int64_t block = task / row_blocks;
        const int64_t first = task % row_blocks * block_rows;
        const int64_t last = std::min(rows, first + block_rows);
        kernels.score_block(head, rows_of(args, wave, row_stride, begin, first, last),
                            block * kPanelsPerBlock, std::min(num_panels, (block + 1) * kPanelsPerBlock),
                            wave.logits.data + thread * block_rows * kPanelColumns,
                            wave.states.data + thread * block_rows,
                            wave.partials.data + first * num_blocks + block, num_blocks);
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; ++row) {
        merge_row(args, wave.partials.data + row * num_blocks, num_blocks, wave.target_logit.data[row],
                  wave.option_logit.data + row * args.num_options, begin + row);
      }
    }
  }
}

}  // namespace psyfast
