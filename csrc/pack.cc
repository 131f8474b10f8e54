#include "pack.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "bf16.h"
#include "panels.h"

namespace psyfast {
namespace {

uint32_t fp32_word(const void* weights, Element source, int64_t index) {
  if (source == Element::kBf16)
    return static_cast<uint32_t>(static_cast<const uint16_t*>(weights)[index]) << 16;
  uint32_t bits;
  std::memcpy(&bits, static_cast<const float*>(weights) + index, sizeof bits);
  return bits;
}

uint32_t bf16_word(const void* weights, Element source, int64_t index) {
  if (source == Element::kBf16) return static_cast<const uint16_t*>(weights)[index];
  return bf16_from_float(static_cast<const float*>(weights)[index]);
}

// row_of_column: null where columns are the rows in their order.
void pack_panel(const void* weights, Element source, const int64_t* row_of_column, int64_t num_columns,
                int64_t inner, Element lane, int64_t panel, uint32_t* packed) {
  constexpr int64_t kInnerBlock = 32;  // two cache lines of fp32 of each column at a time
  const int64_t num_steps = inner_steps(inner, lane);
  uint32_t* out = packed + panel * num_steps * kPanelColumns;
  const int64_t first = panel * kPanelColumns;
  const int64_t width = std::min(kPanelColumns, num_columns - first);
  if (width < kPanelColumns || row_of_column != nullptr) std::fill(out, out + num_steps * kPanelColumns, 0u);
  for (int64_t begin = 0; begin < num_steps; begin += kInnerBlock) {
    const int64_t end = std::min(num_steps, begin + kInnerBlock);
    for (int64_t c = 0; c < width; ++c) {
      const int64_t row_idx = row_of_column == nullptr ? first + c : row_of_column[first + c];
      if (row_idx < 0) continue;
      const int64_t row = row_idx * inner;
      for (int64_t step = begin; step < end; ++step) {
        uint32_t word;
        if (lane == Element::kFp32) {
          word = fp32_word(weights, source, row + step);
        } else {
          word = bf16_word(weights, source, row + 2 * step);
          if (2 * step + 1 < inner) word |= bf16_word(weights, source, row + 2 * step + 1) << 16;
        }
        out[step * kPanelColumns + c] = word;
      }
    }
  }
}

}  // namespace

int64_t inner_steps(int64_t inner, Element lane) { return lane == Element::kFp32 ? inner : (inner + 1) / 2; }

int64_t packed_words(int64_t num_columns, int64_t inner, Element lane) {
  const int64_t panels = (num_columns + kPanelColumns - 1) / kPanelColumns;
  return panels * kPanelColumns * inner_steps(inner, lane);
}

void pack_columns(const void* weights, Element source, int64_t num_rows, int64_t inner,
                  const int64_t* row_of_column, int64_t num_columns, Element lane, uint32_t* packed,
                  int num_threads) {
  for (int64_t c = 0; row_of_column != nullptr && c < num_columns; ++c) {
    if (row_of_column[c] < -1 || row_of_column[c] >= num_rows) {
      throw std::invalid_argument("pack_columns: column " + std::to_string(c) + " is row " +
                                  std::to_string(row_of_column[c]) + " of the weights, expected -1 to " +
                                  std::to_string(num_rows - 1));
    }
  }
  if (num_columns <= 0 || inner <= 0) {
    throw std::invalid_argument("pack_columns: weights [" + std::to_string(num_columns) + ", " +
                                std::to_string(inner) + "], expected both sizes to be positive");
  }
  if (weights == nullptr || packed == nullptr) {
    throw std::invalid_argument("pack_columns: weights or packed is null, expected memory of both");
  }
  if (num_threads < 1) {
    throw std::invalid_argument("pack_columns: num_threads is " + std::to_string(num_threads) +
                                ", expected 1 or more");
  }
  const int64_t panels = (num_columns + kPanelColumns - 1) / kPanelColumns;
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t panel = 0; panel < panels; ++panel) {
    pack_panel(weights, source, row_of_column, num_columns, inner, lane, panel, packed);
  }
}

void pack_panels(const void* weights, Element source, int64_t num_columns, int64_t inner, Element lane,
                 uint32_t* packed, int num_threads) {
  pack_columns(weights, source, num_columns, inner, nullptr, num_columns, lane, packed, num_threads);
}

KvPages kv_pages(uint32_t* k, uint32_t* v, int64_t num_pages, int64_t num_kv_heads, int64_t head_dim,
                 Element lane) {
  return {k,
          v,
          num_pages,
          num_kv_heads,
          head_dim,
          inner_steps(head_dim, lane),
          (head_dim + kPanelColumns - 1) / kPanelColumns,
          inner_steps(kPageSlots, lane)};
}

}  // namespace psyfast
