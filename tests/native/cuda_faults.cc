// Small kernels with a deliberate fault each, and the same without it: what the emulation of CUDA and the
// sanitizers must find, and where they must stay silent. tests/ops/test_emulation.py holds the table of who
// finds what.
//
// cuda_faults NAME faulty|sound runs it under several orders of blocks, warps and lanes. Exit code 0: the
// numbers are right; 1: they are not; 2: the emulation refused, and says why on stderr.
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"

namespace psy::cuda {
namespace {

constexpr int kBlock = 128;
constexpr unsigned kSeeds = 6;
constexpr unsigned kWholeWarp = 0xFFFF'FFFFu;

// Faults that numbers or a sanitizer for threads show. out[i] = in[n − 1 − i] of each block.
template <bool kFaulty>
__global__ void missing_barrier(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x;
  shared[at] = in[at];
  if (!kFaulty) __syncthreads();
  out[at] = shared[kBlock - 1 - at];
}

// A second round overwrites what the first may still read.
template <bool kFaulty>
__global__ void missing_barrier_before_reuse(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x;
  for (int round = 0; round < 2; ++round) {
    shared[at] = in[at] + static_cast<float>(round);
    __syncthreads();
    if (round == 0) out[at] = shared[kBlock - 1 - at];
    if (!kFaulty) __syncthreads();
  }
}

template <bool kFaulty>
__global__ void missing_warp_barrier(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x, warp = at / 32 * 32;
  shared[at] = in[kBlock - 1 - (warp + 31 - at % 32)];
  if (!kFaulty) __syncwarp();
  out[at] = shared[warp + 31 - at % 32];
}

// A shuffle makes lanes meet, but does not order their memory.
template <bool kFaulty>
__global__ void shuffle_for_a_barrier(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x, warp = at / 32 * 32;
  shared[at] = in[kBlock - 1 - (warp + 31 - at % 32)];
  if (!kFaulty) __syncwarp();
  const float zero = __shfl_xor_sync(kWholeWarp, 0.0f, 1);
  out[at] = shared[warp + 31 - at % 32] + zero;
}

// Writes between two barriers of a warp, by one lane and the next: who passes the first late is no excuse.
template <bool kFaulty>
__global__ void warp_barrier_too_early(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x, warp = at / 32 * 32;
  __syncwarp();
  shared[at] = in[kBlock - 1 - (warp + 31 - at % 32)];
  if (!kFaulty) __syncwarp();
  const float value = shared[warp + 31 - at % 32];
  __syncwarp();
  out[at] = value;
}

// What a thread copies asynchronously: four of the elements, from their mirrored place.
__device__ void begin_copy_of(const float* in, float* shared, unsigned at) {
  if (at % 4 == 0) cp_async_16(shared + at, in + at);
  cp_async_commit();
}

template <bool kFaulty>
__global__ void missing_wait(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x;
  begin_copy_of(in, shared, at);
  if (!kFaulty) cp_async_wait<0>();
  __syncthreads();
  out[at] = shared[kBlock - 1 - at];
}

// One group may still be on its way, and it is the one that is read.
template <bool kFaulty>
__global__ void wait_for_too_few(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x;
  begin_copy_of(in, shared + kBlock, at);
  begin_copy_of(in, shared, at);
  cp_async_wait<kFaulty ? 1 : 0>();
  __syncthreads();
  out[at] = shared[kBlock - 1 - at];
}

// A thread's wait is for its own copies alone.
template <bool kFaulty>
__global__ void wait_without_barrier(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x;
  begin_copy_of(in, shared, at);
  if (kFaulty) __syncthreads();
  cp_async_wait<0>();
  if (!kFaulty) __syncthreads();
  out[at] = shared[kBlock - 1 - at];
}

// The next copy begins where others may still read the last.
template <bool kFaulty>
__global__ void copy_begun_too_early(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x;
  begin_copy_of(in, shared, at);
  cp_async_wait<0>();
  __syncthreads();
  out[at] = shared[kBlock - 1 - at];
  if (!kFaulty) __syncthreads();
  begin_copy_of(in, shared, at);
  __syncthreads();  // the wait comes after all have read: the beginning alone is too early
  cp_async_wait<0>();
}

// ldmatrix reads what other lanes wrote.
template <bool kFaulty>
__global__ void ldmatrix_without_barrier(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x, lane = at % 32;
  if (at < 32) {
    for (int i = 0; i < 4; ++i) shared[4 * lane + i] = in[4 * lane + i];
    if (!kFaulty) __syncwarp();
    std::uint32_t words[4];
    ldmatrix_x4(words, shared + 4 * lane);  // row lane / 4 of matrix i, its word lane % 4
    for (unsigned i = 0; i < 4; ++i) out[kBlock - 1 - (32 * i + lane)] = __uint_as_float(words[i]);
  }
}

// Every block writes its own sum to one place.
template <bool kFaulty>
__global__ void blocks_share_a_place(const float* in, float* out) {
  const unsigned at = blockIdx.x * 32 + threadIdx.x;
  out[kFaulty ? kBlock - 1 - at % 32 : kBlock - 1 - at] = in[at];
}

// Faults that a sanitizer for addresses shows: nobody uses the element too far.
template <bool kFaulty>
__global__ void off_by_one_in_shared(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x;
  shared[at] = in[at];
  if (kFaulty && at == 0) shared[kBlock] = 1.0f;
  __syncthreads();
  out[at] = shared[kBlock - 1 - at];
}

template <bool kFaulty>
__global__ void off_by_one_in_global(const float* in, float* out) {
  const unsigned at = threadIdx.x;
  const float next = in[kFaulty ? at + 1 : at];
  out[kBlock - 1 - at] = next == 1e30f ? next : in[at];
}

template <bool kFaulty>
__global__ void copy_past_the_end(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x;
  if (at % 4 == 0) cp_async_16(shared + at, in + at);
  if (at == 0) cp_async_16(shared + kBlock, in + kBlock, kFaulty ? 16 : 0);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  out[at] = shared[kBlock - 1 - at];
}

// Faults that the emulation refuses to go on with.
template <bool kFaulty>
__global__ void divergent_barrier(const float* in, float* out) {
  if (!kFaulty || threadIdx.x < 100) __syncthreads();
  out[kBlock - 1 - threadIdx.x] = in[threadIdx.x];
}

template <bool kFaulty>
__global__ void lanes_that_never_come(const float* in, float* out) {
  const unsigned at = threadIdx.x;
  if (!kFaulty || at % 32 < 16) (void)__shfl_xor_sync(kWholeWarp, in[at], 1);
  out[kBlock - 1 - at] = in[at];
}

template <bool kFaulty>
__global__ void mask_without_oneself(const float* in, float* out) {
  const unsigned at = threadIdx.x, mine = at % 32 < 16 ? 0x0000'FFFFu : 0xFFFF'0000u;
  (void)__shfl_xor_sync(kFaulty ? 0x0000'FFFFu : mine, in[at], 1);
  out[kBlock - 1 - at] = in[at];
}

// Shuffles that read what no lane of theirs brought.
template <bool kFaulty>
__global__ void shuffle_from_outside_its_mask(const float* in, float* out) {
  const unsigned at = threadIdx.x, mine = at % 32 < 16 ? 0x0000'FFFFu : 0xFFFF'0000u;
  constexpr int kFar = kFaulty ? 16 : 1;
  out[kBlock - 1 - (at ^ kFar)] = __shfl_xor_sync(mine, in[at], kFar);
}

template <bool kFaulty>
__global__ void shuffle_down_out_of_its_mask(const float* in, float* out) {
  const unsigned at = threadIdx.x, lane = at % 32, mine = lane < 16 ? 0x0000'FFFFu : 0xFFFF'0000u;
  const float next = __shfl_down_sync(kFaulty ? mine : kWholeWarp, in[at], 1);
  if (lane == 0) out[kBlock - 1 - at] = in[at];
  if (lane < 31) out[kBlock - 1 - (at + 1)] = next;
}

template <bool kFaulty>
__global__ void shuffle_from_a_negative_lane(const float* in, float* out) {
  const unsigned at = threadIdx.x;
  const int lane = static_cast<int>(at % 32);
  const float next = __shfl_sync(kWholeWarp, in[at], (lane + 1) % 32);
  out[kBlock - 1 - at] = __shfl_sync(kWholeWarp, next, kFaulty ? lane - 1 : (lane + 31) % 32);
}

template <bool kFaulty>
__global__ void shuffle_from_beyond_the_warp(const float* in, float* out) {
  const unsigned at = threadIdx.x;
  const int lane = static_cast<int>(at % 32);
  const float last = __shfl_sync(kWholeWarp, in[at], (lane + 31) % 32);
  out[kBlock - 1 - at] = __shfl_sync(kWholeWarp, last, kFaulty ? lane + 1 : (lane + 1) % 32);
}

template <bool kFaulty>
__global__ void shuffle_from_beyond_its_group(const float* in, float* out) {
  const unsigned at = threadIdx.x;
  const int lane = static_cast<int>(at % 8);
  const float last = __shfl_sync(kWholeWarp, in[at], (lane + 7) % 8, 8);
  out[kBlock - 1 - at] = __shfl_sync(kWholeWarp, last, kFaulty ? lane + 1 : (lane + 1) % 8, 8);
}

template <bool kFaulty>
__global__ void shuffle_among_six(const float* in, float* out) {
  const unsigned at = threadIdx.x;
  const int lane = static_cast<int>(at % 4);
  out[kBlock - 1 - at] = __shfl_sync(kWholeWarp, in[at], lane, kFaulty ? 6 : 4);
}

template <bool kFaulty>
__global__ void shuffle_across_warps(const float* in, float* out) {
  constexpr int kFar = kFaulty ? 32 : 31;
  out[kBlock - 1 - (threadIdx.x ^ kFar)] = __shfl_xor_sync(kWholeWarp, in[threadIdx.x], kFar);
}

template <bool kFaulty>
__global__ void shuffle_down_by_less_than_nothing(const float* in, float* out) {
  const unsigned at = threadIdx.x;
  const float next = __shfl_down_sync(kWholeWarp, in[at], kFaulty ? 0u - 1u : 1u);
  if (at % 32 == 0) out[kBlock - 1 - at] = in[at];
  if (at % 32 < 31) out[kBlock - 1 - (at + 1)] = next;
}

template <bool kFaulty>
__global__ void two_collectives_meet(const float* in, float* out) {
  const unsigned at = threadIdx.x;
  if (!kFaulty || at % 2 == 0) {
    (void)__shfl_xor_sync(kWholeWarp, in[at], 1);
  } else {
    (void)__ballot_sync(kWholeWarp, 1);
  }
  out[kBlock - 1 - at] = in[at];
}

template <bool kFaulty>
__global__ void misaligned_copy(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x;
  if (at % 4 == 0) cp_async_16(shared + at + (kFaulty ? 1 : 0), in + at);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  out[at] = shared[kBlock - 1 - at];
}

template <bool kFaulty>
__global__ void misaligned_ldmatrix(const float* in, float* out) {
  PSY_DYNAMIC_SHARED(float, shared);
  const unsigned at = threadIdx.x, lane = at % 32;
  shared[at] = in[at];
  __syncthreads();
  std::uint32_t words[4];
  ldmatrix_x4(words, shared + (kFaulty && lane == 31 ? 4 * lane - 1 : 4 * lane));
  if (at < 32) {
    for (unsigned i = 0; i < 4; ++i) out[kBlock - 1 - (32 * i + lane)] = __uint_as_float(words[i]);
  }
}

template <bool kFaulty>
__global__ void mirrored(const float* in, float* out) {
  if (threadIdx.x < kBlock) out[kBlock - 1 - threadIdx.x] = in[threadIdx.x];
}

using Kernel = void (*)(const float*, float*);
struct Pair {
  Kernel faulty, sound;
  unsigned blocks = 1, threads = kBlock;
  std::size_t shared_bytes = kBlock * sizeof(float);
  // What the faulty launch has in place of these, where the launch is the fault.
  unsigned faulty_threads = 0;
  std::size_t faulty_shared_bytes = 0;
};

#define PSY_PAIR(name)                      \
  {                                         \
    #name, Pair { name<true>, name<false> } \
  }

std::map<std::string, Pair> all_pairs() {
  std::map<std::string, Pair> pairs = {PSY_PAIR(missing_barrier),
                                       PSY_PAIR(missing_barrier_before_reuse),
                                       PSY_PAIR(missing_warp_barrier),
                                       PSY_PAIR(shuffle_for_a_barrier),
                                       PSY_PAIR(warp_barrier_too_early),
                                       PSY_PAIR(missing_wait),
                                       PSY_PAIR(wait_for_too_few),
                                       PSY_PAIR(copy_begun_too_early),
                                       PSY_PAIR(wait_without_barrier),
                                       PSY_PAIR(ldmatrix_without_barrier),
                                       PSY_PAIR(blocks_share_a_place),
                                       PSY_PAIR(off_by_one_in_shared),
                                       PSY_PAIR(off_by_one_in_global),
                                       PSY_PAIR(copy_past_the_end),
                                       PSY_PAIR(divergent_barrier),
                                       PSY_PAIR(lanes_that_never_come),
                                       PSY_PAIR(mask_without_oneself),
                                       PSY_PAIR(two_collectives_meet),
                                       PSY_PAIR(misaligned_copy),
                                       PSY_PAIR(misaligned_ldmatrix),
                                       PSY_PAIR(shuffle_from_outside_its_mask),
                                       PSY_PAIR(shuffle_down_out_of_its_mask),
                                       PSY_PAIR(shuffle_from_a_negative_lane),
                                       PSY_PAIR(shuffle_from_beyond_the_warp),
                                       PSY_PAIR(shuffle_from_beyond_its_group),
                                       PSY_PAIR(shuffle_among_six),
                                       PSY_PAIR(shuffle_across_warps),
                                       PSY_PAIR(shuffle_down_by_less_than_nothing)};
  pairs["wait_for_too_few"].shared_bytes *= 2;
  pairs["copy_past_the_end"].shared_bytes += 16;
  pairs["misaligned_copy"].shared_bytes += 16;
  pairs["blocks_share_a_place"].blocks = kBlock / 32;
  pairs["blocks_share_a_place"].threads = 32;
  const Pair launch{mirrored<true>, mirrored<false>};
  for (const char* name : {"too_many_threads", "too_much_shared_memory", "empty_grid"}) pairs[name] = launch;
  pairs["too_many_threads"].threads = 1024;
  pairs["too_many_threads"].faulty_threads = 1025;
  pairs["too_much_shared_memory"].shared_bytes = 163 * 1024;
  pairs["too_much_shared_memory"].faulty_shared_bytes = 163 * 1024 + 1;
  return pairs;
}

bool right_numbers(const Pair& pair, bool faulty, unsigned blocks, unsigned seed) {
  emulation::seed() = seed;
  std::vector<float> in(kBlock), out(kBlock, -1.0f);
  for (int i = 0; i < kBlock; ++i) in[static_cast<std::size_t>(i)] = static_cast<float>(i + 1);
  const unsigned threads = faulty && pair.faulty_threads != 0 ? pair.faulty_threads : pair.threads;
  const std::size_t bytes =
      faulty && pair.faulty_shared_bytes != 0 ? pair.faulty_shared_bytes : pair.shared_bytes;
  PSY_LAUNCH(faulty ? pair.faulty : pair.sound, dim3(blocks), dim3(threads), bytes, nullptr,
             static_cast<const float*>(in.data()), out.data());
  for (std::size_t i = 0; i < kBlock; ++i) {
    if (!(out[kBlock - 1 - i] == in[i])) return false;
  }
  return true;
}

int run(const std::string& name, bool faulty) {
  const Pair pair = all_pairs().at(name);
  const unsigned blocks = faulty && name == "empty_grid" ? 0 : pair.blocks;
  bool right = true;
  for (unsigned seed = 0; seed < kSeeds; ++seed) right = right_numbers(pair, faulty, blocks, seed) && right;
  return right ? 0 : 1;
}

}  // namespace
}  // namespace psy::cuda

int main(int count, char** arguments) {
  try {
    if (count != 3) throw std::invalid_argument("cuda_faults NAME faulty|sound");
    return psy::cuda::run(arguments[1], std::strcmp(arguments[2], "faulty") == 0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
