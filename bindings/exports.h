// What the files of the bindings share: names to enums, and who exports what.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "isa.h"
#include "pack.h"

namespace psyfast {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Throws std::invalid_argument for a name that is neither fp32 nor bf16.
Element element_of(const std::string& name);

// The level of a name, the selected one for an empty name; throws std::invalid_argument for a name that is no
// level.
Isa isa_of(const std::string& name);

void export_attention(pybind11::module_& m);
void export_linear(pybind11::module_& m);
void export_delta_rule(pybind11::module_& m);
void export_peak(pybind11::module_& m);
void export_forest(pybind11::module_& m);

}  // namespace psyfast
