#include "pack.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "bf16.h"
#include "panels.h"

namespace psyfast {
namespace {

template <Element kSource>
uint32_t fp32_word(const void* row, int64_t index) {
  if constexpr (kSource == Element::kBf16)
    return static_cast<uint32_t>(static_cast<const uint16_t*>(row)[index]) << 16;
  uint32_t bits;
  std::memcpy(&bits, static_cast<const float*>(row) + index, sizeof bits);
  return bits;
}

template <Element kSource>
uint32_t bf16_word(const void* row, int64_t index) {
  if constexpr (kSource == Element::kBf16) return static_cast<const uint16_t*>(row)[index];
  return bf16_from_float(static_cast<const float*>(row)[index]);
}

// Steps [begin, end) of one column into a panel: out + step * 64. `inner` numbers a row; null rows are zeros.
template <Element kSource, Element kLane>
void pack_run(const void* row, int64_t inner, int64_t begin, int64_t end, uint32_t* out) {
  if (row == nullptr) {
    for (int64_t step = begin; step < end; ++step) out[step * kPanelColumns] = 0;
  } else if constexpr (kLane == Element::kFp32) {
    for (int64_t step = begin; step < end; ++step) out[step * kPanelColumns] = fp32_word<kSource>(row, step);
  } else {
    const int64_t whole = std::min(end, inner / 2);
    for (int64_t step = begin; step < whole; ++step) {
      out[step * kPanelColumns] = bf16_word<kSource>(row, 2 * step) | bf16_word<kSource>(row, 2 * step + 1)
                                                                          << 16;
    }
    if (whole < end) out[whole * kPanelColumns] = bf16_word<kSource>(row, 2 * whole);
  }
}

// row_of_column: null where columns are the rows in their order.
template <Element kSource, Element kLane>
void pack_panel(const void* weights, const int64_t* row_of_column, int64_t num_columns, int64_t inner,
                int64_t panel, uint32_t* packed) {
  constexpr int64_t kInnerBlock = 64;  // a few cache lines of each column at a time
  constexpr int64_t kBytes = kSource == Element::kFp32 ? 4 : 2;
  const int64_t num_steps = inner_steps(inner, kLane);
  uint32_t* out = packed + panel * num_steps * kPanelColumns;
  const void* rows[kPanelColumns] = {};
  for (int64_t c = 0; c < std::min(kPanelColumns, num_columns - panel * kPanelColumns); ++c) {
    const int64_t column = panel * kPanelColumns + c;
    const int64_t row = row_of_column == nullptr ? column : row_of_column[column];
    if (row >= 0) rows[c] = static_cast<const char*>(weights) + row * inner * kBytes;
  }
  for (int64_t begin = 0; begin < num_steps; begin += kInnerBlock) {
    const int64_t end = std::min(num_steps, begin + kInnerBlock);
    for (int64_t c = 0; c < kPanelColumns; ++c) pack_run<kSource, kLane>(rows[c], inner, begin, end, out + c);
  }
}

using PackPanel = void (*)(const void*, const int64_t*, int64_t, int64_t, int64_t, uint32_t*);

PackPanel pack_panel_of(Element source, Element lane) {
  constexpr Element kFp32 = Element::kFp32, kBf16 = Element::kBf16;
  if (lane == kFp32) return source == kFp32 ? pack_panel<kFp32, kFp32> : pack_panel<kBf16, kFp32>;
  return source == kFp32 ? pack_panel<kFp32, kBf16> : pack_panel<kBf16, kBf16>;
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
  const PackPanel pack = pack_panel_of(source, lane);
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t panel = 0; panel < panels; ++panel) {
    pack(weights, row_of_column, num_columns, inner, panel, packed);
  }
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
