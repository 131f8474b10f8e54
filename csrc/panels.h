// Shapes that every product shares. Plain data only: read by translation units built with different -m flags,
// so this header holds no inline function and includes no C++ standard header.
#pragma once

#include <stdint.h>

namespace psyfast {

// Weights, keys and values are packed in panels of 64 columns, the inner dimension outermost.
constexpr int64_t kPanelColumns = 64;
constexpr int64_t kTileRows = 6;
constexpr int64_t kMaxLanes = 16;
// Words between rows beyond their length: a stride of a power of two maps all rows to the same cache sets.
constexpr int64_t kRowPadding = 16;

// How a level wants the rows of the bf16 lane: values rounded to bf16 and widened again, or packed pairs.
enum class Bf16Rows { kWidened, kPairs };

}  // namespace psyfast
