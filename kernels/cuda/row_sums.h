// What linear_nll's kernels know of a row's logits so far: an online log-sum-exp in base 2, the arg max, the
// rank.
#pragma once

#include <cstddef>

#include "linear_nll.h"

namespace psy::cuda {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;
constexpr float kLowest = -1e38f;  // below every m that occurs; finite, so that differences are
constexpr float kInfinity = __builtin_huge_valf();
constexpr int kNoToken = 0x7FFF'FFFF;

// What a thread, a warp or a block of tokens knows of a row.
struct RowSums {
  float m = kLowest, s = 0.0f, t = 0.0f, largest = -kInfinity;
  int first = kNoToken, ahead = 0;

  // kCount logits of ascending tokens more; those at or past num_tokens are not there.
  template <int kCount>
  __device__ __forceinline__ void fold(const float (&z)[kCount], const int (&token)[kCount], int num_tokens,
                                       float target_z, int target) {
    float top = -kInfinity;
    PSY_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (token[i] >= num_tokens) continue;
      top = fmaxf(top, z[i]);  // NaN left out: s tells of it
      if (z[i] > largest || first == kNoToken) {
        largest = z[i];
        first = token[i];
      }
      ahead += z[i] > target_z || (z[i] == target_z && token[i] < target) ? 1 : 0;
    }
    const float new_m = fmaxf(m, top * kLog2E), step = m - new_m, shrink = exp2_approx(step);
    t = fmaf(s, step, t) * shrink;
    s *= shrink;
    m = new_m;
    PSY_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (token[i] >= num_tokens) continue;
      const float d = fmaf(z[i], kLog2E, -m), p = exp2_approx(d);
      s += p;
      t = fmaf(p, fmaxf(d, kLowest), t);  // 0 · −inf would be NaN
    }
  }

  // Another part's; the same bits whichever of the two is `this`.
  __device__ __forceinline__ void merge(const RowSums& other) {
    const float new_m = fmaxf(m, other.m);
    const float mine = m - new_m, theirs = other.m - new_m;
    const float shrink = exp2_approx(mine), their_shrink = exp2_approx(theirs);
    t = fmaf(s, mine, t) * shrink + fmaf(other.s, theirs, other.t) * their_shrink;
    s = s * shrink + other.s * their_shrink;
    m = new_m;
    if (other.largest > largest || (other.largest == largest && other.first < first) || first == kNoToken) {
      largest = other.largest;
      first = other.first;
    }
    ahead += other.ahead;
  }
};

__device__ __forceinline__ RowSums from_lane(const RowSums& sums, int bits) {
  RowSums other;
  other.m = __shfl_xor_sync(0xFFFF'FFFFu, sums.m, bits);
  other.s = __shfl_xor_sync(0xFFFF'FFFFu, sums.s, bits);
  other.t = __shfl_xor_sync(0xFFFF'FFFFu, sums.t, bits);
  other.largest = __shfl_xor_sync(0xFFFF'FFFFu, sums.largest, bits);
  other.first = __shfl_xor_sync(0xFFFF'FFFFu, sums.first, bits);
  other.ahead = __shfl_xor_sync(0xFFFF'FFFFu, sums.ahead, bits);
  return other;
}

__device__ __forceinline__ void store(const RowSums& sums, const HeadPartials& partials, std::size_t at) {
  partials.m[at] = sums.m;
  partials.s[at] = sums.s;
  partials.t[at] = sums.t;
  partials.largest[at] = sums.largest;
  partials.first[at] = sums.first;
  partials.ahead[at] = sums.ahead;
}

}  // namespace psy::cuda
