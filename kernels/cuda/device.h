// What kernels use of CUDA: the toolkit under nvcc, our emulation of it under a C++ compiler; inline PTX in
// one place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define PSY_UNROLL _Pragma("unroll")
#define PSY_DYNAMIC_SHARED(Type, name)                                 \
  extern __shared__ __align__(1024) unsigned char psy_shared_memory[]; \
  Type* name = reinterpret_cast<Type*>(psy_shared_memory)
#define PSY_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::psy::cuda::launch(kernel, #kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

#else

#include "emulation/cuda_emulation.h"
#include "emulation/matrix_units.h"

#define PSY_UNROLL
#define PSY_DYNAMIC_SHARED(Type, name) \
  Type* name = reinterpret_cast<Type*>(::psy::emulation::self()->block->shared)
#define PSY_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::psy::emulation::launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

#endif

namespace psy::cuda {

#ifdef __CUDACC__

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Launches, after asking for dynamic shared memory beyond the 48 KB that every kernel may have.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const char* name, dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          name);
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), name);
}

#endif

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

// Rounds to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}

// Two neighbours of an operand in one register, the first in its low half.
template <typename T>
__device__ __forceinline__ std::uint32_t packed_pair(float first, float second) {
  static_assert(sizeof(T) == 2);
  const T low = from_float<T>(first), high = from_float<T>(second);
  return static_cast<std::uint32_t>(reinterpret_cast<const std::uint16_t&>(low)) |
         static_cast<std::uint32_t>(reinterpret_cast<const std::uint16_t&>(high)) << 16;
}

// c [16, 8] += a [16, 16] · b [16, 8], fragments of a warp (layouts: emulation/matrix_units.h); sums in fp32.
template <typename T>
__device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);

#ifdef __CUDACC__

template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&c)[4], const std::uint32_t (&a)[4],
                                                   const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma<__half>(float (&c)[4], const std::uint32_t (&a)[4],
                                            const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four matrices of 8 rows of 16 bytes; lane 8·i + r gives the address of row r of matrix i.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// Copies 16 bytes to shared memory without waiting; of the source only valid_bytes are read, the rest becomes
// 0.
__device__ __forceinline__ void cp_async_16(void* to, const void* from, int valid_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid_bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last kGroups groups of this thread's copies are there (for this thread: a barrier
// shows them to others).
template <int kGroups>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// 2^x and the approximate reciprocal and tanh of the special function unit.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else

template <>
inline void mma<__nv_bfloat16>(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  ::psy::emulation::mma_m16n8k16(c, a, b, ::psy::emulation::bf16_value);
}
template <>
inline void mma<__half>(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  ::psy::emulation::mma_m16n8k16(c, a, b, ::psy::emulation::f16_value);
}
inline void ldmatrix_x4(std::uint32_t (&out)[4], const void* row) {
  ::psy::emulation::ldmatrix<4>(out, row, false);
}
inline void ldmatrix_x4_trans(std::uint32_t (&out)[4], const void* row) {
  ::psy::emulation::ldmatrix<4>(out, row, true);
}
inline void cp_async_16(void* to, const void* from, int valid_bytes = 16) {
  ::psy::emulation::begin_copy(to, from, 16, static_cast<std::size_t>(valid_bytes));
}
inline void cp_async_commit() { ::psy::emulation::close_copies(); }
template <int kGroups>
inline void cp_async_wait() {
  ::psy::emulation::wait_for_copies(kGroups);
}
inline float exp2_approx(float x) { return std::exp2(x); }

#endif

}  // namespace psy::cuda
