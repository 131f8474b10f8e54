#include "linear.h"

#include <cstdint>
#include <stdexcept>
#include <string>

#include "attn_in.h"
#include "attn_out.h"
#include "experts.h"
#include "exports.h"
#include "mlp.h"

namespace py = pybind11;

namespace psyfast {
namespace {

void export_attn_in(py::module_& m) {
  m.def(
      "attn_in",
      [](uintptr_t x, int64_t num_tokens, int64_t hidden, uintptr_t norm, double eps, uintptr_t panels,
         const std::string& lane, uintptr_t bias, uintptr_t q_norm, double q_eps, uintptr_t k_norm,
         double k_eps, bool heads_together, uintptr_t cos, uintptr_t sin, int64_t num_positions,
         int64_t num_pairs, int64_t num_heads, uintptr_t k, uintptr_t v, int64_t num_pages,
         int64_t num_kv_heads, int64_t head_dim, uintptr_t position, uintptr_t slot, uintptr_t copy_run,
         int64_t num_copy_runs, uintptr_t row, int64_t num_rows, uintptr_t q, int num_threads,
         const std::string& isa) {
        AttnInArgs args = {};
        args.x = pointer<const float>(x);
        args.num_tokens = num_tokens;
        args.hidden = hidden;
        args.norm = {pointer<const float>(norm), eps};
        args.panels = pointer<const uint32_t>(panels);
        args.lane = element_of(lane);
        args.bias = pointer<const float>(bias);
        args.q_norm = {pointer<const float>(q_norm), q_eps};
        args.k_norm = {pointer<const float>(k_norm), k_eps};
        args.heads_together = heads_together;
        args.cos = pointer<const float>(cos);
        args.sin = pointer<const float>(sin);
        args.num_positions = num_positions;
        args.num_pairs = num_pairs;
        args.num_heads = num_heads;
        args.pages = kv_pages(pointer<uint32_t>(k), pointer<uint32_t>(v), num_pages, num_kv_heads, head_dim,
                              args.lane);
        args.position = pointer<const int64_t>(position);
        args.slot = pointer<const int64_t>(slot);
        args.copy_run = pointer<const int64_t>(copy_run);
        args.num_copy_runs = num_copy_runs;
        args.row = pointer<const int64_t>(row);
        args.num_rows = num_rows;
        args.q = pointer<void>(q);
        const Isa level = isa_of(isa);
        const py::gil_scoped_release release;
        attn_in(args, level, num_threads);
      },
      py::kw_only(), py::arg("x"), py::arg("num_tokens"), py::arg("hidden"), py::arg("norm"), py::arg("eps"),
      py::arg("panels"), py::arg("lane"), py::arg("bias"), py::arg("q_norm"), py::arg("q_eps"),
      py::arg("k_norm"), py::arg("k_eps"), py::arg("heads_together"), py::arg("cos"), py::arg("sin"),
      py::arg("num_positions"), py::arg("num_pairs"), py::arg("num_heads"), py::arg("k"), py::arg("v"),
      py::arg("num_pages"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("position"),
      py::arg("slot"), py::arg("copy_run"), py::arg("num_copy_runs"), py::arg("row"), py::arg("num_rows"),
      py::arg("q"), py::arg("num_threads"), py::arg("isa") = "");
}

GateActivation gate_activation_of(const std::string& name) {
  if (name == "sigmoid") return GateActivation::kSigmoid;
  if (name == "silu") return GateActivation::kSilu;
  throw std::invalid_argument("gate activation '" + name + "' is not known; choose sigmoid or silu");
}

void export_attn_out(py::module_& m) {
  m.def(
      "attn_out",
      [](uintptr_t o, int64_t num_tokens, int64_t width, uintptr_t panels, const std::string& lane,
         uintptr_t bias, uintptr_t post_norm, double post_eps, uintptr_t x, int64_t hidden,
         uintptr_t gate_panels, uintptr_t gate_norm, double gate_eps, const std::string& gate_activation,
         int num_threads, const std::string& isa) {
        const OutputGate gate = {pointer<const uint32_t>(gate_panels),
                                 0,
                                 {pointer<const float>(gate_norm), gate_eps},
                                 gate_activation_of(gate_activation)};
        const AttnOutArgs args = {pointer<const void>(o),
                                  num_tokens,
                                  width,
                                  pointer<const uint32_t>(panels),
                                  element_of(lane),
                                  pointer<const float>(bias),
                                  {pointer<const float>(post_norm), post_eps},
                                  pointer<float>(x),
                                  hidden,
                                  gate};
        const Isa level = isa_of(isa);
        const py::gil_scoped_release release;
        attn_out(args, level, num_threads);
      },
      py::kw_only(), py::arg("o"), py::arg("num_tokens"), py::arg("width"), py::arg("panels"),
      py::arg("lane"), py::arg("bias"), py::arg("post_norm"), py::arg("post_eps"), py::arg("x"),
      py::arg("hidden"), py::arg("gate_panels") = 0, py::arg("gate_norm") = 0, py::arg("gate_eps") = 0.0,
      py::arg("gate_activation") = "sigmoid", py::arg("num_threads"), py::arg("isa") = "");
}

void export_mlp(py::module_& m) {
  m.def(
      "mlp",
      [](uintptr_t x, int64_t num_tokens, int64_t hidden, uintptr_t norm, double eps, uintptr_t gate_up,
         uintptr_t down, const std::string& lane, int64_t feed_forward, const std::string& activation,
         uintptr_t post_norm, double post_eps, int num_threads, const std::string& isa) {
        const MlpArgs args = {pointer<float>(x),
                              num_tokens,
                              hidden,
                              {pointer<const float>(norm), eps},
                              pointer<const uint32_t>(gate_up),
                              pointer<const uint32_t>(down),
                              element_of(lane),
                              feed_forward,
                              parse_activation(activation),
                              {pointer<const float>(post_norm), post_eps}};
        const Isa level = isa_of(isa);
        const py::gil_scoped_release release;
        mlp(args, level, num_threads);
      },
      py::kw_only(), py::arg("x"), py::arg("num_tokens"), py::arg("hidden"), py::arg("norm"), py::arg("eps"),
      py::arg("gate_up"), py::arg("down"), py::arg("lane"), py::arg("feed_forward"), py::arg("activation"),
      py::arg("post_norm"), py::arg("post_eps"), py::arg("num_threads"), py::arg("isa") = "");
  m.def("activate", [](const std::string& isa, const std::string& lane, const std::string& activation,
                       uintptr_t x, uintptr_t out, int64_t count) {
    if (count % (2 * kMaxLanes) != 0) {
      throw std::invalid_argument("count is " + std::to_string(count) + ", expected a multiple of 32");
    }
    const Activation function = parse_activation(activation);
    if (function == Activation::kClampedSwiglu) {
      throw std::invalid_argument("activation is of two arguments, expected one of one");
    }
    linear_kernels(isa_of(isa))
        .activate(function, element_of(lane) == Element::kBf16, pointer<const float>(x), pointer<float>(out),
                  count);
  });
}

// Addresses of packed weights, one an expert.
const uint32_t* const* addresses(uintptr_t array) {
  static_assert(sizeof(const uint32_t*) == sizeof(uint64_t), "addresses come as 64-bit numbers");
  return pointer<const uint32_t* const>(array);
}

void export_experts(py::module_& m) {
  m.def(
      "experts",
      [](uintptr_t x, int64_t num_tokens, int64_t hidden, uintptr_t norm, double eps, uintptr_t router,
         uintptr_t router_bias, int64_t num_experts, int64_t num_used, bool normalised, uintptr_t gate_up,
         uintptr_t down, uintptr_t gate_up_bias, uintptr_t down_bias, const std::string& lane,
         int64_t feed_forward, const std::string& activation, int num_threads, const std::string& isa) {
        const ExpertsArgs args = {pointer<float>(x),
                                  num_tokens,
                                  hidden,
                                  {pointer<const float>(norm), eps},
                                  pointer<const uint32_t>(router),
                                  pointer<const float>(router_bias),
                                  num_experts,
                                  num_used,
                                  normalised,
                                  addresses(gate_up),
                                  addresses(down),
                                  pointer<const float>(gate_up_bias),
                                  pointer<const float>(down_bias),
                                  element_of(lane),
                                  feed_forward,
                                  parse_activation(activation)};
        const Isa level = isa_of(isa);
        const py::gil_scoped_release release;
        experts(args, level, num_threads);
      },
      py::kw_only(), py::arg("x"), py::arg("num_tokens"), py::arg("hidden"), py::arg("norm"), py::arg("eps"),
      py::arg("router"), py::arg("router_bias"), py::arg("num_experts"), py::arg("num_used"),
      py::arg("normalised"), py::arg("gate_up"), py::arg("down"), py::arg("gate_up_bias"),
      py::arg("down_bias"), py::arg("lane"), py::arg("feed_forward"), py::arg("activation"),
      py::arg("num_threads"), py::arg("isa") = "");
}

}  // namespace

void export_linear(py::module_& m) {
  m.attr("VECTOR_PADDING") = kVectorPadding;
  m.attr("GATED_COLUMNS") = kGatedColumns;
  m.attr("EXPERTS_WAVE_BYTES") = kExpertsWaveBytes;
  m.def(
      "pack_columns",
      [](uintptr_t weights, const std::string& source, int64_t num_rows, int64_t inner,
         uintptr_t row_of_column, int64_t num_columns, const std::string& lane, uintptr_t packed,
         int num_threads) {
        const Element source_element = element_of(source);
        const Element lane_element = element_of(lane);
        const py::gil_scoped_release release;
        pack_columns(pointer<const void>(weights), source_element, num_rows, inner,
                     pointer<const int64_t>(row_of_column), num_columns, lane_element,
                     pointer<uint32_t>(packed), num_threads);
      },
      py::kw_only(), py::arg("weights"), py::arg("source"), py::arg("num_rows"), py::arg("inner"),
      py::arg("row_of_column"), py::arg("num_columns"), py::arg("lane"), py::arg("packed"),
      py::arg("num_threads"));
  export_attn_in(m);
  export_attn_out(m);
  export_mlp(m);
  export_experts(m);
}

}  // namespace psyfast
