// Naive evaluations in fp64, and what they are held against the operators of rows with.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "bf16.h"
#include "isa.h"
#include "linear_kernels.h"
#include "pack.h"

namespace psyfast {

typedef std::vector<float> Floats;

struct Shape {
  int64_t num_tokens, hidden, num_heads, num_kv_heads, head_dim, feed_forward;
  Element lane;
};

inline Floats draw(int64_t count, double scale, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, static_cast<float>(scale));
  Floats values;
  for (int64_t i = 0; i < count; ++i) values.push_back(normal(random));
  return values;
}

inline Floats padded(const Floats& values, int64_t size) {
  Floats out = values;
  out.resize(static_cast<size_t>(size + kVectorPadding), 0.0f);
  return out;
}

inline double rounded(double value, Element lane) {
  return lane == Element::kBf16 ? double(float_from_bf16(bf16_from_float(float(value)))) : value;
}

// Row-major values as an operator takes them: fp32, or bf16 in the same memory.
inline std::vector<uint32_t> stored(const Floats& values, Element lane) {
  std::vector<uint32_t> words(lane == Element::kFp32 ? values.size() : (values.size() + 1) / 2);
  for (size_t i = 0; i < values.size(); ++i) {
    if (lane == Element::kFp32) {
      std::memcpy(&words[i], &values[i], 4);
    } else {
      const uint16_t half = bf16_from_float(values[i]);
      std::memcpy(reinterpret_cast<char*>(words.data()) + 2 * i, &half, 2);
    }
  }
  return words;
}

inline double value_at(const std::vector<uint32_t>& words, size_t i, Element lane) {
  float value;
  if (lane == Element::kFp32) {
    std::memcpy(&value, &words[i], 4);
  } else {
    uint16_t half;
    std::memcpy(&half, reinterpret_cast<const char*>(words.data()) + 2 * i, 2);
    value = float_from_bf16(half);
  }
  return double(value);
}

inline std::vector<double> normed(const float* x, const Floats& scale, int64_t count, Element lane) {
  double squares = 0.0;
  for (int64_t d = 0; d < count; ++d) squares += double(x[d]) * double(x[d]);
  const double inverse = 1.0 / std::sqrt(squares / double(count) + 1e-5);
  std::vector<double> y;
  for (int64_t d = 0; d < count; ++d)
    y.push_back(rounded(double(x[d]) * inverse * double(scale[size_t(d)]), lane));
  return y;
}

inline double dot(const std::vector<double>& y, const Floats& weights, int64_t row, Element lane) {
  double sum = 0.0;
  for (size_t d = 0; d < y.size(); ++d)
    sum += y[d] * rounded(double(weights[size_t(row) * y.size() + d]), lane);
  return sum;
}

inline std::vector<uint32_t> packed(const Floats& weights, int64_t rows, int64_t inner,
                                    const std::vector<int64_t>& order, Element lane) {
  std::vector<uint32_t> words(size_t(packed_words(int64_t(order.size()), inner, lane)));
  pack_columns(weights.data(), Element::kFp32, rows, inner, order.data(), int64_t(order.size()), lane,
               words.data(), 2);
  return words;
}

inline std::vector<int64_t> in_order(int64_t count) {
  std::vector<int64_t> order;
  for (int64_t i = 0; i < count; ++i) order.push_back(i);
  return order;
}

inline void expect_near(double got, double expected, double tolerance, const std::string& what) {
  if (std::fabs(got - expected) <= tolerance * (1.0 + std::fabs(expected))) return;
  throw std::runtime_error(what + " is " + std::to_string(got) + ", expected " + std::to_string(expected));
}

// A gate's and an up projection's rows in the panels' order: 32 columns of each in turn, -1 for padding.
inline std::vector<int64_t> gate_up_order(int64_t F) {
  std::vector<int64_t> order;
  for (int64_t first = 0; first < F; first += kGatedColumns) {
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t f = first; f < first + kGatedColumns; ++f) order.push_back(f < F ? half * F + f : -1);
    }
  }
  return order;
}

// Runs a check of every shape at every level. 1 if a check throws, and says what it threw.
template <class Check>
int check_shapes(const Check& check) {
  const Shape shapes[] = {{1, 5, 1, 1, 2, 3, Element::kFp32},       {13, 33, 4, 2, 16, 33, Element::kFp32},
                          {70, 40, 2, 1, 80, 2100, Element::kFp32}, {1, 5, 1, 1, 2, 3, Element::kBf16},
                          {13, 33, 4, 2, 16, 33, Element::kBf16},   {70, 40, 2, 1, 80, 2100, Element::kBf16}};
  for (Isa isa : available_isas()) {
    std::mt19937 random(12345);
    try {
      for (const Shape& shape : shapes) check(shape, isa, random);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", isa_name(isa), error.what());
      return 1;
    }
    std::printf("%s: ok\n", isa_name(isa));
  }
  return 0;
}

}  // namespace psyfast
