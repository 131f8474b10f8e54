// What one ISA level's kernels of the peak measurement take. Plain data only: this header is read by
// translation units built with different -m flags, so it may hold no inline function and include no C++
// standard header.
#pragma once

#include <stdint.h>

#include "panels.h"

namespace psyfast {

struct PeakOperands {
  bool bf16;
  const void* rows;  // [num_rows, row_stride words] in the lane's form
  int64_t row_stride;
  int64_t num_rows;
  const uint32_t* panels;  // [num_panels, num_steps, 64]
  int64_t num_steps;
  int64_t num_panels;
};

struct PeakKernels {
  Bf16Rows bf16_rows;
  int64_t tile_columns;  // of a tile of kTileRows rows
  // out = laps · rows · panel for one tile: its accumulators stay in registers over all laps. out:
  // [kTileRows, 64], its first tile_columns columns.
  void (*tile_laps)(const PeakOperands& operands, int64_t laps, float* out);
  // out[panel][row] = rows · panel, as the operators multiply; out: [num_panels, out_stride].
  void (*product)(const PeakOperands& operands, float* out, int64_t out_stride);
};

namespace portable {
extern const PeakKernels kPeak;
}
namespace avx2 {
extern const PeakKernels kPeak;
}
namespace avx512 {
extern const PeakKernels kPeak;
}
namespace avx512_bf16 {
extern const PeakKernels kPeak;
}

}  // namespace psyfast
