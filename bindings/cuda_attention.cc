#include <cmath>

#include "attention.h"
#include "cuda.h"

namespace py = pybind11;

namespace psy::cuda {

void export_attention(py::module_& m) {
  m.attr("PAGE_SLOTS") = kPageSlots;
  m.attr("MMA_QUERY_ROWS") = kMmaQueryRows;
  m.attr("FP32_QUERY_ROWS") = kFp32QueryRows;
  m.def("has_head_dim", &has_head_dim, py::arg("head_dim"));
  m.def(
      "attention",
      [](std::uintptr_t q, std::uintptr_t k_pages, std::uintptr_t v_pages, std::uintptr_t o,
         std::uintptr_t positions, std::uintptr_t sinks, std::int64_t num_heads, std::int64_t num_kv_heads,
         std::int64_t head_dim, float scale, float soft_cap, std::int64_t window, std::uintptr_t tile_rows,
         std::uintptr_t bounds, std::uintptr_t index, std::uintptr_t pages, std::uintptr_t block_rows,
         std::int64_t num_tiles, const std::string& operand, std::uintptr_t stream) {
        within("num_kv_heads", num_kv_heads, 1, 65'535);
        within("num_heads", num_heads, 1, 65'535);
        within("num_tiles", num_tiles, 0, kMostRows);  // first, so that the product cannot overflow
        within("tiles times heads", num_tiles * num_heads, 0, kMostRows);
        within("window", window, 0, kMostRows);
        if (num_heads % num_kv_heads != 0) {
          throw std::invalid_argument(std::to_string(num_heads) + " query heads cannot be shared by " +
                                      std::to_string(num_kv_heads) + " key/value heads");
        }
        if (!has_head_dim(head_dim)) {
          throw std::invalid_argument("head_dim is " + std::to_string(head_dim) +
                                      ", expected 64, 80, 96, 128 or 256");
        }
        if (!(scale > 0) || !std::isfinite(scale) || !(soft_cap >= 0) || !std::isfinite(soft_cap)) {
          throw std::invalid_argument("scale must be positive and soft_cap not negative, both finite");
        }
        const AttentionProblem problem{required<const void>("q", q, num_tiles),
                                       required<const void>("k_pages", k_pages, num_tiles),
                                       required<const void>("v_pages", v_pages, num_tiles),
                                       required<void>("o", o, num_tiles),
                                       required<const std::int64_t>("positions", positions, num_tiles),
                                       pointer<const float>(sinks),
                                       static_cast<int>(num_heads),
                                       static_cast<int>(num_kv_heads),
                                       static_cast<int>(head_dim),
                                       scale,
                                       soft_cap,
                                       static_cast<int>(window)};
        const AttentionTables tables{required<const int>("tile_rows", tile_rows, num_tiles),
                                     required<const int>("bounds", bounds, num_tiles),
                                     required<const int>("index", index, num_tiles),
                                     required<const int>("pages", pages, num_tiles),
                                     required<const int>("block_rows", block_rows, num_tiles),
                                     static_cast<int>(num_tiles)};
        const Operand type = operand_of(operand);
        const py::gil_scoped_release release;
        attention(problem, tables, type, pointer<std::remove_pointer_t<cudaStream_t>>(stream));
      },
      py::kw_only(), py::arg("q"), py::arg("k_pages"), py::arg("v_pages"), py::arg("o"), py::arg("positions"),
      py::arg("sinks"), py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("scale"),
      py::arg("soft_cap"), py::arg("window"), py::arg("tile_rows"), py::arg("bounds"), py::arg("index"),
      py::arg("pages"), py::arg("block_rows"), py::arg("num_tiles"), py::arg("operand"), py::arg("stream"));
}

}  // namespace psy::cuda
