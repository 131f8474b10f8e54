#include "peak.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "buffer.h"
#include "levels.h"
#include "linear.h"
#include "norm_rows.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace psyfast {
namespace {

constexpr size_t kMinRepeats = 2;
constexpr size_t kMaxRepeats = 10000;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("peak: " + what); }

void check(const PeakArgs& args, const PeakBudget& budget) {
  if (args.num_rows < 1 || args.inner < 1 || args.num_columns < 1 || args.num_columns % kPanelColumns != 0) {
    refuse("the product is [" + std::to_string(args.num_rows) + ", " + std::to_string(args.inner) + "] by " +
           std::to_string(args.num_columns) +
           " columns, expected positive sizes, and whole panels of 64 columns");
  }
  if (args.x == nullptr || args.panels == nullptr || args.out == nullptr) {
    refuse("rows, packed weights or out are null, expected memory of each");
  }
  if (budget.num_threads < 1) {
    refuse("num_threads is " + std::to_string(budget.num_threads) + ", expected 1 or more");
  }
  if (!(budget.seconds >= 0.0) || !std::isfinite(budget.seconds)) {
    refuse("the budget is " + std::to_string(budget.seconds) + " seconds, expected 0 or more");
  }
}

const PeakKernels& peak_kernels(Isa isa) { return PSY_TABLE_OF(isa, kPeak); }

int64_t thread_id() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

int64_t team_size() {
#ifdef _OPENMP
  return omp_get_num_threads();
#else
  return 1;
#endif
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What the threads of a measurement share.
class Clock {
 public:
  explicit Clock(const PeakBudget& budget)
      : budget_(budget), taken_(static_cast<size_t>(budget.num_threads)), started_(now()) {
    seconds.reserve(kMaxRepeats);
  }

  // Called by all threads of a team with a share of the work each.
  template <class Work>
  void repeat(const Work& work) {
    bool more = true;
    while (more) {
#pragma omp barrier
      const double start = now();
      work();
      taken_[static_cast<size_t>(thread_id())] = now() - start;
#pragma omp barrier
#pragma omp single
      {
        seconds.push_back(*std::max_element(taken_.begin(), taken_.end()));
        const bool in_time = now() - started_ < budget_.seconds && seconds.size() < kMaxRepeats;
        more_ = in_time || seconds.size() < kMinRepeats;
      }  // all threads wait for it
      more = more_;
    }
  }

  std::vector<double> seconds;

 private:
  PeakBudget budget_;
  std::vector<double> taken_;
  double started_;
  bool more_ = true;
};

// Rows [first, first + num_rows) of x in the form that the level multiplies.
Buffer<uint32_t> operands_of(const PeakArgs& args, RowForm form, int64_t stride, int64_t first,
                             int64_t num_rows) {
  Buffer<uint32_t> rows(num_rows * stride);
  for (int64_t row = 0; row < num_rows; ++row) {
    put_operands(args.x + (first + row) * args.inner, args.inner, form, rows.data + row * stride);
  }
  return rows;
}

}  // namespace

int64_t tile_columns(Isa isa) { return peak_kernels(isa).tile_columns; }

bool has_bf16_dots(Isa isa) { return peak_kernels(isa).bf16_rows == Bf16Rows::kPairs; }

PeakTimes time_tile(const PeakArgs& args, int64_t laps, const PeakBudget& budget, Isa isa) {
  const PeakKernels& kernels = peak_kernels(isa);
  check(args, budget);
  if (args.num_rows != kTileRows || args.num_columns != kPanelColumns) {
    refuse("a tile has " + std::to_string(args.num_rows) + " rows and " + std::to_string(args.num_columns) +
           " columns, expected 6 and 64");
  }
  if (laps < 1) refuse("laps is " + std::to_string(laps) + ", expected 1 or more");
  const RowForm form = row_form(args.lane, kernels.bf16_rows);
  const int64_t stride = operand_stride(form, args.inner);
  const int64_t num_steps = inner_steps(args.inner, args.lane);
  const int64_t num_words = num_steps * kPanelColumns;
  std::fill(args.out, args.out + kTileRows * kPanelColumns, 0.0f);
  PeakTimes times = {};
  Clock clock(budget);
#pragma omp parallel num_threads(budget.num_threads)
  {
    // Copies of its own: every thread out of its own cache.
    const Buffer<uint32_t> rows = operands_of(args, form, stride, 0, kTileRows);
    const Buffer<uint32_t> panel(num_words);
    const Buffer<float> out(kTileRows * kPanelColumns);
    std::memcpy(panel.data, args.panels, static_cast<size_t>(num_words) * 4);
    std::fill(out.data, out.data + kTileRows * kPanelColumns, 0.0f);
    const PeakOperands operands = {
        args.lane == Element::kBf16, rows.data, stride, kTileRows, panel.data, num_steps, 1};
    clock.repeat([&] { kernels.tile_laps(operands, laps, out.data); });
    if (thread_id() == 0) {
      std::copy(out.data, out.data + kTileRows * kPanelColumns, args.out);
      times.flop = 2.0 * double(kTileRows * kernels.tile_columns) * double(args.inner) * double(laps) *
                   double(team_size());
    }
  }
  times.seconds = std::move(clock.seconds);
  return times;
}

PeakTimes time_product(const PeakArgs& args, const PeakBudget& budget, Isa isa) {
  const PeakKernels& kernels = peak_kernels(isa);
  check(args, budget);
  const RowForm form = row_form(args.lane, kernels.bf16_rows);
  const int64_t stride = operand_stride(form, args.inner);
  const RowBlocks blocks = split_rows(args.num_rows, kMaxBlockRows, budget.num_threads);
  const Buffer<uint32_t> rows = operands_of(args, form, stride, 0, args.num_rows);
  PeakOperands operands = {
      args.lane == Element::kBf16,     nullptr, stride, 0, args.panels, inner_steps(args.inner, args.lane),
      args.num_columns / kPanelColumns};
  Clock clock(budget);
#pragma omp parallel num_threads(budget.num_threads) firstprivate(operands)
  {
    clock.repeat([&] {
      for (int64_t i = thread_id(); i < blocks.count; i += team_size()) {
        const int64_t first = i * blocks.rows;
        operands.rows = rows.data + first * stride;
        operands.num_rows = std::min(args.num_rows - first, blocks.rows);
        kernels.product(operands, args.out + first * kPanelColumns, args.num_rows * kPanelColumns);
      }
    });
  }
  return {2.0 * double(args.num_rows) * double(args.num_columns) * double(args.inner),
          std::move(clock.seconds)};
}

}  // namespace psyfast
