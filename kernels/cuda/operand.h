// Operand types as numbers that cross the bindings, and one call of a template for the right one.
#pragma once

#include "device.h"

namespace psy::cuda {

enum class Operand { kFp32 = 0, kBf16 = 1, kFp16 = 2 };

// Calls body(T{}) with the type that an operand number stands for.
template <typename Body>
void with_operand(Operand operand, Body body) {
  switch (operand) {
    case Operand::kFp32:
      return body(float{});
    case Operand::kBf16:
      return body(__nv_bfloat16{});
    case Operand::kFp16:
      return body(__half{});
  }
  throw std::runtime_error("operand type " + std::to_string(static_cast<int>(operand)) + " is not known");
}

// Sum over the lanes of a warp, the same bits in every lane.
__device__ __forceinline__ float warp_sum(float value) {
  PSY_UNROLL
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(0xFFFF'FFFFu, value, bits);
  return value;
}

// Sum over a block of kWarps warps, in the order of the warps; scratch [kWarps] in shared memory.
template <int kWarps>
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  __syncthreads();  // the scratch may still be read from an earlier sum
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
  PSY_UNROLL
  for (int warp = 0; warp < kWarps; ++warp) total += scratch[warp];
  return total;
}

}  // namespace psy::cuda
