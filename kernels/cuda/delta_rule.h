// The short convolution (short_convolution.cu) and the gated delta rule behind it (delta_rule.cu). Device
// pointers, row-major.
#pragma once

#include "device.h"

namespace psy::cuda {

constexpr int kChunkRows = 64;
constexpr int kMostDeltaDim = 256;
constexpr int kMostTaps = 64;

struct DeltaSizes {
  int num_key_heads, num_value_heads, key_dim, value_dim;
  __host__ __device__ int channels() const {
    return 2 * num_key_heads * key_dim + num_value_heads * value_dim;
  }
};

// y[r] = silu(Σ_w taps[w] · x[path[w, r]]) (path −1: nothing); then q / |q| / √E and k / |k|.
void short_convolution(const float* x /*[rows, C]*/, const std::int32_t* path /*[taps, rows]*/,
                       const float* taps /*[taps, C]*/, float* y /*[rows, C]*/, std::int64_t num_rows,
                       int num_taps, DeltaSizes sizes, cudaStream_t stream);

// What every group of a plan reads (psyfast/ops/gpu/kernel_set.py, DeltaPlan).
struct DeltaProblem {
  const float* qkv;            // [rows, C], from short_convolution
  const float* log_decay;      // [rows, H]
  const float* write;          // [rows, H]
  const std::int32_t* rows;    // [chunks, 64]
  const std::int32_t* chunks;  // [chunks, 2]
  const std::int32_t* pieces;  // [pieces, 3]
  float* states;               // [kept, H, E, V]
  float* o;                    // [rows, H, V]
};

struct DeltaGroup {
  int first_piece, num_pieces, first_chunk, num_chunks;
};

// What is kept of a group's chunks between the two kernels.
struct DeltaScratch {
  float* w;       // [chunks, H, 64, E]
  float* u0;      // [chunks, H, 64, V]
  float* mixing;  // [chunks, H, 64, 64]
  float* fading;  // [chunks, H, 2, 64]: exp(c), exp(c₆₃ − c)
};

void delta_rule(const DeltaProblem& problem, const DeltaScratch& scratch, DeltaGroup group, DeltaSizes sizes,
                cudaStream_t stream);

}  // namespace psy::cuda
