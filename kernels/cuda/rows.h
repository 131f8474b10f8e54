// The parts of attn_in, attn_out and mlp around the matrix products, a row at a time; device pointers,
// row-major.
#pragma once

#include "operand.h"

namespace psy::cuda {

// RMSNorm: x / sqrt(mean(x²) + eps) · (weight + offset); no norm where weight is null.
struct RowNorm {
  const float* weight;  // [width]
  float eps;
  float offset;  // 1 with the unit offset, else 0
};

// y = norm(x), rounded to the operand type.
void norm_rows(const float* x /*[rows, width]*/, void* y /*[rows, width]*/, std::int64_t num_rows, int width,
               RowNorm norm, Operand operand, cudaStream_t stream);

// x += norm(y + bias), in place.
void add_rows(float* x /*[rows, width]*/, const float* y /*[rows, width]*/,
              const float* bias /*[width] or null*/, std::int64_t num_rows, int width, RowNorm norm,
              cudaStream_t stream);

enum class Activation { kSilu = 0, kGelu = 1, kGeluTanh = 2 };

// h = act(gate) · up.
void gated(const float* gate_up /*[rows, 2 · width]*/, void* h /*[rows, width]*/, std::int64_t num_rows,
           int width, Activation activation, Operand operand, cudaStream_t stream);

struct Heads {
  int num_heads, num_kv_heads, head_dim;
  int num_pairs;  // that are rotated, (i, i + num_pairs); 0: none
  bool norm_together;
};

// q, k and v of a row: bias, norms, rotary embedding; q is returned, k and v go into their slots of pages
// [pages, KV heads, 64, head_dim].
void heads(const float* qkv /*[rows, (H + 2K) · E]*/, const float* bias /*or null*/, RowNorm q_norm,
           RowNorm k_norm, const float* cos /*[positions, pairs]*/, const float* sin,
           const std::int64_t* positions /*[rows]*/, const std::int64_t* slots /*[rows], null where K is 0*/,
           void* q /*[rows, H, E]*/, void* k_pages, void* v_pages, std::int64_t num_rows, Heads shape,
           Operand operand, cudaStream_t stream);

// Slots [first, last) of a page to the same place of another, K and V; runs [runs, 4]: page from, page to,
// first, last.
void copy_slots(void* k_pages, void* v_pages, const std::int64_t* runs, std::int64_t num_runs,
                int num_kv_heads, int head_dim, Operand operand, cudaStream_t stream);

}  // namespace psy::cuda
