#include "peak.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>

#include "exports.h"

namespace py = pybind11;

namespace psyfast {
namespace {

std::pair<double, std::vector<double>> numbers_of(PeakTimes&& times) {
  return {times.flop, std::move(times.seconds)};
}

}  // namespace

void export_peak(py::module_& m) {
  m.attr("TILE_ROWS") = kTileRows;
  m.attr("PANEL_COLUMNS") = kPanelColumns;
  m.def("tile_columns", [](const std::string& isa) { return tile_columns(isa_of(isa)); });
  m.def("has_bf16_dots", [](const std::string& isa) { return has_bf16_dots(isa_of(isa)); });
  m.def(
      "time_tile",
      [](uintptr_t x, uintptr_t panel, int64_t inner, const std::string& lane, int64_t laps, uintptr_t out,
         double seconds, int num_threads, const std::string& isa) {
        const PeakArgs args = {
            pointer<const float>(x), kTileRows,          inner, pointer<const uint32_t>(panel), kPanelColumns,
            element_of(lane),        pointer<float>(out)};
        const Isa level = isa_of(isa);
        const py::gil_scoped_release release;
        return numbers_of(time_tile(args, laps, {seconds, num_threads}, level));
      },
      py::kw_only(), py::arg("x"), py::arg("panel"), py::arg("inner"), py::arg("lane"), py::arg("laps"),
      py::arg("out"), py::arg("seconds"), py::arg("num_threads"), py::arg("isa") = "");
  m.def(
      "time_product",
      [](uintptr_t x, int64_t num_rows, int64_t inner, uintptr_t panels, int64_t num_columns,
         const std::string& lane, uintptr_t out, double seconds, int num_threads, const std::string& isa) {
        const PeakArgs args = {
            pointer<const float>(x), num_rows,           inner, pointer<const uint32_t>(panels), num_columns,
            element_of(lane),        pointer<float>(out)};
        const Isa level = isa_of(isa);
        const py::gil_scoped_release release;
        return numbers_of(time_product(args, {seconds, num_threads}, level));
      },
      py::kw_only(), py::arg("x"), py::arg("num_rows"), py::arg("inner"), py::arg("panels"),
      py::arg("num_columns"), py::arg("lane"), py::arg("out"), py::arg("seconds"), py::arg("num_threads"),
      py::arg("isa") = "");
}

}  // namespace psyfast
