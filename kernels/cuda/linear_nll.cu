// linear_nll
//
//     z[n, v] = cap(scale · y[n] · W[v])      cap(z) = c · tanh(z / c)      nll = lse_v z − z[target]      H
//     = lse_v z − Σ p z
//
// y [N, D] and W [V, D] in bf16, fp16 or fp32; z and sums in fp32. Three kernels:
//   gathered  z of each row's target and options: rows times gathered rows of W, the diagonal of 16 x 16
//   products partials  a tile of rows x kBlockTokens tokens: a log-sum-exp of the block in base 2, kept by
//   each thread for its columns merged    a row's blocks in their order
// The first two multiply the same operands by the same instruction in the same order of D, so a token's logit
// has the same bits in both, and so have equal rows of W: ties are seen as ties. A row's bits hang on its
// values and the head alone.
//
// Base 2: L = log2 e, m = max z · L, d = z · L − m, S = Σ 2^d, T = Σ 2^d d. With all at one m:
//     nll = ln 2 · (log2 S + m − z[target] · L)       H = ln 2 · (log2 S − T / S)
// NaN or +inf among the logits makes S NaN, and only they do; −inf adds nothing.

#include <cmath>

#include "linear_nll.h"
#include "row_sums.h"

namespace psy::cuda {

namespace {

__device__ __forceinline__ float logit(float product, float scale, float soft_cap) {
  const float z = product * scale;
  return soft_cap == 0.0f ? z : soft_cap * tanhf(z / soft_cap);
}

__device__ __forceinline__ std::int64_t known_id(std::int64_t id) { return id < 0 ? 0 : id; }

// Elements k and k + 1 of a row of `size`, zeros beyond its end.
template <typename T>
__device__ __forceinline__ std::uint32_t pair_at(const T* row, int k, int size) {
  const T zero = from_float<T>(0.0f);
  const T low = k < size ? row[k] : zero, high = k + 1 < size ? row[k + 1] : zero;
  return static_cast<std::uint32_t>(reinterpret_cast<const std::uint16_t&>(low)) |
         static_cast<std::uint32_t>(reinterpret_cast<const std::uint16_t&>(high)) << 16;
}

// A warp has 16 rows and one slot: its own rows times the 16 rows of W that they ask for, of which the
// diagonal is wanted.
template <typename T>
__global__ void __launch_bounds__(128) gathered_kernel(HeadProblem problem, float* logits) {
  const T* y = static_cast<const T*>(problem.y);
  const T* lm_head = static_cast<const T*>(problem.lm_head);
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  const int first_row = (static_cast<int>(blockIdx.x) * 4 + static_cast<int>(threadIdx.x / 32)) * 16;
  const int slot = static_cast<int>(blockIdx.y), D = problem.hidden;
  if (first_row >= problem.num_rows) return;  // the whole warp
  const T* rows[2];
  const T* tokens[2];
  PSY_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + g + 8 * half;
    const std::int64_t at = row < problem.num_rows ? row : problem.num_rows - 1;
    rows[half] = y + at * D;
    tokens[half] = lm_head + known_id(problem.ids[at * problem.num_slots + slot]) * D;
  }
  float sums[2][4] = {};
  for (int k = 0; k < D; k += 16) {
    const std::uint32_t a[4] = {pair_at(rows[0], k + 2 * t, D), pair_at(rows[1], k + 2 * t, D),
                                pair_at(rows[0], k + 2 * t + 8, D), pair_at(rows[1], k + 2 * t + 8, D)};
    PSY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t b[2] = {pair_at(tokens[half], k + 2 * t, D),
                                  pair_at(tokens[half], k + 2 * t + 8, D)};
      mma<T>(sums[half], a, b);
    }
  }
  // Row g of the first eight stands in sums[0] at column g, row g + 8 in sums[1] likewise.
  PSY_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + g + 8 * half;
    if (g / 2 == t && row < problem.num_rows) {
      const float z = logit(g % 2 == 0 ? sums[half][2 * half] : sums[half][2 * half + 1], problem.scale,
                            problem.soft_cap);
      logits[static_cast<std::size_t>(row) * static_cast<std::size_t>(problem.num_slots) +
             static_cast<std::size_t>(slot)] = z;
    }
  }
}

template <>
__global__ void __launch_bounds__(128) gathered_kernel<float>(HeadProblem problem, float* logits) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (at >= static_cast<std::int64_t>(problem.num_rows) * problem.num_slots) return;
  const float* row = static_cast<const float*>(problem.y) + at / problem.num_slots * problem.hidden;
  const float* token =
      static_cast<const float*>(problem.lm_head) + known_id(problem.ids[at]) * problem.hidden;
  float sum = 0.0f;
  for (int k = 0; k < problem.hidden; ++k) sum = fmaf(row[k], token[k], sum);
  logits[at] = logit(sum, problem.scale, problem.soft_cap);
}

// bf16 and fp16: tiles of 128 rows x 128 tokens x 32 inner, eight warps of 32 x 64, four tiles of operands on
// their way.
struct MmaTile {
  static constexpr int kRows = 128, kTokens = 128, kInner = 32, kStages = 4, kThreads = 256;
  static constexpr int kStride =
      kInner + 8;  // 80 bytes: the eight rows that ldmatrix reads at a time meet all banks once
  static constexpr int kStageElements = (kRows + kTokens) * kStride;
  static constexpr std::size_t kSharedBytes = std::size_t{kStages} * kStageElements * 2;
};

// Rows [first, first + kRows) x columns [k, k + kInner) of a matrix into shared memory, zeros beyond its
// edges.
template <typename T, bool kAligned, int kRows>
__device__ __forceinline__ void copy_tile(T* to, const T* matrix, std::int64_t first, std::int64_t num_rows,
                                          int k, int width) {
  constexpr int kChunks = kRows * MmaTile::kInner / 8;
  PSY_UNROLL
  for (int chunk = static_cast<int>(threadIdx.x); chunk < kChunks; chunk += MmaTile::kThreads) {
    const int row = chunk / (MmaTile::kInner / 8), column = chunk % (MmaTile::kInner / 8) * 8;
    const bool in_matrix = first + row < num_rows && k + column < width;
    T* place = to + row * MmaTile::kStride + column;
    const T* from = matrix + (in_matrix ? (first + row) * width + k + column : 0);
    if (kAligned) {
      cp_async_16(place, from, in_matrix ? 16 : 0);
    } else {
      PSY_UNROLL
      for (int i = 0; i < 8; ++i)
        place[i] = in_matrix && k + column + i < width ? from[i] : from_float<T>(0.0f);
    }
  }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(MmaTile::kThreads, 1)
    partials_kernel(HeadProblem problem, const float* logits, HeadPartials partials) {
  using Tile = MmaTile;
  PSY_DYNAMIC_SHARED(T, shared);
  const T* y = static_cast<const T*>(problem.y);
  const T* lm_head = static_cast<const T*>(problem.lm_head);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4, t = lane % 4, warp_row = warp / 2 * 32, warp_token = warp % 2 * 64;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * Tile::kRows;
  const int block = static_cast<int>(blockIdx.y), first_token = block * kBlockTokens;
  const int stop_token =
      first_token + kBlockTokens < problem.vocab ? first_token + kBlockTokens : problem.vocab;
  const int num_steps = (problem.hidden + Tile::kInner - 1) / Tile::kInner;
  const int num_tiles = (stop_token - first_token + Tile::kTokens - 1) / Tile::kTokens;

  // Each thread has rows g and g + 8 of two fragments, and keeps its own columns' sums of them over the whole
  // block.
  RowSums sums[4];
  float target_z[4];
  int target[4];
  PSY_UNROLL
  for (int part = 0; part < 4; ++part) {
    const std::int64_t row = first_row + warp_row + part / 2 * 16 + part % 2 * 8 + g;
    const std::int64_t at = (row < problem.num_rows ? row : problem.num_rows - 1) * problem.num_slots;
    target_z[part] = logits[at];
    target[part] = static_cast<int>(problem.ids[at]);
  }

  auto begin_copy = [&](int step) {  // of tile step / num_steps, at inner step step % num_steps
    if (step < num_tiles * num_steps) {
      T* stage = shared + step % Tile::kStages * Tile::kStageElements;
      const int k = step % num_steps * Tile::kInner;
      copy_tile<T, kAligned, Tile::kRows>(stage, y, first_row, problem.num_rows, k, problem.hidden);
      copy_tile<T, kAligned, Tile::kTokens>(stage + Tile::kRows * Tile::kStride, lm_head,
                                            first_token + step / num_steps * Tile::kTokens, problem.vocab, k,
                                            problem.hidden);
    }
    cp_async_commit();  // an empty group where there is nothing left, so that counts stay the same
  };
  PSY_UNROLL
  for (int step = 0; step < Tile::kStages - 1; ++step) begin_copy(step);

  int step = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    float product[2][8][4] = {};
    for (int inner = 0; inner < num_steps; ++inner, ++step) {
      cp_async_wait<Tile::kStages - 2>();
      __syncthreads();  // this step's operands are there, and the last step's may be overwritten
      begin_copy(step + Tile::kStages - 1);
      const T* a_tile = shared + step % Tile::kStages * Tile::kStageElements;
      const T* b_tile = a_tile + Tile::kRows * Tile::kStride;
      PSY_UNROLL
      for (int k = 0; k < Tile::kInner; k += 16) {
        std::uint32_t a[2][4];
        PSY_UNROLL
        for (int part = 0; part < 2; ++part) {
          ldmatrix_x4(a[part],
                      a_tile + (warp_row + part * 16 + lane % 16) * Tile::kStride + k + lane / 16 * 8);
        }
        PSY_UNROLL
        for (int pair = 0; pair < 4; ++pair) {  // 16 tokens at a time
          std::uint32_t b[4];
          ldmatrix_x4(b, b_tile + (warp_token + pair * 16 + lane / 16 * 8 + lane % 8) * Tile::kStride + k +
                             lane / 8 % 2 * 8);
          const std::uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
          PSY_UNROLL
          for (int part = 0; part < 2; ++part) {
            mma<T>(product[part][2 * pair], a[part], left);
            mma<T>(product[part][2 * pair + 1], a[part], right);
          }
        }
      }
    }
    const int start = first_token + tile * Tile::kTokens + warp_token + 2 * t;
    PSY_UNROLL
    for (int part = 0; part < 4; ++part) {
      float z[16];
      int token[16];
      PSY_UNROLL
      for (int i = 0; i < 16; ++i) {
        z[i] = logit(product[part / 2][i / 2][part % 2 * 2 + i % 2], problem.scale, problem.soft_cap);
        token[i] = start + i / 2 * 8 + i % 2;
      }
      sums[part].fold(z, token, stop_token, target_z[part], target[part]);
    }
  }
  // Groups that are not awaited are empty: the last operands were copied before the last step.
  __syncthreads();  // the operands are done with: their memory takes what the left warps know
  auto* left = reinterpret_cast<RowSums*>(shared);
  PSY_UNROLL
  for (int part = 0; part < 4; ++part) {
    sums[part].merge(from_lane(sums[part], 1));
    sums[part].merge(from_lane(sums[part], 2));
    if (warp % 2 == 0 && t == 0) left[warp_row + part / 2 * 16 + part % 2 * 8 + g] = sums[part];
  }
  __syncthreads();
  const int num_blocks = static_cast<int>(gridDim.y);
  PSY_UNROLL
  for (int part = 0; part < 4; ++part) {
    const int in_tile = warp_row + part / 2 * 16 + part % 2 * 8 + g;
    if (warp % 2 == 1 && t == 0 && first_row + in_tile < problem.num_rows) {
      RowSums both = left[in_tile];
      both.merge(sums[part]);
      store(both, partials, static_cast<std::size_t>((first_row + in_tile) * num_blocks + block));
    }
  }
}

// fp32: tiles of 64 rows x 64 tokens x 16 inner by FMA, each thread 4 x 4; a row's sixteen threads stand side
// by side.
struct FmaTile {
  static constexpr int kRows = 64, kTokens = 64, kInner = 16, kThreads = 256;
  static constexpr int kStride = kInner + 1;
  static constexpr std::size_t kSharedBytes = std::size_t{kRows + kTokens} * kStride * 4;
};

__global__ void __launch_bounds__(FmaTile::kThreads, 1)
    partials_fp32_kernel(HeadProblem problem, const float* logits, HeadPartials partials) {
  using Tile = FmaTile;
  PSY_DYNAMIC_SHARED(float, a_tile);
  float* b_tile = a_tile + Tile::kRows * Tile::kStride;
  const float* y = static_cast<const float*>(problem.y);
  const float* lm_head = static_cast<const float*>(problem.lm_head);
  const int across = static_cast<int>(threadIdx.x % 16), down = static_cast<int>(threadIdx.x / 16),
            D = problem.hidden;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * Tile::kRows;
  const int block = static_cast<int>(blockIdx.y), first_token = block * kBlockTokens;
  const int stop_token =
      first_token + kBlockTokens < problem.vocab ? first_token + kBlockTokens : problem.vocab;
  RowSums sums[4];
  float target_z[4];
  int target[4];
  PSY_UNROLL
  for (int part = 0; part < 4; ++part) {
    const std::int64_t row = first_row + 4 * down + part;
    const std::int64_t at = (row < problem.num_rows ? row : problem.num_rows - 1) * problem.num_slots;
    target_z[part] = logits[at];
    target[part] = static_cast<int>(problem.ids[at]);
  }
  for (int start = first_token; start < stop_token; start += Tile::kTokens) {
    float product[4][4] = {};
    for (int k = 0; k < D; k += Tile::kInner) {
      __syncthreads();  // the last step's operands are done with
      for (int at = static_cast<int>(threadIdx.x); at < Tile::kRows * Tile::kInner; at += Tile::kThreads) {
        const int row = at / Tile::kInner, column = at % Tile::kInner;
        const bool in_width = k + column < D;
        a_tile[row * Tile::kStride + column] =
            in_width && first_row + row < problem.num_rows ? y[(first_row + row) * D + k + column] : 0.0f;
        b_tile[row * Tile::kStride + column] =
            in_width && start + row < problem.vocab
                ? lm_head[static_cast<std::int64_t>(start + row) * D + k + column]
                : 0.0f;
      }
      __syncthreads();
      const int steps = D - k < Tile::kInner ? D - k : Tile::kInner;
      for (int column = 0; column < steps; ++column) {
        PSY_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float a = a_tile[(4 * down + i) * Tile::kStride + column];
          PSY_UNROLL
          for (int j = 0; j < 4; ++j) {
            product[i][j] = fmaf(a, b_tile[(across + 16 * j) * Tile::kStride + column], product[i][j]);
          }
        }
      }
    }
    PSY_UNROLL
    for (int part = 0; part < 4; ++part) {
      float z[4];
      int token[4];
      PSY_UNROLL
      for (int j = 0; j < 4; ++j) {
        z[j] = logit(product[part][j], problem.scale, problem.soft_cap);
        token[j] = start + across + 16 * j;
      }
      sums[part].fold(z, token, stop_token, target_z[part], target[part]);
    }
  }
  const int num_blocks = static_cast<int>(gridDim.y);
  PSY_UNROLL
  for (int part = 0; part < 4; ++part) {
    PSY_UNROLL
    for (int bits = 1; bits < 16; bits *= 2) sums[part].merge(from_lane(sums[part], bits));
    const std::int64_t row = first_row + 4 * down + part;
    if (across == 0 && row < problem.num_rows) {
      store(sums[part], partials, static_cast<std::size_t>(row * num_blocks + block));
    }
  }
}

// A thread has a row: its blocks in their order.
__global__ void __launch_bounds__(128)
    merged_kernel(HeadProblem problem, const float* logits, HeadPartials partials, HeadResults results,
                  int num_blocks) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (row >= problem.num_rows) return;
  RowSums sums;
  for (std::int64_t at = row * num_blocks; at < (row + 1) * num_blocks; ++at) {
    RowSums other;
    other.m = partials.m[at];
    other.s = partials.s[at];
    other.t = partials.t[at];
    other.largest = partials.largest[at];
    other.first = partials.first[at];
    other.ahead = partials.ahead[at];
    sums.merge(other);
  }
  const bool usable = sums.s > 0.0f && sums.s < kInfinity;  // neither holds for NaN
  const float nan = __uint_as_float(0x7FC0'0000u), log2_s = log2f(sums.s);
  results.entropy[row] = usable ? (log2_s - sums.t / sums.s) * kLn2 : nan;
  results.argmax[row] = usable ? sums.first : -1;
  results.rank[row] = usable ? sums.ahead : -1;
  for (int slot = 0; slot < problem.num_slots; ++slot) {
    const std::int64_t at = row * problem.num_slots + slot;
    const bool known = usable && problem.ids[at] >= 0;
    results.nll[at] = known ? (log2_s + fmaf(-logits[at], kLog2E, sums.m)) * kLn2 : nan;
  }
}

unsigned tiles_of(std::int64_t count, int size) { return static_cast<unsigned>((count + size - 1) / size); }

template <typename T>
void score(const HeadProblem& problem, float* logits, const HeadPartials& partials, cudaStream_t stream) {
  const unsigned num_blocks = tiles_of(problem.vocab, kBlockTokens);
  PSY_LAUNCH(gathered_kernel<T>,
             dim3(tiles_of(problem.num_rows, 64), static_cast<unsigned>(problem.num_slots)), dim3(128), 0,
             stream, problem, logits);
  const bool aligned = problem.hidden % 8 == 0 && reinterpret_cast<std::uintptr_t>(problem.y) % 16 == 0 &&
                       reinterpret_cast<std::uintptr_t>(problem.lm_head) % 16 == 0;
  auto* kernel = aligned ? partials_kernel<T, true> : partials_kernel<T, false>;
  // Blocks of one column of the grid share W's tokens: x runs over tiles of rows.
  PSY_LAUNCH(kernel, dim3(tiles_of(problem.num_rows, MmaTile::kRows), num_blocks), dim3(MmaTile::kThreads),
             MmaTile::kSharedBytes, stream, problem, static_cast<const float*>(logits), partials);
}

template <>
void score<float>(const HeadProblem& problem, float* logits, const HeadPartials& partials,
                  cudaStream_t stream) {
  const unsigned num_blocks = tiles_of(problem.vocab, kBlockTokens);
  const std::int64_t num_logits = static_cast<std::int64_t>(problem.num_rows) * problem.num_slots;
  PSY_LAUNCH(gathered_kernel<float>, dim3(tiles_of(num_logits, 128)), dim3(128), 0, stream, problem, logits);
  PSY_LAUNCH(partials_fp32_kernel, dim3(tiles_of(problem.num_rows, FmaTile::kRows), num_blocks),
             dim3(FmaTile::kThreads), FmaTile::kSharedBytes, stream, problem,
             static_cast<const float*>(logits), partials);
}

}  // namespace

void linear_nll(const HeadProblem& problem, float* logits, const HeadPartials& partials,
                const HeadResults& results, Operand operand, cudaStream_t stream) {
  if (problem.num_rows == 0) return;
  with_operand(operand, [&](auto type) { score<decltype(type)>(problem, logits, partials, stream); });
  const int num_blocks = static_cast<int>(tiles_of(problem.vocab, kBlockTokens));
  PSY_LAUNCH(merged_kernel, dim3(tiles_of(problem.num_rows, 128)), dim3(128), 0, stream, problem,
             static_cast<const float*>(logits), partials, results, num_blocks);
}

}  // namespace psy::cuda
