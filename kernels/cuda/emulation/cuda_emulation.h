// CUDA C++ on a CPU, as far as our kernels use it: the same source, compiled by a C++17 compiler, run a fiber
// a thread.
//
// A block runs on one thread of the host, its CUDA threads as fibers that change only where they wait: at a
// barrier, in a warp's collective, at their end. In which order warps and lanes go on, and blocks begin, is
// drawn from a seed. Shared memory begins as NaN. An asynchronous copy happens when it is waited for; from
// its beginning NaN stands there. README.md says what is not modelled.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "launching.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (::psy::emulation::self()->thread_idx)
#define blockIdx (::psy::emulation::self()->block->block_idx)
#define blockDim (::psy::emulation::self()->block->dims)
#define gridDim (::psy::emulation::self()->block->grid)

inline void __syncthreads() { ::psy::emulation::barrier(); }
// Orders the memory of the warp's lanes, as no other collective does.
inline void __syncwarp(unsigned mask = 0xFFFF'FFFFu) {
  using namespace psy::emulation;
  Thread* thread = self();
  char* order = nullptr;
  {
    const Untraced untraced;
    order = &thread->block->warp_order[thread->warp][thread->with_mask(mask).count & 1];
  }
  publish(order);
  (void)gathered("__syncwarp", mask, 0);
  observe(order);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  return ::psy::emulation::shuffled("__shfl_sync", mask, value, from, width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  const int from = static_cast<int>(::psy::emulation::self()->lane) ^ bits;
  return ::psy::emulation::shuffled("__shfl_xor_sync", mask, value, from);
}
// The last `by` lanes keep what they have.
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = ::psy::emulation::self()->lane;
  if (by >= 32) {
    throw std::runtime_error("emulation: __shfl_down_sync by " + std::to_string(by) +
                             " lanes; 0 to 31 can be");
  }
  return ::psy::emulation::shuffled("__shfl_down_sync", mask, value,
                                    static_cast<int>(lane + by < 32 ? lane + by : lane));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto all = ::psy::emulation::gathered("__ballot_sync", mask, predicate);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    bits |= (mask >> lane & 1) != 0 && all[lane] != 0 ? 1u << lane : 0u;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
// A product that no compiler may fuse with a sum: here none is fused (-ffp-contract=off).
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __expf(float value) { return std::exp(value); }
inline float __fdividef(float a, float b) { return a / b; }
using std::max;
using std::min;
