#include "delta_rule.h"

#include <cstdint>
#include <string>

#include "exports.h"

namespace py = pybind11;

namespace psyfast {

void export_delta_rule(py::module_& m) {
  m.attr("MAX_CONV_WIDTH") = kMaxConvWidth;
  m.def(
      "delta_rule",
      [](uintptr_t x, int64_t num_tokens, int64_t hidden, uintptr_t norm, double eps, uintptr_t panels,
         uintptr_t decay_write_panels, const std::string& lane, uintptr_t taps, uintptr_t log_rate,
         uintptr_t time_bias, uintptr_t head_norm, double head_eps, int64_t num_key_heads,
         int64_t num_value_heads, int64_t key_dim, int64_t value_dim, int64_t conv_width,
         int64_t num_segments, uintptr_t qo_indptr, uintptr_t start, uintptr_t parent_row, uintptr_t o,
         int num_threads, const std::string& isa) {
        DeltaRuleArgs args = {};
        args.x = pointer<const float>(x);
        args.num_tokens = num_tokens;
        args.hidden = hidden;
        args.norm = {pointer<const float>(norm), eps};
        args.panels = pointer<const uint32_t>(panels);
        args.decay_write_panels = pointer<const uint32_t>(decay_write_panels);
        args.lane = element_of(lane);
        args.filter = pointer<const float>(taps);
        args.log_rate = pointer<const float>(log_rate);
        args.time_bias = pointer<const float>(time_bias);
        args.head_norm = {pointer<const float>(head_norm), head_eps};
        args.num_key_heads = num_key_heads;
        args.num_value_heads = num_value_heads;
        args.key_dim = key_dim;
        args.value_dim = value_dim;
        args.conv_width = conv_width;
        args.num_segments = num_segments;
        args.qo_indptr = pointer<const int64_t>(qo_indptr);
        args.start = pointer<const int64_t>(start);
        args.parent_row = pointer<const int64_t>(parent_row);
        args.o = pointer<void>(o);
        const Isa level = isa_of(isa);
        const py::gil_scoped_release release;
        delta_rule(args, level, num_threads);
      },
      py::kw_only(), py::arg("x"), py::arg("num_tokens"), py::arg("hidden"), py::arg("norm"), py::arg("eps"),
      py::arg("panels"), py::arg("decay_write_panels"), py::arg("lane"), py::arg("taps"), py::arg("log_rate"),
      py::arg("time_bias"), py::arg("head_norm"), py::arg("head_eps"), py::arg("num_key_heads"),
      py::arg("num_value_heads"), py::arg("key_dim"), py::arg("value_dim"), py::arg("conv_width"),
      py::arg("num_segments"), py::arg("qo_indptr"), py::arg("start"), py::arg("parent_row"), py::arg("o"),
      py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace psyfast
