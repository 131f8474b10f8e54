// short_convolution: what stands between delta_rule's projection and its recurrence
//
//     y[r] = silu(Σ_w taps[w] · x[path[w, r]])     q ← y / |y| / √E     k ← y / |y|     v ← y
//
// |y| = sqrt(Σ y² + 1e-6). A block has a row, a warp a head of it, whose columns stay in registers.

#include <cmath>

#include "delta_rule.h"
#include "operand.h"

namespace psy::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

__global__ void __launch_bounds__(kThreads)
    convolution_kernel(const float* x, const std::int32_t* path, const float* taps, float* y,
                       std::int64_t num_rows, int num_taps, DeltaSizes sizes) {
  const std::int64_t row = blockIdx.x;
  const int C = sizes.channels(), K = sizes.num_key_heads, E = sizes.key_dim, V = sizes.value_dim;
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int head = static_cast<int>(threadIdx.x / 32); head < 2 * K + sizes.num_value_heads; head += kWarps) {
    const bool is_value = head >= 2 * K;
    const int width = is_value ? V : E;
    const int first = is_value ? 2 * K * E + (head - 2 * K) * V : head * E;
    float values[kMostDeltaDim / 32] = {};
    for (int tap = 0; tap < num_taps; ++tap) {
      const std::int64_t from = path[tap * num_rows + row];
      if (from < 0) continue;
      PSY_UNROLL
      for (int i = 0; i < kMostDeltaDim / 32; ++i) {
        const int column = lane + 32 * i;
        if (column < width)
          values[i] = fmaf(x[from * C + first + column], taps[tap * C + first + column], values[i]);
      }
    }
    float squares = 0.0f;
    PSY_UNROLL
    for (int i = 0; i < kMostDeltaDim / 32; ++i) {
      values[i] = values[i] / (1.0f + expf(-values[i]));
      squares = fmaf(values[i], values[i], squares);
    }
    float scale = 1.0f;
    if (!is_value) {
      scale = rsqrtf(warp_sum(squares) + 1e-6f);
      if (head < K) scale *= rsqrtf(static_cast<float>(E));
    }
    PSY_UNROLL
    for (int i = 0; i < kMostDeltaDim / 32; ++i) {
      const int column = lane + 32 * i;
      if (column < width) y[row * C + first + column] = values[i] * scale;
    }
  }
}

}  // namespace

void short_convolution(const float* x, const std::int32_t* path, const float* taps, float* y,
                       std::int64_t num_rows, int num_taps, DeltaSizes sizes, cudaStream_t stream) {
  if (num_rows == 0) return;
  PSY_LAUNCH(convolution_kernel, dim3(static_cast<unsigned>(num_rows)), dim3(kThreads), 0, stream, x, path,
             taps, y, num_rows, num_taps, sizes);
}

}  // namespace psy::cuda
