// norm_rows, add_rows, gated, heads, copy_slots: bound by memory, so each reads its rows once from it and
// writes once.
//
// A block has a row (gated: threads have columns of any, copy_slots: a block a run of slots of a head); its
// threads take neighbouring columns, 16 bytes at a time where all rows are aligned to them. A second pass
// over a row finds it in the first-level cache. Either way a column's bits are the same: where nvcc could
// fuse a product and a sum, it is said here which are.

#include <cmath>

#include "rows.h"

namespace psy::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct alignas(16) Four {
  float at[4];
};
template <typename T>
struct alignas(4 * sizeof(T)) FourOf {
  T at[4];
};
struct alignas(16) SixteenBytes {
  std::uint32_t at[4];
};

__device__ __forceinline__ Four four_at(const float* aligned) {
  return *reinterpret_cast<const Four*>(aligned);
}
__device__ __forceinline__ Four four_or_zeros(const float* aligned, int column) {
  return aligned == nullptr ? Four{} : four_at(aligned + column);
}

__device__ __forceinline__ float normed(float value, float rstd, const RowNorm& norm, int column) {
  return norm.weight == nullptr ? value : value * rstd * (norm.weight[column] + norm.offset);
}

// 1 / sqrt(mean(x²) + eps) of a row of the block's, bias added first.
__device__ __forceinline__ float row_rstd(const float* row, const float* bias, int width, float eps,
                                          float* scratch) {
  float sum = 0.0f;
  for (int column = static_cast<int>(threadIdx.x); column < width; column += kThreads) {
    const float value = row[column] + (bias == nullptr ? 0.0f : bias[column]);
    sum = fmaf(value, value, sum);
  }
  return rsqrtf(block_sum<kWarps>(sum, scratch) / static_cast<float>(width) + eps);
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) norm_rows_kernel(const float* x, T* y, int width, RowNorm norm) {
  PSY_DYNAMIC_SHARED(float, scratch);
  const std::size_t start = static_cast<std::size_t>(blockIdx.x) * static_cast<std::size_t>(width);
  const float* row = x + start;
  float rstd = 1.0f;
  if (norm.weight != nullptr) rstd = row_rstd(row, nullptr, width, norm.eps, scratch);
  if (kAligned) {
    for (int column = 4 * static_cast<int>(threadIdx.x); column < width; column += 4 * kThreads) {
      const Four values = four_at(row + column);
      FourOf<T> out;
      PSY_UNROLL
      for (int i = 0; i < 4; ++i) out.at[i] = from_float<T>(normed(values.at[i], rstd, norm, column + i));
      *reinterpret_cast<FourOf<T>*>(y + start + column) = out;
    }
  } else {
    for (int column = static_cast<int>(threadIdx.x); column < width; column += kThreads) {
      y[start + column] = from_float<T>(normed(row[column], rstd, norm, column));
    }
  }
}

// What add_rows adds to a column of x; no FMA with x.
__device__ __forceinline__ float addend(float y, float bias, float rstd, float weight, const RowNorm& norm) {
  const float value = y + bias;
  return norm.weight == nullptr ? value : __fmul_rn(value * rstd, weight + norm.offset);
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(float* x, const float* y, const float* bias, int width, RowNorm norm) {
  PSY_DYNAMIC_SHARED(float, scratch);
  const std::size_t start = static_cast<std::size_t>(blockIdx.x) * static_cast<std::size_t>(width);
  const float* row = y + start;
  float rstd = 1.0f;
  if (norm.weight != nullptr) rstd = row_rstd(row, bias, width, norm.eps, scratch);
  if (kAligned) {
    for (int column = 4 * static_cast<int>(threadIdx.x); column < width; column += 4 * kThreads) {
      const Four values = four_at(row + column), biases = four_or_zeros(bias, column),
                 weights = four_or_zeros(norm.weight, column);
      Four sums = four_at(x + start + column);
      PSY_UNROLL
      for (int i = 0; i < 4; ++i) sums.at[i] += addend(values.at[i], biases.at[i], rstd, weights.at[i], norm);
      *reinterpret_cast<Four*>(x + start + column) = sums;
    }
  } else {
    for (int column = static_cast<int>(threadIdx.x); column < width; column += kThreads) {
      x[start + column] += addend(row[column], bias == nullptr ? 0.0f : bias[column], rstd,
                                  norm.weight == nullptr ? 0.0f : norm.weight[column], norm);
    }
  }
}

// silu x / (1 + e^−x); gelu x · Φ(x); its tanh form x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks
// and Gimpel 2016).
template <Activation kActivation>
__device__ __forceinline__ float activated(float x) {
  if (kActivation == Activation::kSilu) return x / (1.0f + expf(-x));
  if (kActivation == Activation::kGelu) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
  return 0.5f * x * (1.0f + tanhf(0.79788456f * fmaf(0.044715f * x * x, x, x)));
}

template <typename T, Activation kActivation, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    gated_kernel(const float* gate_up, T* h, std::int64_t num_rows, int width) {
  constexpr int kColumns = kAligned ? 4 : 1;
  const std::int64_t total = num_rows * width;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads * kColumns;
  for (std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kColumns;
       at < total; at += step) {
    const std::int64_t row = at / width, column = at % width;
    const float* gate = gate_up + row * 2 * width + column;
    if (kAligned) {
      const Four gates = four_at(gate), ups = four_at(gate + width);
      FourOf<T> out;
      PSY_UNROLL
      for (int i = 0; i < 4; ++i) out.at[i] = from_float<T>(activated<kActivation>(gates.at[i]) * ups.at[i]);
      *reinterpret_cast<FourOf<T>*>(h + at) = out;
    } else {
      h[at] = from_float<T>(activated<kActivation>(gate[0]) * gate[width]);
    }
  }
}

// Column `column` of a head after bias and norm.
__device__ __forceinline__ float head_value(const float* head, const float* bias, const RowNorm& norm,
                                            const float* weight, float rstd, int column) {
  const float value = head[column] + (bias == nullptr ? 0.0f : bias[column]);
  return weight == nullptr ? value : value * rstd * (weight[column] + norm.offset);
}

// A warp has a head: `out` gets its columns, rotated where cos is not null.
template <typename T>
__device__ __forceinline__ void finish_head(const float* head, const float* bias, const RowNorm& norm,
                                            const float* weight, bool own_norm, float rstd, const float* cos,
                                            const float* sin, int num_pairs, int width, T* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (own_norm) {
    float sum = 0.0f;
    for (int column = lane; column < width; column += 32) {
      const float value = head[column] + (bias == nullptr ? 0.0f : bias[column]);
      sum += value * value;
    }
    rstd = rsqrtf(warp_sum(sum) / static_cast<float>(width) + norm.eps);
  }
  for (int column = lane; column < width; column += 32) {
    float value = head_value(head, bias, norm, weight, rstd, column);
    if (column < 2 * num_pairs) {
      const bool first = column < num_pairs;
      const int pair = first ? column : column - num_pairs;
      const float other = head_value(head, bias, norm, weight, rstd, first ? column + num_pairs : pair);
      value = first ? value * cos[pair] - other * sin[pair] : value * cos[pair] + other * sin[pair];
    }
    out[column] = from_float<T>(value);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    heads_kernel(const float* qkv, const float* bias, RowNorm q_norm, RowNorm k_norm, const float* cos,
                 const float* sin, const std::int64_t* positions, const std::int64_t* slots, T* q, T* k_pages,
                 T* v_pages, Heads shape) {
  PSY_DYNAMIC_SHARED(float, scratch);
  const int H = shape.num_heads, K = shape.num_kv_heads, E = shape.head_dim;
  const std::int64_t row = blockIdx.x;
  const float* values = qkv + row * (H + 2 * K) * E;
  float q_rstd = 1.0f, k_rstd = 1.0f;
  if (shape.norm_together) {
    if (H > 0 && q_norm.weight != nullptr) q_rstd = row_rstd(values, bias, H * E, q_norm.eps, scratch);
    if (K > 0 && k_norm.weight != nullptr) {
      k_rstd = row_rstd(values + H * E, bias == nullptr ? nullptr : bias + H * E, K * E, k_norm.eps, scratch);
    }
  }
  const float* row_cos = shape.num_pairs == 0 ? nullptr : cos + positions[row] * shape.num_pairs;
  const float* row_sin = shape.num_pairs == 0 ? nullptr : sin + positions[row] * shape.num_pairs;
  for (int head = static_cast<int>(threadIdx.x / 32); head < H + 2 * K; head += kWarps) {
    const float* from = values + head * E;
    const float* head_bias = bias == nullptr ? nullptr : bias + head * E;
    if (head < H) {
      const float* weight =
          q_norm.weight == nullptr || !shape.norm_together ? q_norm.weight : q_norm.weight + head * E;
      finish_head(from, head_bias, q_norm, weight, weight != nullptr && !shape.norm_together, q_rstd, row_cos,
                  row_sin, shape.num_pairs, E, q + (row * H + head) * E);
      continue;
    }
    const bool is_key = head < H + K;
    const int kv_head = is_key ? head - H : head - H - K;
    const std::int64_t page = slots[row] / 64, slot = slots[row] % 64;
    T* out = (is_key ? k_pages : v_pages) + ((page * K + kv_head) * 64 + slot) * E;
    if (is_key) {
      const float* weight =
          k_norm.weight == nullptr || !shape.norm_together ? k_norm.weight : k_norm.weight + kv_head * E;
      finish_head(from, head_bias, k_norm, weight, weight != nullptr && !shape.norm_together, k_rstd, row_cos,
                  row_sin, shape.num_pairs, E, out);
    } else {
      finish_head<T>(from, head_bias, k_norm, nullptr, false, 1.0f, nullptr, nullptr, 0, E, out);
    }
  }
}

// A head's slots begin at a multiple of 128 bytes from where the pages begin; a run of them may begin and end
// inside of 16 bytes, which are then copied by elements.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    copy_slots_kernel(T* k_pages, T* v_pages, const std::int64_t* runs, int num_kv_heads, int head_dim) {
  const std::int64_t* run = runs + 4 * static_cast<std::int64_t>(blockIdx.x);
  T* pages = blockIdx.z == 0 ? k_pages : v_pages;
  const std::int64_t a_head = std::int64_t{64} * head_dim;
  const T* from = pages + (run[0] * num_kv_heads + blockIdx.y) * a_head;
  T* to = pages + (run[1] * num_kv_heads + blockIdx.y) * a_head;
  constexpr int kElements = 16 / sizeof(T);
  const bool aligned = reinterpret_cast<std::uintptr_t>(pages) % 16 == 0;
  const int start = static_cast<int>(run[2]) * head_dim, stop = static_cast<int>(run[3]) * head_dim;
  const int first = start / kElements * kElements + static_cast<int>(threadIdx.x) * kElements;
  for (int at = first; at < stop; at += kThreads * kElements) {
    if (aligned && at >= start && at + kElements <= stop) {
      *reinterpret_cast<SixteenBytes*>(to + at) = *reinterpret_cast<const SixteenBytes*>(from + at);
    } else {
      PSY_UNROLL
      for (int i = at; i < at + kElements; ++i) {
        if (i >= start && i < stop) to[i] = from[i];
      }
    }
  }
}

bool aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

unsigned blocks_of(std::int64_t num_rows) { return static_cast<unsigned>(num_rows); }

constexpr std::size_t kScratchBytes = kWarps * sizeof(float);

}  // namespace

void norm_rows(const float* x, void* y, std::int64_t num_rows, int width, RowNorm norm, Operand operand,
               cudaStream_t stream) {
  if (num_rows == 0) return;
  with_operand(operand, [&](auto type) {
    using T = decltype(type);
    const bool fours = width % 4 == 0 && aligned(x, 16) && aligned(y, 4 * sizeof(T));
    auto* kernel = fours ? norm_rows_kernel<T, true> : norm_rows_kernel<T, false>;
    PSY_LAUNCH(kernel, dim3(blocks_of(num_rows)), dim3(kThreads), kScratchBytes, stream, x,
               static_cast<T*>(y), width, norm);
  });
}

void add_rows(float* x, const float* y, const float* bias, std::int64_t num_rows, int width, RowNorm norm,
              cudaStream_t stream) {
  if (num_rows == 0) return;
  const bool fours =
      width % 4 == 0 && aligned(x, 16) && aligned(y, 16) && aligned(bias, 16) && aligned(norm.weight, 16);
  auto* kernel = fours ? add_rows_kernel<true> : add_rows_kernel<false>;
  PSY_LAUNCH(kernel, dim3(blocks_of(num_rows)), dim3(kThreads), kScratchBytes, stream, x, y, bias, width,
             norm);
}

template <typename T, bool kAligned>
void launch_gated(const float* gate_up, T* h, std::int64_t num_rows, int width, Activation activation,
                  cudaStream_t stream) {
  constexpr int kColumns = kAligned ? 4 : 1;
  const std::int64_t wanted = (num_rows * width / kColumns + kThreads - 1) / kThreads;
  const auto blocks = static_cast<unsigned>(wanted < 8192 ? wanted : 8192);
  auto* kernel = activation == Activation::kSilu   ? gated_kernel<T, Activation::kSilu, kAligned>
                 : activation == Activation::kGelu ? gated_kernel<T, Activation::kGelu, kAligned>
                                                   : gated_kernel<T, Activation::kGeluTanh, kAligned>;
  PSY_LAUNCH(kernel, dim3(blocks), dim3(kThreads), 0, stream, gate_up, h, num_rows, width);
}

void gated(const float* gate_up, void* h, std::int64_t num_rows, int width, Activation activation,
           Operand operand, cudaStream_t stream) {
  if (num_rows == 0 || width == 0) return;
  with_operand(operand, [&](auto type) {
    using T = decltype(type);
    const bool fours = width % 4 == 0 && aligned(gate_up, 16) && aligned(h, 4 * sizeof(T));
    auto* launch_it = fours ? launch_gated<T, true> : launch_gated<T, false>;
    launch_it(gate_up, static_cast<T*>(h), num_rows, width, activation, stream);
  });
}

void heads(const float* qkv, const float* bias, RowNorm q_norm, RowNorm k_norm, const float* cos,
           const float* sin, const std::int64_t* positions, const std::int64_t* slots, void* q, void* k_pages,
           void* v_pages, std::int64_t num_rows, Heads shape, Operand operand, cudaStream_t stream) {
  if (num_rows == 0) return;
  with_operand(operand, [&](auto type) {
    using T = decltype(type);
    PSY_LAUNCH(heads_kernel<T>, dim3(blocks_of(num_rows)), dim3(kThreads), kScratchBytes, stream, qkv, bias,
               q_norm, k_norm, cos, sin, positions, slots, static_cast<T*>(q), static_cast<T*>(k_pages),
               static_cast<T*>(v_pages), shape);
  });
}

void copy_slots(void* k_pages, void* v_pages, const std::int64_t* runs, std::int64_t num_runs,
                int num_kv_heads, int head_dim, Operand operand, cudaStream_t stream) {
  if (num_runs == 0) return;
  with_operand(operand, [&](auto type) {
    using T = decltype(type);
    PSY_LAUNCH(copy_slots_kernel<T>, dim3(blocks_of(num_runs), static_cast<unsigned>(num_kv_heads), 2),
               dim3(kThreads), 0, stream, static_cast<T*>(k_pages), static_cast<T*>(v_pages), runs,
               num_kv_heads, head_dim);
  });
}

}  // namespace psy::cuda
