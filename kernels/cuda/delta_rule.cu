// delta_rule: the gated delta rule along every path of a forest, in chunks of 64 positions at fixed borders
//
// For each value head a state S [E, V] goes along a path (psyfast/ops/reference_delta.py has the equations).
// With c the running sum of log decay inside a chunk, D[i, j] = exp(c_i − c_j) for j ≤ i and
// A = tril(β K Kᵀ ∘ D, −1), what needs no state is made for all chunks at once:
//     (1 + A) [U₀ | W] = β [V | exp(c) K]      M = Q Kᵀ ∘ D                        chunk_kernel
// and the rest from chunk to chunk:
//     U = U₀ − W S     O = exp(c) Q S + M U     S ← exp(c₆₃) S + (exp(c₆₃ − c) K)ᵀ U    state_kernel
//
// fp32, but the running sum is taken in fp64 and kept as two fp32: differences of sums in the thousands must
// stay exact. A triangular product leaves out what is above the diagonal, so that a later row's NaN never
// reaches an earlier one. A row stands at one place of one chunk: its bits hang on its path alone.

#include <cmath>

#include "delta_rule.h"
#include "operand.h"

namespace psy::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kSquare = kChunkRows * kChunkRows;

struct alignas(16) Four {
  float at[4];
};
struct alignas(8) Two {
  float at[2];
};

// A chunk of one value head: where its q, k and v stand in a row of qkv.
struct ChunkOfHead {
  const std::int32_t* rows;
  int q, k, v, channels;

  __device__ __forceinline__ ChunkOfHead(const DeltaProblem& problem, const DeltaSizes& sizes, int chunk,
                                         int head)
      : rows(problem.rows + static_cast<std::int64_t>(chunk) * kChunkRows), channels(sizes.channels()) {
    const int key_head = head / (sizes.num_value_heads / sizes.num_key_heads);
    q = key_head * sizes.key_dim;
    k = q + sizes.num_key_heads * sizes.key_dim;
    v = 2 * sizes.num_key_heads * sizes.key_dim + head * sizes.value_dim;
  }
  __device__ __forceinline__ float at(const float* qkv, int place, int column) const {
    const std::int64_t row = rows[place];
    return row < 0 ? 0.0f : qkv[row * channels + column];
  }
};

constexpr int kDepth = 16;                    // columns of K and Q in shared memory at a time
constexpr int kSlicePitch = kDepth + 1;       // of a row of them
constexpr int kSystemPitch = kChunkRows + 4;  // of A: rows aligned to 16 bytes

struct ChunkShared {
  float system[kChunkRows * kSystemPitch];
  float k[kChunkRows * kSlicePitch], q[kChunkRows * kSlicePitch];
  float log_decay[kChunkRows], high[kChunkRows], low[kChunkRows], beta[kChunkRows], decay[kChunkRows];
};

// Forward substitution of one column: x_i = r_i − Σ_{m < i} A[i, m] x_m, in four sums by m mod 4.
template <typename RightSide>
__device__ __forceinline__ void solve_column(const float* system, RightSide right, float* out, int pitch) {
  float x[kChunkRows];
  PSY_UNROLL
  for (int i = 0; i < kChunkRows; ++i) {
    float sums[4] = {};
    PSY_UNROLL
    for (int m = 0; m < i; m += 4) {
      const Four a = *reinterpret_cast<const Four*>(system + i * kSystemPitch + m);
      PSY_UNROLL
      for (int part = 0; part < 4; ++part) {
        if (m + part < i) sums[part] = fmaf(a.at[part], x[m + part], sums[part]);
      }
    }
    x[i] = right(i) - ((sums[0] + sums[1]) + (sums[2] + sums[3]));
    out[i * pitch] = x[i];
  }
}

// Grid: chunks of the group × value heads × columns of U₀ and W, 256 of them. (A loop over them would have
// the compiler load all of A before it.)
__global__ void __launch_bounds__(kThreads)
    chunk_kernel(DeltaProblem problem, DeltaScratch scratch, int first_chunk, DeltaSizes sizes) {
  PSY_DYNAMIC_SHARED(ChunkShared, shared);
  const int H = sizes.num_value_heads, E = sizes.key_dim, V = sizes.value_dim;
  const int thread = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.y);
  const ChunkOfHead chunk(problem, sizes, first_chunk + static_cast<int>(blockIdx.x), head);
  const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * H + head;
  if (thread < kChunkRows) {
    const std::int64_t row = chunk.rows[thread];
    shared->log_decay[thread] = row < 0 ? 0.0f : problem.log_decay[row * H + head];
    shared->beta[thread] = row < 0 ? 0.0f : problem.write[row * H + head];
  }
  __syncthreads();
  if (thread < kChunkRows) {
    double sum = 0.0, own = 0.0;
    for (int i = 0; i < kChunkRows; ++i) {
      sum += static_cast<double>(shared->log_decay[i]);
      if (i == thread) own = sum;
    }
    const float high = static_cast<float>(own), low = static_cast<float>(own - static_cast<double>(high));
    shared->high[thread] = high;
    shared->low[thread] = low;
    shared->decay[thread] = expf(high + low);
    if (blockIdx.z == 0) {
      scratch.fading[place * 2 * kChunkRows + thread] = shared->decay[thread];
      scratch.fading[(place * 2 + 1) * kChunkRows + thread] = expf(static_cast<float>(sum - own));
    }
  }
  const int tx = thread % 16, ty = thread / 16;
  float kk[4][4] = {}, qk[4][4] = {};  // rows ty + 16 · r, columns tx + 16 · s
  for (int start = 0; start < E; start += kDepth) {
    for (int idx = thread; idx < kChunkRows * kDepth; idx += kThreads) {
      const int row = idx / kDepth, e = idx % kDepth;
      const bool inside = start + e < E;
      shared->k[row * kSlicePitch + e] = inside ? chunk.at(problem.qkv, row, chunk.k + start + e) : 0.0f;
      shared->q[row * kSlicePitch + e] = inside ? chunk.at(problem.qkv, row, chunk.q + start + e) : 0.0f;
    }
    __syncthreads();
    PSY_UNROLL
    for (int e = 0; e < kDepth; ++e) {
      float k[4], q[4], right[4];
      PSY_UNROLL
      for (int r = 0; r < 4; ++r) {
        k[r] = shared->k[(ty + 16 * r) * kSlicePitch + e];
        q[r] = shared->q[(ty + 16 * r) * kSlicePitch + e];
        right[r] = shared->k[(tx + 16 * r) * kSlicePitch + e];
      }
      PSY_UNROLL
      for (int r = 0; r < 4; ++r) {
        PSY_UNROLL
        for (int s = 0; s < 4; ++s) {
          kk[r][s] = fmaf(k[r], right[s], kk[r][s]);
          qk[r][s] = fmaf(q[r], right[s], qk[r][s]);
        }
      }
    }
    __syncthreads();
  }
  PSY_UNROLL
  for (int r = 0; r < 4; ++r) {
    PSY_UNROLL
    for (int s = 0; s < 4; ++s) {
      const int i = ty + 16 * r, j = tx + 16 * s;
      const float between = expf((shared->high[i] - shared->high[j]) + (shared->low[i] - shared->low[j]));
      if (j < i) shared->system[i * kSystemPitch + j] = kk[r][s] * between * shared->beta[i];
      if (blockIdx.z == 0)
        scratch.mixing[place * kSquare + i * kChunkRows + j] = j <= i ? qk[r][s] * between : 0.0f;
    }
  }
  __syncthreads();
  const int column = static_cast<int>(blockIdx.z) * kThreads + thread;
  if (column < V + E) {
    const bool is_value = column < V;
    const int from = is_value ? chunk.v + column : chunk.k + column - V;
    float* out = is_value ? scratch.u0 + place * kChunkRows * V + column
                          : scratch.w + place * kChunkRows * E + column - V;
    solve_column(
        shared->system,
        [&](int i) {
          const float factor = is_value ? shared->beta[i] : shared->beta[i] * shared->decay[i];
          return factor * chunk.at(problem.qkv, i, from);
        },
        out, is_value ? V : E);
  }
}

constexpr int kColumns = 32;   // of S that a block has: few, so that one path fills more of a device
constexpr int kRowDepth = 32;  // columns of W and Q, or rows of K, in shared memory at a time
constexpr int kTilePitch = kRowDepth + 1;
constexpr int kMixingPitch = kChunkRows + 1;
constexpr int kUPitch = kColumns + 2;
constexpr int kStateRows = 128;  // of S that are renewed at a time
constexpr int kTiles = 2 * kChunkRows * kTilePitch;
static_assert(kTiles >= kChunkRows * kMixingPitch && kTiles >= kRowDepth * kStateRows,
              "they share the memory");

// Shared memory of state_kernel: S [E, 32], U, and what a step has for its tiles.
std::size_t state_floats(int key_dim) {
  return static_cast<std::size_t>(key_dim) * kColumns + kChunkRows * kUPitch + kTiles;
}

// A thread has the rows 4 · ty to 4 · ty + 3 of a chunk and the columns 2 · tx and 2 · tx + 1 of the block's.
struct Outputs {
  float at[4][2] = {};
};

// U₀ − W S into u, Q S into y; S stands in shared memory.
__device__ __forceinline__ void times_state(const DeltaProblem& problem, const ChunkOfHead& chunk,
                                            const float* w, int E, const float* state, float* tiles,
                                            Outputs& u, Outputs& y) {
  const int thread = static_cast<int>(threadIdx.x), tx = thread % 16, ty = thread / 16;
  float *w_tile = tiles, *q_tile = tiles + kChunkRows * kTilePitch;
  for (int start = 0; start < E; start += kRowDepth) {
    for (int idx = thread; idx < kChunkRows * kRowDepth; idx += kThreads) {
      const int row = idx / kRowDepth, e = idx % kRowDepth;
      const bool inside = start + e < E;
      w_tile[row * kTilePitch + e] = inside ? w[row * E + start + e] : 0.0f;
      q_tile[row * kTilePitch + e] = inside ? chunk.at(problem.qkv, row, chunk.q + start + e) : 0.0f;
    }
    __syncthreads();
    const int depth = min(kRowDepth, E - start);
    for (int e = 0; e < depth; ++e) {
      const Two s = *reinterpret_cast<const Two*>(state + (start + e) * kColumns + 2 * tx);
      PSY_UNROLL
      for (int r = 0; r < 4; ++r) {
        const float left = -w_tile[(4 * ty + r) * kTilePitch + e],
                    query = q_tile[(4 * ty + r) * kTilePitch + e];
        PSY_UNROLL
        for (int column = 0; column < 2; ++column) {
          u.at[r][column] = fmaf(left, s.at[column], u.at[r][column]);
          y.at[r][column] = fmaf(query, s.at[column], y.at[r][column]);
        }
      }
    }
    __syncthreads();
  }
}

// y += M U, row i from the rows up to i alone.
__device__ __forceinline__ void add_mixed(const float* mixing, const float* u, Outputs& y) {
  const int thread = static_cast<int>(threadIdx.x), tx = thread % 16, ty = thread / 16;
  for (int m = 0; m < 4 * ty + 4; ++m) {
    const Two right = *reinterpret_cast<const Two*>(u + m * kUPitch + 2 * tx);
    PSY_UNROLL
    for (int r = 0; r < 4; ++r) {
      if (m > 4 * ty + r) continue;
      const float left = mixing[(4 * ty + r) * kMixingPitch + m];
      PSY_UNROLL
      for (int column = 0; column < 2; ++column)
        y.at[r][column] = fmaf(left, right.at[column], y.at[r][column]);
    }
  }
}

// S ← exp(c₆₃) S + (fade · K)ᵀ U. A thread renews its own elements of S, and no other reads them meanwhile.
__device__ __forceinline__ void renew_state(const DeltaProblem& problem, const ChunkOfHead& chunk,
                                            const float* fading, int E, const float* u, float* tile,
                                            float* state) {
  const int thread = static_cast<int>(threadIdx.x), tx = thread % 16, ty = thread / 16;
  const float shrink = fading[kChunkRows - 1];
  for (int first = 0; first < E; first += kStateRows) {
    float sums[kStateRows / 16][2];
    PSY_UNROLL
    for (int i = 0; i < kStateRows / 16; ++i) {
      const int e = first + ty + 16 * i;
      const Two s = e < E ? *reinterpret_cast<const Two*>(state + e * kColumns + 2 * tx) : Two{};
      sums[i][0] = shrink * s.at[0];
      sums[i][1] = shrink * s.at[1];
    }
    for (int start = 0; start < kChunkRows; start += kRowDepth) {
      for (int idx = thread; idx < kRowDepth * kStateRows; idx += kThreads) {
        const int row = start + idx / kStateRows, e = first + idx % kStateRows;
        tile[idx] = e < E ? fading[kChunkRows + row] * chunk.at(problem.qkv, row, chunk.k + e) : 0.0f;
      }
      __syncthreads();
      for (int m = 0; m < kRowDepth; ++m) {
        const Two right = *reinterpret_cast<const Two*>(u + (start + m) * kUPitch + 2 * tx);
        PSY_UNROLL
        for (int i = 0; i < kStateRows / 16; ++i) {
          const float left = tile[m * kStateRows + ty + 16 * i];
          sums[i][0] = fmaf(left, right.at[0], sums[i][0]);
          sums[i][1] = fmaf(left, right.at[1], sums[i][1]);
        }
      }
      __syncthreads();
    }
    PSY_UNROLL
    for (int i = 0; i < kStateRows / 16; ++i) {
      const int e = first + ty + 16 * i;
      if (e < E) *reinterpret_cast<Two*>(state + e * kColumns + 2 * tx) = {{sums[i][0], sums[i][1]}};
    }
  }
}

// Between S and a state that is kept, every thread its own elements, as renew_state has them.
template <typename Move>
__device__ __forceinline__ void for_own_elements(int E, int num_columns, Move move) {
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  for (int e = ty; e < E; e += 16) {
    for (int column = 2 * tx; column < 2 * tx + 2; ++column) move(e, column, column < num_columns);
  }
}

// Grid: pieces of the group × value heads × parts of V.
__global__ void __launch_bounds__(kThreads)
    state_kernel(DeltaProblem problem, DeltaScratch scratch, DeltaGroup group, DeltaSizes sizes) {
  PSY_DYNAMIC_SHARED(float, state);
  const int H = sizes.num_value_heads, E = sizes.key_dim, V = sizes.value_dim;
  float *u_here = state + E * kColumns, *tiles = u_here + kChunkRows * kUPitch;
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  const int head = static_cast<int>(blockIdx.y), first_column = static_cast<int>(blockIdx.z) * kColumns;
  const int num_columns = min(kColumns, V - first_column);
  const std::int32_t* piece =
      problem.pieces + 3 * (group.first_piece + static_cast<std::int64_t>(blockIdx.x));
  const std::int64_t state_size = static_cast<std::int64_t>(H) * E * V;
  float* kept = problem.states + static_cast<std::int64_t>(head) * E * V + first_column;
  const std::int64_t source = piece[2];
  for_own_elements(E, num_columns, [&](int e, int column, bool inside) {
    state[e * kColumns + column] = inside && source >= 0 ? kept[source * state_size + e * V + column] : 0.0f;
  });
  for (int number = piece[0]; number < piece[1]; ++number) {
    const ChunkOfHead chunk(problem, sizes, number, head);
    const std::int64_t place = static_cast<std::int64_t>(number - group.first_chunk) * H + head;
    const float* fading = scratch.fading + place * 2 * kChunkRows;
    Outputs u, y;
    PSY_UNROLL
    for (int r = 0; r < 4; ++r) {
      PSY_UNROLL
      for (int column = 0; column < 2; ++column) {
        const int at = 2 * tx + column;
        if (at < num_columns)
          u.at[r][column] = scratch.u0[(place * kChunkRows + 4 * ty + r) * V + first_column + at];
      }
    }
    times_state(problem, chunk, scratch.w + place * kChunkRows * E, E, state, tiles, u, y);
    PSY_UNROLL
    for (int r = 0; r < 4; ++r) {
      const float decay = fading[4 * ty + r];
      y.at[r][0] *= decay;
      y.at[r][1] *= decay;
      *reinterpret_cast<Two*>(u_here + (4 * ty + r) * kUPitch + 2 * tx) = {{u.at[r][0], u.at[r][1]}};
    }
    for (int idx = static_cast<int>(threadIdx.x); idx < kSquare; idx += kThreads) {
      tiles[idx / kChunkRows * kMixingPitch + idx % kChunkRows] = scratch.mixing[place * kSquare + idx];
    }
    __syncthreads();
    add_mixed(tiles, u_here, y);
    const int num_known = problem.chunks[2 * static_cast<std::int64_t>(number)];
    PSY_UNROLL
    for (int r = 0; r < 4; ++r) {
      const std::int64_t row = chunk.rows[4 * ty + r];
      if (row < 0 || 4 * ty + r < num_known) continue;
      PSY_UNROLL
      for (int column = 0; column < 2; ++column) {
        const int at = 2 * tx + column;
        if (at < num_columns) problem.o[(row * H + head) * V + first_column + at] = y.at[r][column];
      }
    }
    const std::int64_t kept_as = problem.chunks[2 * static_cast<std::int64_t>(number) + 1];
    if (kept_as < 0 && number + 1 == piece[1]) return;  // nobody goes on from here
    __syncthreads();
    renew_state(problem, chunk, fading, E, u_here, tiles, state);
    if (kept_as < 0) continue;
    for_own_elements(E, num_columns, [&](int e, int column, bool inside) {
      if (inside) kept[kept_as * state_size + e * V + column] = state[e * kColumns + column];
    });
  }
}

}  // namespace

void delta_rule(const DeltaProblem& problem, const DeltaScratch& scratch, DeltaGroup group, DeltaSizes sizes,
                cudaStream_t stream) {
  if (group.num_chunks == 0) return;
  const auto heads = static_cast<unsigned>(sizes.num_value_heads);
  const auto passes = static_cast<unsigned>((sizes.key_dim + sizes.value_dim + kThreads - 1) / kThreads);
  PSY_LAUNCH(chunk_kernel, dim3(static_cast<unsigned>(group.num_chunks), heads, passes), dim3(kThreads),
             sizeof(ChunkShared), stream, problem, scratch, group.first_chunk, sizes);
  const auto parts = static_cast<unsigned>((sizes.value_dim + kColumns - 1) / kColumns);
  PSY_LAUNCH(state_kernel, dim3(static_cast<unsigned>(group.num_pieces), heads, parts), dim3(kThreads),
             sizeof(float) * state_floats(sizes.key_dim), stream, problem, scratch, group, sizes);
}

}  // namespace psy::cuda
