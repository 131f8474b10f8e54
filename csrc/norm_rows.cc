#include "norm_rows.h"

#include <cmath>
#include <cstring>

#include "bf16.h"

namespace psyfast {
namespace {

// Eight chains in a fixed order: independent of the compiler's vector width.
double sum_of_squares(const float* x, int64_t count) {
  constexpr int64_t kChains = 8;
  double chains[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains) {
    for (int64_t j = 0; j < kChains; ++j)
      chains[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  }
  for (; i < count; ++i) chains[0] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  double sum = 0.0;
  for (double chain : chains) sum += chain;
  return sum;
}

}  // namespace

RowForm row_form(Element lane, Bf16Rows bf16_rows) {
  if (lane == Element::kFp32) return RowForm::kFp32;
  return bf16_rows == Bf16Rows::kPairs ? RowForm::kBf16Pairs : RowForm::kBf16Widened;
}

int64_t row_words(RowForm form, int64_t hidden) {
  if (form == RowForm::kFp32) return hidden;
  return form == RowForm::kBf16Pairs ? (hidden + 1) / 2 : (hidden + 1) / 2 * 2;
}

void put_operands(const float* y, int64_t count, RowForm form, void* out) {
  if (form == RowForm::kFp32) {
    if (y != out) std::memcpy(out, y, static_cast<size_t>(count) * sizeof(float));
  } else if (form == RowForm::kBf16Widened) {
    float* widened = static_cast<float*>(out);
    for (int64_t d = 0; d < count; ++d) widened[d] = float_from_bf16(bf16_from_float(y[d]));
    if (count % 2 == 1) widened[count] = 0.0f;
  } else {
    uint32_t* pairs = static_cast<uint32_t*>(out);
    for (int64_t d = 0; d + 1 < count; d += 2) {
      pairs[d / 2] = bf16_from_float(y[d]) | static_cast<uint32_t>(bf16_from_float(y[d + 1])) << 16;
    }
    if (count % 2 == 1) pairs[count / 2] = bf16_from_float(y[count - 1]);
  }
}

void norm_row(const float* x, const NormWeights& norm, RowForm form, float* scratch, void* out) {
  const int64_t hidden = norm.hidden;
  const double mean = sum_of_squares(x, hidden) / static_cast<double>(hidden);
  const float inverse = static_cast<float>(1.0 / std::sqrt(mean + norm.eps));
  const float offset = norm.unit_offset ? 1.0f : 0.0f;
  float* y = form == RowForm::kFp32 ? static_cast<float*>(out) : scratch;
  for (int64_t d = 0; d < hidden; ++d) y[d] = (x[d] * inverse) * (norm.weight[d] + offset);
  put_operands(y, hidden, form, out);
}

}  // namespace psyfast
