// A warp's mma and ldmatrix as the emulation does them, for tests that bring fragments and compare what comes
// back (tests/ops/test_fragment_layouts.py). A shared library.
#include "device.h"

namespace psy::cuda {
namespace {

// a [32, 4], b [32, 2], c [32, 4]: each lane's registers.
template <typename T>
__global__ void one_mma(const std::uint32_t* a, const std::uint32_t* b, float* c) {
  const unsigned lane = threadIdx.x;
  const std::uint32_t mine_a[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
  const std::uint32_t mine_b[2] = {b[2 * lane], b[2 * lane + 1]};
  float mine_c[4] = {c[4 * lane], c[4 * lane + 1], c[4 * lane + 2], c[4 * lane + 3]};
  mma<T>(mine_c, mine_a, mine_b);
  for (unsigned i = 0; i < 4; ++i) c[4 * lane + i] = mine_c[i];
}

// Lane l reads the row that starts at tile + starts[l]; out [32, 4].
__global__ void one_ldmatrix(const std::uint16_t* tile, const int* starts, bool transposed,
                             std::uint32_t* out) {
  const unsigned lane = threadIdx.x;
  std::uint32_t words[4];
  if (transposed) {
    ldmatrix_x4_trans(words, tile + starts[lane]);
  } else {
    ldmatrix_x4(words, tile + starts[lane]);
  }
  for (unsigned i = 0; i < 4; ++i) out[4 * lane + i] = words[i];
}

}  // namespace
}  // namespace psy::cuda

extern "C" {

void warp_mma(int is_half, const std::uint32_t* a, const std::uint32_t* b, float* c) {
  using namespace psy::cuda;
  auto* kernel = is_half != 0 ? one_mma<__half> : one_mma<__nv_bfloat16>;
  PSY_LAUNCH(kernel, dim3(1), dim3(32), 0, nullptr, a, b, c);
}

void warp_ldmatrix(const std::uint16_t* tile, const int* starts, int transposed, std::uint32_t* out) {
  using namespace psy::cuda;
  PSY_LAUNCH(one_ldmatrix, dim3(1), dim3(32), 0, nullptr, tile, starts, transposed != 0, out);
}
}
