#include "cuda.h"
#include "delta_rule.h"

namespace py = pybind11;

namespace psy::cuda {

namespace {

using Stream = std::remove_pointer_t<cudaStream_t>;

DeltaSizes sizes_of(std::int64_t num_key_heads, std::int64_t num_value_heads, std::int64_t key_dim,
                    std::int64_t value_dim) {
  within("num_key_heads", num_key_heads, 1, 65'535);
  within("num_value_heads", num_value_heads, 1, 65'535);
  if (num_value_heads % num_key_heads != 0)
    throw std::invalid_argument("num_value_heads is no multiple of num_key_heads");
  within("key_dim", key_dim, 1, kMostDeltaDim);
  within("value_dim", value_dim, 1, kMostDeltaDim);
  return {static_cast<int>(num_key_heads), static_cast<int>(num_value_heads), static_cast<int>(key_dim),
          static_cast<int>(value_dim)};
}

void export_short_convolution(py::module_& m) {
  m.def(
      "short_convolution",
      [](std::uintptr_t x, std::uintptr_t path, std::uintptr_t taps, std::uintptr_t y, std::int64_t num_rows,
         std::int64_t num_taps, std::int64_t num_key_heads, std::int64_t num_value_heads,
         std::int64_t key_dim, std::int64_t value_dim, std::uintptr_t stream) {
        within("num_rows", num_rows, 0, kMostRows);
        within("num_taps", num_taps, 1, kMostTaps);
        const DeltaSizes sizes = sizes_of(num_key_heads, num_value_heads, key_dim, value_dim);
        const auto* from = required<const float>("x", x, num_rows);
        const auto* before = required<const std::int32_t>("path", path, num_rows);
        const auto* filter = required<const float>("taps", taps, num_rows);
        auto* to = required<float>("y", y, num_rows);
        const py::gil_scoped_release release;
        short_convolution(from, before, filter, to, num_rows, static_cast<int>(num_taps), sizes,
                          pointer<Stream>(stream));
      },
      py::kw_only(), py::arg("x"), py::arg("path"), py::arg("taps"), py::arg("y"), py::arg("num_rows"),
      py::arg("num_taps"), py::arg("num_key_heads"), py::arg("num_value_heads"), py::arg("key_dim"),
      py::arg("value_dim"), py::arg("stream"));
}

}  // namespace

void export_delta_rule(py::module_& m) {
  m.attr("MAX_DELTA_DIM") = kMostDeltaDim;
  m.attr("MAX_TAPS") = kMostTaps;
  export_short_convolution(m);
  m.def(
      "delta_rule",
      [](std::uintptr_t qkv, std::uintptr_t log_decay, std::uintptr_t write, std::uintptr_t rows,
         std::uintptr_t chunks, std::uintptr_t pieces, std::uintptr_t states, std::uintptr_t o,
         std::uintptr_t w, std::uintptr_t u0, std::uintptr_t mixing, std::uintptr_t fading,
         std::int64_t first_piece, std::int64_t num_pieces, std::int64_t first_chunk, std::int64_t num_chunks,
         std::int64_t num_key_heads, std::int64_t num_value_heads, std::int64_t key_dim,
         std::int64_t value_dim, std::uintptr_t stream) {
        within("first_piece", first_piece, 0, kMostRows);
        within("num_pieces", num_pieces, 1, kMostRows);
        within("first_chunk", first_chunk, 0, kMostRows);
        within("num_chunks", num_chunks, num_pieces, kMostRows);
        const DeltaSizes sizes = sizes_of(num_key_heads, num_value_heads, key_dim, value_dim);
        const DeltaProblem problem{required<const float>("qkv", qkv),
                                   required<const float>("log_decay", log_decay),
                                   required<const float>("write", write),
                                   required<const std::int32_t>("rows", rows),
                                   required<const std::int32_t>("chunks", chunks),
                                   required<const std::int32_t>("pieces", pieces),
                                   required<float>("states", states),
                                   required<float>("o", o)};
        const DeltaScratch scratch{required<float>("w", w), required<float>("u0", u0),
                                   required<float>("mixing", mixing), required<float>("fading", fading)};
        const DeltaGroup group{static_cast<int>(first_piece), static_cast<int>(num_pieces),
                               static_cast<int>(first_chunk), static_cast<int>(num_chunks)};
        const py::gil_scoped_release release;
        delta_rule(problem, scratch, group, sizes, pointer<Stream>(stream));
      },
      py::kw_only(), py::arg("qkv"), py::arg("log_decay"), py::arg("write"), py::arg("rows"),
      py::arg("chunks"), py::arg("pieces"), py::arg("states"), py::arg("o"), py::arg("w"), py::arg("u0"),
      py::arg("mixing"), py::arg("fading"), py::arg("first_piece"), py::arg("num_pieces"),
      py::arg("first_chunk"), py::arg("num_chunks"), py::arg("num_key_heads"), py::arg("num_value_heads"),
      py::arg("key_dim"), py::arg("value_dim"), py::arg("stream"));
}

}  // namespace psy::cuda
