// Drawn operands and comparisons for the CUDA kernels' stand-alone checks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "operand.h"

namespace psy::cuda {

inline std::mt19937 random_bits(20231);

// Operands of any of the three types, on a heap block of their own; values as they are after rounding.
class Operands {
 public:
  Operands(Operand type, std::size_t count, float spread = 1.0f)
      : type_(type), count_(count), memory_(new unsigned char[count * bytes_each(type)]) {
    std::normal_distribution<float> normal(0.0f, spread);
    for (std::size_t i = 0; i < count; ++i) set(i, normal(random_bits));
  }

  static std::size_t bytes_each(Operand type) { return type == Operand::kFp32 ? 4 : 2; }
  void* data() { return memory_.get(); }
  std::size_t size() const { return count_; }

  void set(std::size_t i, float value) {
    with_operand(type_, [&](auto type) {
      using T = decltype(type);
      const T stored = from_float<T>(value);
      std::memcpy(memory_.get() + i * sizeof(T), &stored, sizeof(T));
    });
  }
  double operator[](std::size_t i) const {
    float value = 0.0f;
    with_operand(type_, [&](auto type) {
      std::memcpy(static_cast<void*>(&type), memory_.get() + i * sizeof(type), sizeof(type));
      value = to_float(type);
    });
    return static_cast<double>(value);
  }
  double at(std::int64_t i) const { return (*this)[static_cast<std::size_t>(i)]; }

 private:
  Operand type_;
  std::size_t count_;
  std::unique_ptr<unsigned char[]> memory_;
};

inline std::vector<float> drawn(std::int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random_bits);
  return values;
}
template <typename T>
double value_at(const std::vector<T>& values, std::int64_t i) {
  return static_cast<double>(values[static_cast<std::size_t>(i)]);
}

inline double rounding_of(Operand type) {
  return type == Operand::kFp32 ? 2e-5 : type == Operand::kBf16 ? 8e-3 : 1e-3;
}

inline void expect_near(double got, double expected, double rounding, const char* what) {
  if (std::fabs(got - expected) <= rounding * (1.0 + std::fabs(expected))) return;
  throw std::runtime_error(std::string(what) + " is " + std::to_string(got) + ", expected " +
                           std::to_string(expected));
}

}  // namespace psy::cuda
