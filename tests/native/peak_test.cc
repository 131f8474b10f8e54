// The products that the peak measurement times, without Python, for sanitizers: small whole numbers, whose
// products are exact in both lanes, on every level. Exits with 1 and says what differed.
#include "peak.h"

#include <cstdint>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace psyfast {
namespace {

typedef std::vector<float> Floats;

Floats draw(int64_t count, std::mt19937& random) {
  std::uniform_int_distribution<int> number(-3, 3);
  Floats values;
  for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(number(random)));
  return values;
}

struct Operands {
  Operands(int64_t num_rows, int64_t num_columns, int64_t inner, Element lane, std::mt19937& random)
      : x(draw(num_rows * inner, random)),
        weights(draw(num_columns * inner, random)),
        panels(static_cast<size_t>(packed_words(num_columns, inner, lane))),
        out(static_cast<size_t>(num_rows * num_columns)),
        args{x.data(), num_rows, inner, panels.data(), num_columns, lane, out.data()} {
    pack_columns(weights.data(), Element::kFp32, num_columns, inner, nullptr, num_columns, lane,
                 panels.data(), 1);
  }

  float product(int64_t row, int64_t column) const {
    float sum = 0.0f;
    for (int64_t k = 0; k < args.inner; ++k) {
      sum += x[size_t(row * args.inner + k)] * weights[size_t(column * args.inner + k)];
    }
    return sum;
  }

  void expect(int64_t row, int64_t column, float got, float expected) const {
    if (got == expected) return;
    throw std::runtime_error("row " + std::to_string(row) + ", column " + std::to_string(column) + " is " +
                             std::to_string(got) + ", expected " + std::to_string(expected));
  }

  Floats x, weights;
  std::vector<uint32_t> panels;
  Floats out;
  PeakArgs args;
};

void check_tile(int64_t inner, Element lane, int num_threads, Isa isa, std::mt19937& random) {
  constexpr int64_t kLaps = 3;
  const Operands operands(kTileRows, kPanelColumns, inner, lane, random);
  time_tile(operands.args, kLaps, {0.0, num_threads}, isa);
  for (int64_t row = 0; row < kTileRows; ++row) {
    for (int64_t c = 0; c < kPanelColumns; ++c) {
      const float expected = c < tile_columns(isa) ? float(kLaps) * operands.product(row, c) : 0.0f;
      operands.expect(row, c, operands.out[size_t(row * kPanelColumns + c)], expected);
    }
  }
}

void check_product(int64_t num_rows, int64_t num_columns, int64_t inner, Element lane, int num_threads,
                   Isa isa, std::mt19937& random) {
  const Operands operands(num_rows, num_columns, inner, lane, random);
  time_product(operands.args, {0.0, num_threads}, isa);
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t c = 0; c < num_columns; ++c) {
      const int64_t place = (c / kPanelColumns * num_rows + row) * kPanelColumns + c % kPanelColumns;
      operands.expect(row, c, operands.out[size_t(place)], operands.product(row, c));
    }
  }
}

void check_refusals(Isa isa, std::mt19937& random) {
  const Operands operands(kTileRows, kPanelColumns, 4, Element::kFp32, random);
  PeakArgs narrow = operands.args;
  narrow.num_columns = 63;
  PeakArgs empty = operands.args;
  empty.x = nullptr;
  for (const PeakArgs& args : {narrow, empty}) {
    try {
      time_product(args, {0.0, 1}, isa);
    } catch (const std::invalid_argument&) {
      continue;
    }
    throw std::runtime_error("a product of " + std::to_string(args.num_columns) + " columns was not refused");
  }
}

}  // namespace
}  // namespace psyfast

int main() {
  using namespace psyfast;
  const int64_t shapes[][3] = {{1, 64, 1}, {6, 128, 2}, {13, 64, 33}, {200, 64, 7}, {31, 192, 300}};
  for (Isa isa : available_isas()) {
    std::mt19937 random(12345);
    try {
      for (Element lane : {Element::kFp32, Element::kBf16}) {
        for (int num_threads : {1, 3}) {
          for (int64_t inner : {1, 64, 129}) check_tile(inner, lane, num_threads, isa, random);
          for (const auto& s : shapes) check_product(s[0], s[1], s[2], lane, num_threads, isa, random);
        }
      }
      check_refusals(isa, random);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", isa_name(isa), error.what());
      return 1;
    }
    std::printf("%s: ok\n", isa_name(isa));
  }
  return 0;
}
