// psyfast._native: checks and exports only. Tensors come as data pointers (int) with their sizes; ops/cpu.py
// has checked types, contiguity and devices.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "exports.h"
#include "isa.h"
#include "linear_nll.h"
#include "pack.h"

namespace py = pybind11;

namespace psyfast {

Element element_of(const std::string& name) {
  if (name == "fp32") return Element::kFp32;
  if (name == "bf16") return Element::kBf16;
  throw std::invalid_argument("element type is '" + name + "', expected fp32 or bf16");
}

Isa isa_of(const std::string& name) { return name.empty() ? selected_isa() : parse_isa(name); }

namespace {

std::vector<std::string> names_of(const std::vector<Isa>& isas) {
  std::vector<std::string> names;
  for (Isa isa : isas) names.emplace_back(isa_name(isa));
  return names;
}

void export_pack(py::module_& m) {
  m.def("packed_words", [](int64_t num_columns, int64_t inner, const std::string& lane) {
    return packed_words(num_columns, inner, element_of(lane));
  });
}

void export_linear_nll(py::module_& m) {
  m.def(
      "linear_nll",
      [](uintptr_t x, int64_t num_rows, int64_t hidden, uintptr_t norm_weight, double eps, bool unit_offset,
         uintptr_t panels, const std::string& lane, int64_t vocab, float scale, float soft_cap,
         uintptr_t target, uintptr_t option_id, int64_t num_options, uintptr_t nll, uintptr_t argmax,
         uintptr_t rank, uintptr_t entropy, uintptr_t option_nll, int num_threads, const std::string& isa) {
        const LinearNllArgs args = {pointer<const float>(x),
                                    num_rows,
                                    hidden,
                                    pointer<const float>(norm_weight),
                                    eps,
                                    unit_offset,
                                    pointer<const uint32_t>(panels),
                                    element_of(lane),
                                    vocab,
                                    scale,
                                    soft_cap,
                                    pointer<const int64_t>(target),
                                    pointer<const int64_t>(option_id),
                                    num_options,
                                    pointer<float>(nll),
                                    pointer<int64_t>(argmax),
                                    pointer<int64_t>(rank),
                                    pointer<float>(entropy),
                                    pointer<float>(option_nll)};
        const Isa level = isa_of(isa);
        const py::gil_scoped_release release;
        linear_nll(args, level, num_threads);
      },
      py::kw_only(), py::arg("x"), py::arg("num_rows"), py::arg("hidden"), py::arg("norm_weight"),
      py::arg("eps"), py::arg("unit_offset"), py::arg("panels"), py::arg("lane"), py::arg("vocab"),
      py::arg("scale"), py::arg("soft_cap"), py::arg("target"), py::arg("option_id"), py::arg("num_options"),
      py::arg("nll"), py::arg("argmax"), py::arg("rank"), py::arg("entropy"), py::arg("option_nll"),
      py::arg("num_threads"), py::arg("isa") = "");
}

using Curve = void (*)(const float*, float*, int64_t);

// One of the kernels' own functions on an array, for the tests of their error bounds.
void evaluate(Curve LinearNllKernels::* curve, const std::string& isa, uintptr_t x, uintptr_t out,
              int64_t count) {
  if (count % kMaxLanes != 0) {
    throw std::invalid_argument("count is " + std::to_string(count) + ", expected a multiple of 16");
  }
  (linear_nll_kernels(isa_of(isa)).*curve)(pointer<const float>(x), pointer<float>(out), count);
}

}  // namespace
}  // namespace psyfast

PYBIND11_MODULE(_native, m) {
  using namespace psyfast;
  m.doc() = "psyfast's CPU operators; called by psyfast.ops.cpu; and its planner, called by psyfast.plan";
  m.attr("MAX_OPTIONS") = kMaxOptions;
  m.def("isa_name", [] { return std::string(isa_name(selected_isa())); });
  m.def("available_isas", [] { return names_of(available_isas()); });
  m.def("compiled_isas", [] { return names_of(compiled_isas()); });
  export_pack(m);
  export_linear_nll(m);
  export_attention(m);
  export_linear(m);
  export_delta_rule(m);
  export_peak(m);
  export_forest(m);
  m.def("exp_nonpositive", [](const std::string& isa, uintptr_t x, uintptr_t out, int64_t count) {
    evaluate(&LinearNllKernels::exp_nonpositive, isa, x, out, count);
  });
  m.def("tanh_any", [](const std::string& isa, uintptr_t x, uintptr_t out, int64_t count) {
    evaluate(&LinearNllKernels::tanh_any, isa, x, out, count);
  });
}
