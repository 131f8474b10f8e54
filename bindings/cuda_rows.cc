#include "cuda.h"
#include "rows.h"

namespace py = pybind11;

namespace psy::cuda {

namespace {

using Stream = std::remove_pointer_t<cudaStream_t>;
constexpr std::int64_t kMostColumns = 1 << 24;

RowNorm norm_of(std::uintptr_t weight, float eps, bool unit_offset) {
  return {pointer<const float>(weight), eps, unit_offset ? 1.0f : 0.0f};
}

Activation activation_of(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  throw std::invalid_argument("activation is '" + name + "', expected silu, gelu or gelu_pytorch_tanh");
}

void export_norm_rows(py::module_& m) {
  m.def(
      "norm_rows",
      [](std::uintptr_t x, std::uintptr_t y, std::int64_t num_rows, std::int64_t width, std::uintptr_t weight,
         float eps, bool unit_offset, const std::string& operand, std::uintptr_t stream) {
        within("num_rows", num_rows, 0, kMostRows);
        within("width", width, 1, kMostColumns);
        const auto* from = required<const float>("x", x, num_rows);
        void* to = required<void>("y", y, num_rows);
        const Operand type = operand_of(operand);
        const py::gil_scoped_release release;
        norm_rows(from, to, num_rows, static_cast<int>(width), norm_of(weight, eps, unit_offset), type,
                  pointer<Stream>(stream));
      },
      py::kw_only(), py::arg("x"), py::arg("y"), py::arg("num_rows"), py::arg("width"), py::arg("weight"),
      py::arg("eps"), py::arg("unit_offset"), py::arg("operand"), py::arg("stream"));
}

void export_add_rows(py::module_& m) {
  m.def(
      "add_rows",
      [](std::uintptr_t x, std::uintptr_t y, std::uintptr_t bias, std::int64_t num_rows, std::int64_t width,
         std::uintptr_t weight, float eps, bool unit_offset, std::uintptr_t stream) {
        within("num_rows", num_rows, 0, kMostRows);
        within("width", width, 1, kMostColumns);
        auto* to = required<float>("x", x, num_rows);
        const auto* from = required<const float>("y", y, num_rows);
        const py::gil_scoped_release release;
        add_rows(to, from, pointer<const float>(bias), num_rows, static_cast<int>(width),
                 norm_of(weight, eps, unit_offset), pointer<Stream>(stream));
      },
      py::kw_only(), py::arg("x"), py::arg("y"), py::arg("bias"), py::arg("num_rows"), py::arg("width"),
      py::arg("weight"), py::arg("eps"), py::arg("unit_offset"), py::arg("stream"));
}

void export_gated(py::module_& m) {
  m.def(
      "gated",
      [](std::uintptr_t gate_up, std::uintptr_t h, std::int64_t num_rows, std::int64_t width,
         const std::string& activation, const std::string& operand, std::uintptr_t stream) {
        within("num_rows", num_rows, 0, kMostRows);
        within("width", width, 1, kMostColumns);
        const auto* from = required<const float>("gate_up", gate_up, num_rows);
        void* to = required<void>("h", h, num_rows);
        const Activation act = activation_of(activation);
        const Operand type = operand_of(operand);
        const py::gil_scoped_release release;
        gated(from, to, num_rows, static_cast<int>(width), act, type, pointer<Stream>(stream));
      },
      py::kw_only(), py::arg("gate_up"), py::arg("h"), py::arg("num_rows"), py::arg("width"),
      py::arg("activation"), py::arg("operand"), py::arg("stream"));
}

Heads heads_of(std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t head_dim,
               std::int64_t num_pairs, bool norm_together) {
  within("num_heads", num_heads, 0, 65'535);
  within("num_kv_heads", num_kv_heads, 0, 65'535);
  within("head_dim", head_dim, 1, 4096);
  within("num_pairs", num_pairs, 0, head_dim / 2);
  return {static_cast<int>(num_heads), static_cast<int>(num_kv_heads), static_cast<int>(head_dim),
          static_cast<int>(num_pairs), norm_together};
}

void export_heads(py::module_& m) {
  m.def(
      "heads",
      [](std::uintptr_t qkv, std::uintptr_t bias, std::uintptr_t q_weight, float q_eps, bool q_offset,
         std::uintptr_t k_weight, float k_eps, bool k_offset, std::uintptr_t cos, std::uintptr_t sin,
         std::uintptr_t positions, std::uintptr_t slots, std::uintptr_t q, std::uintptr_t k_pages,
         std::uintptr_t v_pages, std::int64_t num_rows, std::int64_t num_heads, std::int64_t num_kv_heads,
         std::int64_t head_dim, std::int64_t num_pairs, bool norm_together, const std::string& operand,
         std::uintptr_t stream) {
        within("num_rows", num_rows, 0, kMostRows);
        const Heads shape = heads_of(num_heads, num_kv_heads, head_dim, num_pairs, norm_together);
        const std::int64_t turned = num_rows * num_pairs, stored = num_rows * num_kv_heads;
        const auto* values = required<const float>("qkv", qkv, num_rows);
        const auto* row_cos = required<const float>("cos", cos, turned);
        const auto* row_sin = required<const float>("sin", sin, turned);
        const auto* at = required<const std::int64_t>("positions", positions, turned);
        const auto* slot = required<const std::int64_t>("slots", slots, stored);
        void* queries = required<void>("q", q, num_rows * num_heads);
        void* keys = required<void>("k_pages", k_pages, stored);
        void* kept = required<void>("v_pages", v_pages, stored);
        const Operand type = operand_of(operand);
        const py::gil_scoped_release release;
        heads(values, pointer<const float>(bias), norm_of(q_weight, q_eps, q_offset),
              norm_of(k_weight, k_eps, k_offset), row_cos, row_sin, at, slot, queries, keys, kept, num_rows,
              shape, type, pointer<Stream>(stream));
      },
      py::kw_only(), py::arg("qkv"), py::arg("bias"), py::arg("q_weight"), py::arg("q_eps"),
      py::arg("q_offset"), py::arg("k_weight"), py::arg("k_eps"), py::arg("k_offset"), py::arg("cos"),
      py::arg("sin"), py::arg("positions"), py::arg("slots"), py::arg("q"), py::arg("k_pages"),
      py::arg("v_pages"), py::arg("num_rows"), py::arg("num_heads"), py::arg("num_kv_heads"),
      py::arg("head_dim"), py::arg("num_pairs"), py::arg("norm_together"), py::arg("operand"),
      py::arg("stream"));
}

void export_copy_slots(py::module_& m) {
  m.def(
      "copy_slots",
      [](std::uintptr_t k_pages, std::uintptr_t v_pages, std::uintptr_t runs, std::int64_t num_runs,
         std::int64_t num_kv_heads, std::int64_t head_dim, const std::string& operand,
         std::uintptr_t stream) {
        within("num_runs", num_runs, 0, kMostRows);
        within("num_kv_heads", num_kv_heads, 1, 65'535);
        within("head_dim", head_dim, 1, 4096);
        void* keys = required<void>("k_pages", k_pages, num_runs);
        void* kept = required<void>("v_pages", v_pages, num_runs);
        const auto* from = required<const std::int64_t>("runs", runs, num_runs);
        const Operand type = operand_of(operand);
        const py::gil_scoped_release release;
        copy_slots(keys, kept, from, num_runs, static_cast<int>(num_kv_heads), static_cast<int>(head_dim),
                   type, pointer<Stream>(stream));
      },
      py::kw_only(), py::arg("k_pages"), py::arg("v_pages"), py::arg("runs"), py::arg("num_runs"),
      py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("operand"), py::arg("stream"));
}

}  // namespace

void export_rows(py::module_& m) {
  export_norm_rows(m);
  export_add_rows(m);
  export_gated(m);
  export_heads(m);
  export_copy_slots(m);
}

}  // namespace psy::cuda
