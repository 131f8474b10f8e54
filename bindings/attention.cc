#include "attention.h"

#include <cstdint>
#include <string>

#include "exports.h"

namespace py = pybind11;

namespace psyfast {

void export_attention(py::module_& m) {
  m.def(
      "attention",
      [](uintptr_t q, uintptr_t out, const std::string& lane, int64_t num_queries, int64_t num_heads,
         uintptr_t k, uintptr_t v, int64_t num_pages, int64_t num_kv_heads, int64_t head_dim,
         uintptr_t position, uintptr_t qo_indptr, uintptr_t kv_indptr, uintptr_t kv_indices,
         int64_t num_segments, float scale, float soft_cap, int64_t window, uintptr_t sinks,
         bool join_segments, int num_threads, const std::string& isa) {
        const Element element = element_of(lane);
        const KvPages pages =
            kv_pages(pointer<uint32_t>(k), pointer<uint32_t>(v), num_pages, num_kv_heads, head_dim, element);
        const AttentionArgs args = {pointer<const void>(q),
                                    pointer<void>(out),
                                    element,
                                    num_queries,
                                    num_heads,
                                    pages,
                                    pointer<const int64_t>(position),
                                    pointer<const int64_t>(qo_indptr),
                                    pointer<const int64_t>(kv_indptr),
                                    pointer<const int64_t>(kv_indices),
                                    num_segments,
                                    scale,
                                    soft_cap,
                                    window,
                                    pointer<const float>(sinks),
                                    join_segments};
        const Isa level = isa_of(isa);
        const py::gil_scoped_release release;
        attention(args, level, num_threads);
      },
      py::kw_only(), py::arg("q"), py::arg("out"), py::arg("lane"), py::arg("num_queries"),
      py::arg("num_heads"), py::arg("k"), py::arg("v"), py::arg("num_pages"), py::arg("num_kv_heads"),
      py::arg("head_dim"), py::arg("position"), py::arg("qo_indptr"), py::arg("kv_indptr"),
      py::arg("kv_indices"), py::arg("num_segments"), py::arg("scale"), py::arg("soft_cap"),
      py::arg("window"), py::arg("sinks"), py::arg("join_segments"), py::arg("num_threads"),
      py::arg("isa") = "");
  m.def("exp2",
        [](const std::string& isa, const std::string& lane, uintptr_t x, uintptr_t out, int64_t count) {
          if (count % kMaxLanes != 0) {
            throw std::invalid_argument("count is " + std::to_string(count) + ", expected a multiple of 16");
          }
          const AttentionKernels& kernels = attention_kernels(isa_of(isa));
          const auto exp2 = element_of(lane) == Element::kBf16 ? kernels.exp2_coarse : kernels.exp2_fine;
          exp2(pointer<const float>(x), pointer<float>(out), count);
        });
}

}  // namespace psyfast
