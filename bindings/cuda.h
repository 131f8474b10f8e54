// What the files of the CUDA module's bindings share: addresses, checks, and who exports what.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "operand.h"

namespace psy::cuda {

// An address as Python has it; null where nothing is there.
template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The same of what must be there if `count` things are read. Throws std::invalid_argument.
template <typename T>
T* required(const char* name, std::uintptr_t address, std::int64_t count = 1) {
  if (address == 0 && count > 0)
    throw std::invalid_argument(std::string(name) + " is null, expected an address");
  return pointer<T>(address);
}

inline std::int64_t within(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value < least || value > most) {
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", expected " +
                                std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

inline Operand operand_of(const std::string& name) {
  if (name == "fp32") return Operand::kFp32;
  if (name == "bf16") return Operand::kBf16;
  if (name == "fp16") return Operand::kFp16;
  throw std::invalid_argument("operand type is '" + name + "', expected fp32, bf16 or fp16");
}

constexpr std::int64_t kMostRows = (std::int64_t{1} << 31) - 1;  // blocks of a grid, and what an int counts

void export_rows(pybind11::module_& m);
void export_linear_nll(pybind11::module_& m);
void export_attention(pybind11::module_& m);
void export_delta_rule(pybind11::module_& m);

}  // namespace psy::cuda
