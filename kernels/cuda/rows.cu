// norm_rows, add_rows, gated, heads, copy_slots: bound by memory, so each reads its rows once from it and
// writes once.
//
// A block has a row; its threads take neighbouring columns, four at a time where the rows are aligned to 16
// bytes. A second pass over a row finds it in the first-level cache.

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

__device__ __forceinline__ float normed(float value, float rstd, const RowNorm& norm, int column) {
  return norm.weight == nullptr ? value : value * rstd * (norm.weight[column] + norm.offset);
}

// 1 / sqrt(mean(x²) + eps) of a row of the block's, bias added first.
__device__ __forceinline__ float row_rstd(const float* row, const float* bias, int width, float eps,
                                          float* scratch) {
  float sum = 0.0f;
  for (int column = static_cast<int>(threadIdx.x); column < width; column += kThreads) {
    const float value = row[column] + (bias == nullptr ? 0.0f : bias[column]);
    sum += value * value;
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
      const Four values = *reinterpret_cast<const Four*>(row + column);
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

__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(float* x, const float* y, const float* bias, int width, RowNorm norm) {
  PSY_DYNAMIC_SHARED(float, scratch);
  const std::size_t start = static_cast<std::size_t>(blockIdx.x) * static_cast<std::size_t>(width);
  const float* row = y + start;
  float rstd = 1.0f;
  if (norm.weight != nullptr) rstd = row_rstd(row, bias, width, norm.eps, scratch);
  for (int column = static_cast<int>(threadIdx.x); column < width; column += kThreads) {
    const float value = row[column] + (bias == nullptr ? 0.0f : bias[column]);
    x[start + column] += normed(value, rstd, norm, column);
  }
}

// silu x / (1 + e^−x); gelu x · Φ(x); its tanh form x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks
// and Gimpel 2016).
template <Activation kActivation>
__device__ __forceinline__ float activated(float x) {
  if (kActivation == Activation::kSilu) return x / (1.0f + expf(-x));
  if (kActivation == Activation::kGelu) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
  return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
}

template <typename T, Activation kActivation>
__global__ void __launch_bounds__(kThreads)
    gated_kernel(const float* gate_up, T* h, std::int64_t num_rows, int width) {
  const std::int64_t total = num_rows * width;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < total;
       at += step) {
    const std::int64_t row = at / width, column = at % width;
    const float* gate = gate_up + row * 2 * width + column;
    h[at] = from_float<T>(activated<kActivation>(gate[0]) * gate[width]);
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

template <typename T>
__global__ void __launch_bounds__(kThreads)
    copy_slots_kernel(T* k_pages, T* v_pages, const std::int64_t* runs, int num_kv_heads, int head_dim) {
  const std::int64_t* run = runs + 4 * static_cast<std::int64_t>(blockIdx.x);
  T* pages = blockIdx.z == 0 ? k_pages : v_pages;
  const std::int64_t a_head = std::int64_t{64} * head_dim;
  const T* from = pages + (run[0] * num_kv_heads + blockIdx.y) * a_head;
  T* to = pages + (run[1] * num_kv_heads + blockIdx.y) * a_head;
  const std::int64_t stop = run[3] * head_dim;
  for (std::int64_t at = run[2] * head_dim + threadIdx.x; at < stop; at += kThreads) to[at] = from[at];
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
  PSY_LAUNCH(add_rows_kernel, dim3(blocks_of(num_rows)), dim3(kThreads), kScratchBytes, stream, x, y, bias,
             width, norm);
}

void gated(const float* gate_up, void* h, std::int64_t num_rows, int width, Activation activation,
           Operand operand, cudaStream_t stream) {
  const std::int64_t total = num_rows * width;
  if (total == 0) return;
  const std::int64_t wanted = (total + kThreads - 1) / kThreads;
  const auto blocks = static_cast<unsigned>(wanted < 8192 ? wanted : 8192);
  with_operand(operand, [&](auto type) {
    using T = decltype(type);
    auto* kernel = activation == Activation::kSilu   ? gated_kernel<T, Activation::kSilu>
                   : activation == Activation::kGelu ? gated_kernel<T, Activation::kGelu>
                                                     : gated_kernel<T, Activation::kGeluTanh>;
    PSY_LAUNCH(kernel, dim3(blocks), dim3(kThreads), 0, stream, gate_up, static_cast<T*>(h), num_rows, width);
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
