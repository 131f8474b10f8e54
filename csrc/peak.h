// How fast this machine multiplies matrices: a tile out of the first-level cache, and a whole product as the
// operators compute it. Each thread keeps its own clock, a repeat takes as long as its slowest thread.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "pack.h"
#include "peak_kernels.h"

namespace psyfast {

// Rows times packed weights.
struct PeakArgs {
  const float* x;  // [num_rows, inner]
  int64_t num_rows;
  int64_t inner;
  const uint32_t* panels;  // pack_columns of [num_columns, inner]
  int64_t num_columns;     // a multiple of 64
  Element lane;
  float* out;
};

// Repeats go on until `seconds` have passed by the clock of the first thread, and there are two at least.
struct PeakBudget {
  double seconds;
  int num_threads;
};

struct PeakTimes {
  double flop;                  // of one repeat, of all threads together
  std::vector<double> seconds;  // of each repeat
};

// Every thread computes the same tile, `laps` times a repeat; num_rows must be kTileRows and num_columns 64.
// out: [kTileRows, 64], the first thread's tile (tile_columns(isa) columns of it, the rest zeros).
PeakTimes time_tile(const PeakArgs& args, int64_t laps, const PeakBudget& budget, Isa isa);

// Threads share the rows. out: [num_columns / 64, num_rows, 64].
PeakTimes time_product(const PeakArgs& args, const PeakBudget& budget, Isa isa);

// Both throw std::invalid_argument for sizes, pointers and budgets that do not fit.

int64_t tile_columns(Isa isa);

// Whether the bf16 lane multiplies by an instruction of its own; elsewhere by the fp32 lane's multiply-add.
bool has_bf16_dots(Isa isa);

}  // namespace psyfast
