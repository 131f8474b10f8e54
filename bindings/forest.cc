// The batch builder: numpy arrays in and out, checked for type and shape here and for meaning in
// csrc/requests.cc.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "batch_plan.h"
#include "exports.h"
#include "head_entries.h"

namespace py = pybind11;

namespace psyfast {
namespace {

Ints ints_of(const char* name, const py::array& array) {
  if (!py::isinstance<py::array_t<int64_t>>(array) || array.ndim() != 1 ||
      (array.flags() & py::array::c_style) == 0) {
    throw std::invalid_argument(std::string(name) + " has dtype " + std::string(py::str(array.dtype())) +
                                " and " + std::to_string(array.ndim()) +
                                " dimensions, expected one of contiguous int64; convert it with "
                                "numpy.ascontiguousarray(x, numpy.int64)");
  }
  return {static_cast<const int64_t*>(array.data()), static_cast<int64_t>(array.size())};
}

// Hands a vector's memory to numpy; `columns` ≥ 0 makes it [rows, columns].
py::array_t<int64_t> numpy_of(std::vector<int64_t>&& values, int64_t rows, int64_t columns = -1) {
  auto owned = std::make_unique<std::vector<int64_t>>(std::move(values));
  const int64_t* data = owned->data();
  const py::capsule owner(owned.release(), [](void* p) { delete static_cast<std::vector<int64_t>*>(p); });
  if (columns < 0) return py::array_t<int64_t>({rows}, data, owner);
  return py::array_t<int64_t>({rows, columns}, data, owner);
}

py::array_t<int64_t> numpy_of(std::vector<int64_t>&& values) {
  const int64_t size = static_cast<int64_t>(values.size());
  return numpy_of(std::move(values), size);
}

py::dict tables_of(PageTables&& pages) {
  const int64_t num_runs = static_cast<int64_t>(pages.copy_runs.size() / 4);
  py::dict tables;
  tables["slots_T"] = numpy_of(std::move(pages.slots));
  tables["qo_indptr"] = numpy_of(std::move(pages.qo_indptr));
  tables["kv_indptr"] = numpy_of(std::move(pages.kv_indptr));
  tables["kv_indices"] = numpy_of(std::move(pages.kv_indices));
  tables["kv_last_page_len"] = numpy_of(std::move(pages.kv_last_page_len));
  tables["first_position"] = numpy_of(std::move(pages.first_position));
  tables["copy_from"] = numpy_of(std::move(pages.copy_from));
  tables["copy_to"] = numpy_of(std::move(pages.copy_to));
  tables["copy_runs"] = numpy_of(std::move(pages.copy_runs), num_runs, 4);
  return tables;
}

py::dict runs_of(ScoredRuns&& runs) {
  py::dict found;
  found["entry"] = numpy_of(std::move(runs.entry));
  found["column"] = numpy_of(std::move(runs.column));
  found["indptr"] = numpy_of(std::move(runs.indptr));
  return found;
}

py::dict finish(const BatchBuilder& builder) {
  BatchPlan plan;
  {
    const py::gil_scoped_release release;
    plan = builder.finish();
  }
  py::dict found;
  found["num_pages"] = plan.pages.num_pages;
  found["pages"] = tables_of(std::move(plan.pages));
  const int64_t num_entries = static_cast<int64_t>(plan.rows.size());
  py::dict batch;
  batch["token_ids_T"] = numpy_of(std::move(plan.token_ids));
  batch["positions_T"] = numpy_of(std::move(plan.positions));
  batch["rows_N"] = numpy_of(std::move(plan.rows));
  batch["target_N"] = numpy_of(std::move(plan.targets));
  batch["option_ids_NK"] = numpy_of(std::move(plan.option_ids), num_entries, plan.num_columns);
  found["batch"] = batch;
  found["requests"] = runs_of(std::move(plan.requests));
  found["branches"] = runs_of(std::move(plan.branches));
  found["branch_indptr"] = numpy_of(std::move(plan.branch_indptr));
  return found;
}

}  // namespace

void export_forest(py::module_& m) {
  m.attr("PAGE_SLOTS") = kPageSlots;
  m.attr("MAX_OPTION_COLUMNS") = kMaxOptionColumns;
  // Local to its module: two builds of it may be loaded side by side, as the tests of the ISA levels do.
  py::class_<BatchBuilder>(m, "BatchBuilder", py::module_local())
      .def(py::init<bool>(), py::kw_only(), py::arg("share"))
      .def(
          "add",
          [](BatchBuilder& builder, int64_t max_slots, const py::array& ids, const py::array& ids_indptr,
             const py::array& scored_positions, const py::array& scored_indptr,
             const py::array& branch_indptr, const py::array& branch_start, const py::array& branch_ids,
             const py::array& branch_ids_indptr, const py::array& score_start, const py::array& score_stop) {
            const Requests requests = {ints_of("ids", ids),
                                       ints_of("ids_indptr", ids_indptr),
                                       ints_of("scored_positions", scored_positions),
                                       ints_of("scored_indptr", scored_indptr),
                                       ints_of("branch_indptr", branch_indptr),
                                       ints_of("branch_start", branch_start),
                                       ints_of("branch_ids", branch_ids),
                                       ints_of("branch_ids_indptr", branch_ids_indptr),
                                       ints_of("score_start", score_start),
                                       ints_of("score_stop", score_stop)};
            const py::gil_scoped_release release;
            return builder.add(requests, max_slots);
          },
          py::kw_only(), py::arg("max_slots"), py::arg("ids"), py::arg("ids_indptr"),
          py::arg("scored_positions"), py::arg("scored_indptr"), py::arg("branch_indptr"),
          py::arg("branch_start"), py::arg("branch_ids"), py::arg("branch_ids_indptr"),
          py::arg("score_start"), py::arg("score_stop"))
      .def("finish", &finish)
      .def_property_readonly("num_requests", &BatchBuilder::num_requests)
      .def_property_readonly("num_tokens", &BatchBuilder::num_tokens)
      .def_property_readonly("num_slots", &BatchBuilder::num_slots)
      .def_property_readonly("num_request_tokens", &BatchBuilder::num_request_tokens);
}

}  // namespace psyfast
