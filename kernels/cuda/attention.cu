// attention
//
//     s[r, c] = cap(scale · q[r] · k[c]) · log2 e      p = 2^(s − m)      o[r] = Σ p v[c] / Σ p      over the
//     keys that r sees
//
// q [T, H, E], K and V in pages [P, KV heads, 64, E], all bf16, fp16 or fp32; s, sums and o's accumulator in
// fp32, p rounded to the operand type for its product with v. m is the largest s so far (online softmax,
// Milakov and Gimelshein 2018; the walk over blocks is FlashAttention-2's, Dao 2023); a sink begins it and
// adds 1 to Σ p.
//
// A key block is a page. One that a row does not see leaves m, Σ p and o as they are, to the bit: m is finite
// from the start, so p is exactly 0 and the old sums are multiplied by 2^0. So a row's bits depend on its
// keys alone.
//
// bf16 and fp16: four warps of 16 rows. q's fragments stay in registers (heads of 256: in shared memory).
// While a warp multiplies q and k, v is on its way; while it works on p and v, the next k is: one buffer of
// each, so that two blocks fit on a multiprocessor (by their registers; three with heads of 64 on sm_80 and
// sm_90 and with those of 80 on sm_80) and the softmax of one runs beside the products of another.

#include <cmath>

#include "attention.h"

namespace psy::cuda {

namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kLowest = -1e38f;
constexpr float kInfinity = __builtin_huge_valf();

// A score in base 2 from a product of q and k. Rounded here: nvcc may make one FMA of the last product and
// s − m, and that in whole blocks alone, where no mask stands between the two; but a key's p must have the
// same bits in both.
__device__ __forceinline__ float score(float product, const AttentionProblem& problem) {
  if (problem.soft_cap == 0.0f) return __fmul_rn(product, problem.scale * kLog2E);
  return __fmul_rn(tanhf(__fmul_rn(product, problem.scale / problem.soft_cap)), problem.soft_cap * kLog2E);
}

// Which keys of a block a row sees.
struct Sight {
  int first_row, stop_row, first_key;

  __device__ __forceinline__ bool sees(int row, int position, int key, int window) const {
    const int at = first_key + key;
    return row >= first_row && row < stop_row && at <= position && (window == 0 || at > position - window);
  }
};

template <int kHead>
struct MmaShape {
  static constexpr int kThreads = 128;
  static constexpr int kStride =
      kHead + 8;  // 16 bytes more: the eight rows that ldmatrix reads at a time meet all banks once
  static constexpr bool kQueryInRegisters = kHead <= 128;
  static constexpr int kTiles = kQueryInRegisters ? 2 : 3;  // K, V, and q where it stays
  static constexpr std::size_t kSharedBytes = std::size_t{kTiles} * kPageSlots * kStride * 2;
};

// 64 rows of kHead elements to shared memory; `from` is the first row, rows stand row_stride apart; rows at
// or past num_rows become zeros.
template <typename T, int kHead>
__device__ __forceinline__ void copy_rows(T* to, const T* from, std::int64_t row_stride, int num_rows) {
  constexpr int kChunks = kHead / 8;
  for (int chunk = static_cast<int>(threadIdx.x); chunk < kPageSlots * kChunks;
       chunk += MmaShape<kHead>::kThreads) {
    const int row = chunk / kChunks, column = chunk % kChunks * 8;
    const bool there = row < num_rows;
    cp_async_16(to + row * MmaShape<kHead>::kStride + column, from + (there ? row * row_stride + column : 0),
                there ? 16 : 0);
  }
}

template <typename T, int kHead>
__global__ void __launch_bounds__(MmaShape<kHead>::kThreads, 1)
    attention_kernel(AttentionProblem problem, AttentionTables tables) {
  using Shape = MmaShape<kHead>;
  constexpr int kSteps = kHead / 16, kStride = Shape::kStride;
  PSY_DYNAMIC_SHARED(T, k_tile);
  T* v_tile = k_tile + kPageSlots * kStride;
  T* q_tile = Shape::kQueryInRegisters ? v_tile : v_tile + kPageSlots * kStride;
  const int lane = static_cast<int>(threadIdx.x % 32), warp_row = static_cast<int>(threadIdx.x / 32) * 16;
  const int g = lane / 4, t = lane % 4;
  // A tile's heads follow one another, and tiles stand with the most blocks first.
  const int tile = static_cast<int>(blockIdx.x) / problem.num_heads,
            head = static_cast<int>(blockIdx.x) % problem.num_heads;
  const int kv_head = head / (problem.num_heads / problem.num_kv_heads);
  const int first_row = tables.tile_rows[2 * tile], stop_row = tables.tile_rows[2 * tile + 1];
  const int* bounds = tables.bounds + 4 * tile;
  const int start = bounds[0], full_start = bounds[1], full_stop = bounds[2], stop = bounds[3];
  const T* q = static_cast<const T*>(problem.q);
  const auto page_at = [&](const void* pages, int block) {
    return static_cast<const T*>(pages) +
           (static_cast<std::int64_t>(tables.pages[block]) * problem.num_kv_heads + kv_head) * kPageSlots *
               kHead;
  };

  const std::int64_t row_stride = static_cast<std::int64_t>(problem.num_heads) * kHead;
  copy_rows<T, kHead>(q_tile, q + first_row * row_stride + static_cast<std::int64_t>(head) * kHead,
                      row_stride, stop_row - first_row);
  cp_async_commit();
  copy_rows<T, kHead>(k_tile, page_at(problem.k_pages, start), kHead, kPageSlots);
  cp_async_commit();

  int rows[2], positions[2];
  PSY_UNROLL
  for (int half = 0; half < 2; ++half) {
    rows[half] = first_row + warp_row + g + 8 * half;
    positions[half] = rows[half] < stop_row ? static_cast<int>(problem.positions[rows[half]]) : 0;
  }
  float m[2] = {kLowest, kLowest}, total[2] = {0.0f, 0.0f};
  if (problem.sinks != nullptr) {
    const float sink = fmaxf(kLowest, problem.sinks[head] * kLog2E);
    m[0] = m[1] = sink;
    total[0] = total[1] = t == 0 ? 1.0f : 0.0f;  // a row's total is the sum over its four lanes
  }
  float o[kHead / 8][4] = {};

  std::uint32_t q_parts[Shape::kQueryInRegisters ? kSteps : 1][4];
  const T* q_rows = q_tile + (warp_row + lane % 16) * kStride + lane / 16 * 8;
  cp_async_wait<1>();
  __syncthreads();  // q is there
  if (Shape::kQueryInRegisters) {
    PSY_UNROLL
    for (int step = 0; step < (Shape::kQueryInRegisters ? kSteps : 1); ++step)
      ldmatrix_x4(q_parts[step], q_rows + 16 * step);
  }

  for (int block = start; block < stop; ++block) {
    cp_async_wait<0>();
    __syncthreads();  // this block's k is there, and nobody reads the last block's v, nor q where it lay
                      // there
    copy_rows<T, kHead>(v_tile, page_at(problem.v_pages, block), kHead, kPageSlots);
    cp_async_commit();

    float s[8][4] = {};
    PSY_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      std::uint32_t a[4];
      if (Shape::kQueryInRegisters) {
        PSY_UNROLL
        for (int i = 0; i < 4; ++i) a[i] = q_parts[Shape::kQueryInRegisters ? step : 0][i];
      } else {
        ldmatrix_x4(a, q_rows + 16 * step);
      }
      PSY_UNROLL
      for (int pair = 0; pair < 4; ++pair) {  // 16 keys at a time
        std::uint32_t b[4];
        ldmatrix_x4(b,
                    k_tile + (pair * 16 + lane / 16 * 8 + lane % 8) * kStride + step * 16 + lane / 8 % 2 * 8);
        const std::uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
        mma<T>(s[2 * pair], a, left);
        mma<T>(s[2 * pair + 1], a, right);
      }
    }
    cp_async_wait<0>();
    __syncthreads();  // v is there, and nobody reads this block's k
    if (block + 1 < stop) copy_rows<T, kHead>(k_tile, page_at(problem.k_pages, block + 1), kHead, kPageSlots);
    cp_async_commit();

    const bool masked = block < full_start || block >= full_stop;
    const Sight sight{masked ? tables.block_rows[2 * block] : 0,
                      masked ? tables.block_rows[2 * block + 1] : 0,
                      masked ? tables.index[block] * kPageSlots : 0};
    float top[2] = {-kInfinity, -kInfinity};
    PSY_UNROLL
    for (int part = 0; part < 8; ++part) {
      PSY_UNROLL
      for (int i = 0; i < 4; ++i) {
        float value = score(s[part][i], problem);
        if (masked && !sight.sees(rows[i / 2], positions[i / 2], part * 8 + 2 * t + i % 2, problem.window))
          value = -kInfinity;
        s[part][i] = value;
        top[i / 2] = fmaxf(top[i / 2], value);
      }
    }
    float shrink[2];
    PSY_UNROLL
    for (int half = 0; half < 2; ++half) {
      top[half] = fmaxf(top[half], __shfl_xor_sync(0xFFFF'FFFFu, top[half], 1));
      top[half] = fmaxf(top[half], __shfl_xor_sync(0xFFFF'FFFFu, top[half], 2));
      const float new_m = fmaxf(m[half], top[half]);
      shrink[half] = exp2_approx(m[half] - new_m);
      m[half] = new_m;
      total[half] = __fmul_rn(total[half], shrink[half]);  // as in score: no FMA with the first p
    }
    PSY_UNROLL
    for (int part = 0; part < kHead / 8; ++part) {
      PSY_UNROLL
      for (int i = 0; i < 4; ++i) o[part][i] *= shrink[i / 2];
    }
    PSY_UNROLL
    for (int step = 0; step < 4;
         ++step) {  // 16 keys: p's accumulators are the next product's operand as they lie
      std::uint32_t p[4];
      PSY_UNROLL
      for (int part = 0; part < 2; ++part) {
        float values[4];
        PSY_UNROLL
        for (int i = 0; i < 4; ++i) {
          values[i] = exp2_approx(s[2 * step + part][i] - m[i / 2]);
          total[i / 2] += values[i];
        }
        p[2 * part] = packed_pair<T>(values[0], values[1]);
        p[2 * part + 1] = packed_pair<T>(values[2], values[3]);
      }
      PSY_UNROLL
      for (int pair = 0; pair < kHead / 16; ++pair) {  // 16 columns at a time
        std::uint32_t b[4];
        ldmatrix_x4_trans(
            b, v_tile + (step * 16 + lane / 8 % 2 * 8 + lane % 8) * kStride + pair * 16 + lane / 16 * 8);
        const std::uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
        mma<T>(o[2 * pair], p, left);
        mma<T>(o[2 * pair + 1], p, right);
      }
    }
  }

  T* out = static_cast<T*>(problem.o);
  PSY_UNROLL
  for (int half = 0; half < 2; ++half) {
    total[half] += __shfl_xor_sync(0xFFFF'FFFFu, total[half], 1);
    total[half] += __shfl_xor_sync(0xFFFF'FFFFu, total[half], 2);
    if (rows[half] >= stop_row) continue;
    const std::int64_t row_start = rows[half] * row_stride + static_cast<std::int64_t>(head) * kHead;
    PSY_UNROLL
    for (int part = 0; part < kHead / 8; ++part) {
      const std::uint32_t pair =
          packed_pair<T>(o[part][2 * half] / total[half], o[part][2 * half + 1] / total[half]);
      *reinterpret_cast<std::uint32_t*>(out + row_start + part * 8 + 2 * t) = pair;
    }
  }
}

// fp32 by FMA: eight warps, each with two rows of the tile in turn; lanes share out a page's keys, then a
// head's columns.
template <int kHead>
struct FmaShape {
  static constexpr int kThreads = 256, kWarps = 8, kRowsAWarp = kFp32QueryRows / kWarps;
  static constexpr int kKeyStride = kHead + 1;  // lanes read one column of 32 rows: all banks once
  static constexpr int kColumns = (kHead + 31) / 32;
  static constexpr std::size_t kSharedBytes = (std::size_t{kPageSlots} * kKeyStride + kPageSlots * kHead +
                                               kFp32QueryRows * kHead + kWarps * kPageSlots) *
                                              4;
};

template <int kHead>
__global__ void __launch_bounds__(FmaShape<kHead>::kThreads, 1)
    attention_fp32_kernel(AttentionProblem problem, AttentionTables tables) {
  using Shape = FmaShape<kHead>;
  PSY_DYNAMIC_SHARED(float, k_tile);
  float* v_tile = k_tile + kPageSlots * Shape::kKeyStride;
  float* q_tile = v_tile + kPageSlots * kHead;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  float* weights = q_tile + kFp32QueryRows * kHead + warp * kPageSlots;
  const int tile = static_cast<int>(blockIdx.x) / problem.num_heads,
            head = static_cast<int>(blockIdx.x) % problem.num_heads;
  const int kv_head = head / (problem.num_heads / problem.num_kv_heads);
  const int first_row = tables.tile_rows[2 * tile], stop_row = tables.tile_rows[2 * tile + 1];
  const int* bounds = tables.bounds + 4 * tile;
  const float* q = static_cast<const float*>(problem.q);
  const std::int64_t row_stride = static_cast<std::int64_t>(problem.num_heads) * kHead,
                     head_start = std::int64_t{head} * kHead;
  for (int at = static_cast<int>(threadIdx.x); at < kFp32QueryRows * kHead; at += Shape::kThreads) {
    const int row = first_row + at / kHead;
    q_tile[at] = row < stop_row ? q[row * row_stride + head_start + at % kHead] : 0.0f;
  }
  const float sink = problem.sinks == nullptr ? 0.0f : fmaxf(kLowest, problem.sinks[head] * kLog2E);
  float m[Shape::kRowsAWarp], total[Shape::kRowsAWarp], o[Shape::kRowsAWarp][Shape::kColumns] = {};
  PSY_UNROLL
  for (int i = 0; i < Shape::kRowsAWarp; ++i) {
    m[i] = problem.sinks == nullptr ? kLowest : sink;
    total[i] = problem.sinks == nullptr ? 0.0f : 1.0f;
  }

  for (int block = bounds[0]; block < bounds[3]; ++block) {
    const std::int64_t page =
        (static_cast<std::int64_t>(tables.pages[block]) * problem.num_kv_heads + kv_head) * kPageSlots *
        kHead;
    __syncthreads();  // q is there, and nobody reads the last page
    for (int at = static_cast<int>(threadIdx.x); at < kPageSlots * kHead; at += Shape::kThreads) {
      k_tile[at / kHead * Shape::kKeyStride + at % kHead] =
          static_cast<const float*>(problem.k_pages)[page + at];
      v_tile[at] = static_cast<const float*>(problem.v_pages)[page + at];
    }
    __syncthreads();
    const bool masked = block < bounds[1] || block >= bounds[2];
    const Sight sight{tables.block_rows[2 * block], tables.block_rows[2 * block + 1],
                      tables.index[block] * kPageSlots};
    PSY_UNROLL
    for (int i = 0; i < Shape::kRowsAWarp; ++i) {
      const int in_tile = warp * Shape::kRowsAWarp + i, row = first_row + in_tile;
      const int position = row < stop_row ? static_cast<int>(problem.positions[row]) : 0;
      float s[2], top = -kInfinity;
      PSY_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int key = lane + 32 * half;
        float product = 0.0f;
        for (int column = 0; column < kHead; ++column) {
          product = fmaf(q_tile[in_tile * kHead + column], k_tile[key * Shape::kKeyStride + column], product);
        }
        s[half] = score(product, problem);
        if (masked && !sight.sees(row, position, key, problem.window)) s[half] = -kInfinity;
        top = fmaxf(top, s[half]);
      }
      PSY_UNROLL
      for (int bits = 16; bits > 0; bits /= 2) top = fmaxf(top, __shfl_xor_sync(0xFFFF'FFFFu, top, bits));
      const float new_m = fmaxf(m[i], top), shrink = exp2f(m[i] - new_m);
      m[i] = new_m;
      __syncwarp();  // the last row's weights are done with
      const float p[2] = {exp2f(s[0] - new_m), exp2f(s[1] - new_m)};
      weights[lane] = p[0];
      weights[lane + 32] = p[1];
      total[i] = fmaf(total[i], shrink, warp_sum(p[0] + p[1]));
      __syncwarp();
      PSY_UNROLL
      for (int part = 0; part < Shape::kColumns; ++part) {
        const int column = lane + 32 * part;
        if (column >= kHead) continue;
        float sum = 0.0f;
        for (int key = 0; key < kPageSlots; ++key)
          sum = fmaf(weights[key], v_tile[key * kHead + column], sum);
        o[i][part] = fmaf(o[i][part], shrink, sum);
      }
    }
  }
  PSY_UNROLL
  for (int i = 0; i < Shape::kRowsAWarp; ++i) {
    const int row = first_row + warp * Shape::kRowsAWarp + i;
    if (row >= stop_row) continue;
    PSY_UNROLL
    for (int part = 0; part < Shape::kColumns; ++part) {
      const int column = lane + 32 * part;
      if (column < kHead)
        static_cast<float*>(problem.o)[row * row_stride + head_start + column] = o[i][part] / total[i];
    }
  }
}

template <int kHead>
void attend(const AttentionProblem& problem, const AttentionTables& tables, Operand operand,
            cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(tables.num_tiles * problem.num_heads));
  if (operand == Operand::kFp32) {
    PSY_LAUNCH(attention_fp32_kernel<kHead>, grid, dim3(FmaShape<kHead>::kThreads),
               FmaShape<kHead>::kSharedBytes, stream, problem, tables);
    return;
  }
  auto* kernel =
      operand == Operand::kBf16 ? attention_kernel<__nv_bfloat16, kHead> : attention_kernel<__half, kHead>;
  PSY_LAUNCH(kernel, grid, dim3(MmaShape<kHead>::kThreads), MmaShape<kHead>::kSharedBytes, stream, problem,
             tables);
}

}  // namespace

bool has_head_dim(std::int64_t head_dim) {
  return head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128 || head_dim == 256;
}

void attention(const AttentionProblem& problem, const AttentionTables& tables, Operand operand,
               cudaStream_t stream) {
  if (tables.num_tiles == 0) return;
  switch (problem.head_dim) {
    case 64:
      return attend<64>(problem, tables, operand, stream);
    case 80:
      return attend<80>(problem, tables, operand, stream);
    case 96:
      return attend<96>(problem, tables, operand, stream);
    case 128:
      return attend<128>(problem, tables, operand, stream);
    case 256:
      return attend<256>(problem, tables, operand, stream);
    default:
      throw std::runtime_error("heads of " + std::to_string(problem.head_dim) + " have no kernel");
  }
}

}  // namespace psy::cuda
