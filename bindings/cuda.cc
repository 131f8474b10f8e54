// The module of the CUDA C++ kernels: _cuda where nvcc built it, _cuda_emulated where a C++ compiler did.
#include "cuda.h"

namespace py = pybind11;

#ifdef __CUDACC__
constexpr bool kEmulated = false;
#define PSY_CUDA_MODULE _cuda
#else
constexpr bool kEmulated = true;
#define PSY_CUDA_MODULE _cuda_emulated
#endif

PYBIND11_MODULE(PSY_CUDA_MODULE, m) {
  m.doc() = "psyfast's CUDA kernels over raw device pointers; called by psyfast.ops.gpu alone";
  m.attr("EMULATED") = kEmulated;
#ifdef __CUDACC__
  m.attr("CUDA_VERSION") =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
#else
  m.attr("CUDA_VERSION") = "emulated";
  m.def("set_seed", [](unsigned seed) { psy::emulation::seed() = seed; }, py::arg("seed"));
#endif
  psy::cuda::export_rows(m);
  psy::cuda::export_linear_nll(m);
  psy::cuda::export_attention(m);
  psy::cuda::export_delta_rule(m);
}
