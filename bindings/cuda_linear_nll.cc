#include <cmath>

#include "cuda.h"
#include "linear_nll.h"

namespace py = pybind11;

namespace psy::cuda {

void export_linear_nll(py::module_& m) {
  m.attr("BLOCK_TOKENS") = kBlockTokens;
  m.def(
      "linear_nll",
      [](std::uintptr_t y, std::uintptr_t lm_head, std::uintptr_t ids, std::int64_t num_rows,
         std::int64_t hidden, std::int64_t vocab, std::int64_t num_slots, float scale, float soft_cap,
         std::uintptr_t logits, std::uintptr_t reals, std::uintptr_t counts, std::uintptr_t nll,
         std::uintptr_t entropy, std::uintptr_t argmax, std::uintptr_t rank, const std::string& operand,
         std::uintptr_t stream) {
        within("num_rows", num_rows, 0, kMostRows / 65);
        within("hidden", hidden, 1, 1 << 20);
        within("vocab", vocab, 1, std::int64_t{65'535} * kBlockTokens);
        within("num_slots", num_slots, 1, 65);
        if (!std::isfinite(scale) || !(soft_cap >= 0) || !std::isfinite(soft_cap)) {
          throw std::invalid_argument("scale must be finite, and soft_cap finite and not negative");
        }
        const HeadProblem problem{required<const void>("y", y, num_rows),
                                  required<const void>("lm_head", lm_head, num_rows),
                                  required<const std::int64_t>("ids", ids, num_rows),
                                  static_cast<int>(num_rows),
                                  static_cast<int>(hidden),
                                  static_cast<int>(vocab),
                                  static_cast<int>(num_slots),
                                  scale,
                                  soft_cap};
        // Planes of [rows, blocks]: m, S, T, the largest logit; its first token, tokens ahead of the target.
        const std::int64_t plane = num_rows * ((vocab + kBlockTokens - 1) / kBlockTokens);
        float* real = required<float>("reals", reals, num_rows);
        int* count = required<int>("counts", counts, num_rows);
        const HeadPartials partials{real,  real + plane, real + 2 * plane, real + 3 * plane,
                                    count, count + plane};
        const HeadResults results{required<float>("nll", nll, num_rows),
                                  required<float>("entropy", entropy, num_rows),
                                  required<std::int64_t>("argmax", argmax, num_rows),
                                  required<std::int64_t>("rank", rank, num_rows)};
        float* scratch = required<float>("logits", logits, num_rows);
        const Operand type = operand_of(operand);
        const py::gil_scoped_release release;
        linear_nll(problem, scratch, partials, results, type,
                   pointer<std::remove_pointer_t<cudaStream_t>>(stream));
      },
      py::kw_only(), py::arg("y"), py::arg("lm_head"), py::arg("ids"), py::arg("num_rows"), py::arg("hidden"),
      py::arg("vocab"), py::arg("num_slots"), py::arg("scale"), py::arg("soft_cap"), py::arg("logits"),
      py::arg("reals"), py::arg("counts"), py::arg("nll"), py::arg("entropy"), py::arg("argmax"),
      py::arg("rank"), py::arg("operand"), py::arg("stream"));
}

}  // namespace psy::cuda
