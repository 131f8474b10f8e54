// CUDA C++ on a CPU, as far as our kernels use it: the same source, compiled by a C++17 compiler, run a fiber
// a thread.
//
// A block runs on one thread of the host, its CUDA threads as fibers that change only where they wait: at a
// barrier, in a warp's collective, at their end. In which order warps and lanes go on, and blocks begin, is
// drawn from a seed. Shared memory begins as NaN. An asynchronous copy happens when it is waited for; from
// its beginning NaN stands there. README.md says what is not modelled.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fiber.h"
#include "floats.h"

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};
using cudaStream_t = void*;

namespace psy::emulation {

constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kMaxSharedBytes = 166'912;  // of a block on sm_80, the least of those that we build for
constexpr std::size_t kMaxCollectiveBytes = 64;

// Seed of the order of blocks, warps and lanes.
inline std::atomic<unsigned>& seed() {
  static std::atomic<unsigned> value{0};
  return value;
}

struct Block;

// One CUDA thread.
struct Thread {
  enum class State { kRunnable, kAtBarrier, kInCollective, kEnded };
  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes, valid_bytes;
  };
  // A collective that this lane has entered with a mask: how many with it, and what it brought to this one
  // and the last.
  struct Entered {
    unsigned mask = 0;
    std::uint64_t count = 0;
    const char* name = "";
    alignas(16) std::array<std::array<unsigned char, kMaxCollectiveBytes>, 2> data{};
  };

  Fiber fiber;
  Block* block = nullptr;
  uint3 thread_idx{};
  unsigned lane = 0, warp = 0;
  State state = State::kEnded;
  std::array<Entered, 4> entered{};
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;

  Entered& with_mask(unsigned mask) {
    for (Entered& one : entered) {
      if (one.mask == 0) one.mask = mask;
      if (one.mask == mask) return one;
    }
    throw std::runtime_error("emulation: a thread used more than four masks of warp collectives");
  }
};

inline Thread*& self() {
  const Untraced untraced;
  static thread_local Thread* thread = nullptr;
  return thread;
}

// One block while it runs.
struct Block {
  uint3 block_idx{};
  dim3 grid, dims;
  unsigned num_threads = 0;
  std::vector<Thread*> threads;
  unsigned char* shared = nullptr;
  unsigned num_at_barrier = 0, num_ended = 0;
  std::uint64_t num_barriers = 0;
  // Addresses that order memory, of a warp and of the block, one for every other barrier: who passes one late
  // has not seen what others did before the next.
  std::array<std::array<char, 2>, kMaxThreads / kWarp> warp_order{};
  std::array<char, 2> barrier_order{};
  char* launch_order =
      nullptr;  // two addresses: the launch before its threads, their ends before what comes after
  std::exception_ptr failure;
  const void* body = nullptr;
  void (*call)(const void*) = nullptr;

  Thread* lane_of(unsigned warp, unsigned lane) const {
    const unsigned idx = warp * kWarp + lane;
    return idx < num_threads ? threads[idx] : nullptr;
  }
};

// Thrown through what waits in a block that has failed.
struct Abandoned {};

inline void wait_as(Thread::State state) {
  Thread* thread = self();
  thread->state = state;
  thread->fiber.yield();
  if (thread->block->failure) throw Abandoned();
}

inline void barrier() {
  const Untraced untraced;
  Thread* thread = self();
  Block& block = *thread->block;
  char* order = &block.barrier_order[block.num_barriers & 1];
  publish(order);
  if (++block.num_at_barrier == block.num_threads) {
    block.num_at_barrier = 0;
    ++block.num_barriers;
    for (Thread* other : block.threads) {
      if (other->state == Thread::State::kAtBarrier) other->state = Thread::State::kRunnable;
    }
  } else {
    wait_as(Thread::State::kAtBarrier);
  }
  observe(order);
}

// Every lane of the mask brings `data`; the last one in calls finish(brought), where brought[lane] is each
// one's (null outside of the mask), and may write to them; then each lane's `data` is what stands there.
// Memory is not ordered by it.
template <typename Data, typename Finish>
Data collective(const char* name, unsigned mask, const Data& data, Finish finish) {
  static_assert(sizeof(Data) <= kMaxCollectiveBytes);
  const Untraced untraced;
  Thread* thread = self();
  Block& block = *thread->block;
  if ((mask >> thread->lane & 1) == 0) {
    throw std::runtime_error(std::string("emulation: a lane called ") + name + " with a mask that lacks it");
  }
  Thread::Entered& mine = thread->with_mask(mask);
  const std::uint64_t count = ++mine.count;
  mine.name = name;
  std::memcpy(mine.data[count & 1].data(), &data, sizeof(Data));
  std::array<Data*, kWarp> brought{};
  bool complete = true;
  for (unsigned lane = 0; lane < kWarp && complete; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Thread* other = block.lane_of(thread->warp, lane);
    if (other == nullptr) {
      throw std::runtime_error(std::string("emulation: ") + name +
                               " names lanes that the block does not have");
    }
    Thread::Entered& theirs = other->with_mask(mask);
    complete = theirs.count == count;
    if (complete && std::string(theirs.name) != name) {
      throw std::runtime_error(std::string("emulation: lanes of a warp meet in ") + name + " and " +
                               theirs.name);
    }
    brought[lane] = reinterpret_cast<Data*>(theirs.data[count & 1].data());
  }
  if (complete) {
    finish(brought);
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      Thread* other = block.lane_of(thread->warp, lane);
      const bool waits = other != nullptr && other->state == Thread::State::kInCollective;
      if ((mask >> lane & 1) != 0 && waits) other->state = Thread::State::kRunnable;
    }
  } else {
    wait_as(Thread::State::kInCollective);
  }
  Data result;
  std::memcpy(static_cast<void*>(&result), mine.data[count & 1].data(), sizeof(Data));
  return result;
}

// What each lane of the mask brought, in the order of lanes; lanes outside have Data{}.
template <typename Data>
std::array<Data, kWarp> gathered(const char* name, unsigned mask, const Data& data) {
  const Untraced untraced;
  Thread* thread = self();
  (void)collective(name, mask, data, [](auto&) {});
  std::array<Data, kWarp> all{};
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Thread::Entered& theirs = thread->block->lane_of(thread->warp, lane)->with_mask(mask);
    const std::uint64_t count = thread->with_mask(mask).count;
    std::memcpy(static_cast<void*>(&all[lane]), theirs.data[count & 1].data(), sizeof(Data));
  }
  return all;
}

// What lane `from` brought to a shuffle; `width` is how many lanes the shuffle chooses from. On a device an
// index beyond them wraps round or is ignored, and what a lane outside of the mask has is undefined: nothing
// to rely on, so refused.
template <typename T>
T shuffled(const char* name, unsigned mask, const T& value, int from, int width = kWarp) {
  const auto brought = gathered(name, mask, value);
  if (width < 1 || width > kWarp || (width & (width - 1)) != 0) {
    throw std::runtime_error(std::string("emulation: ") + name + " among " + std::to_string(width) +
                             " lanes; a power of two up to 32 can be");
  }
  if (from < 0 || from >= width) {
    throw std::runtime_error(std::string("emulation: ") + name + " reads from lane " + std::to_string(from) +
                             "; there are 0 to " + std::to_string(width - 1));
  }
  const unsigned first = self()->lane / static_cast<unsigned>(width) * static_cast<unsigned>(width);
  const unsigned lane = first + static_cast<unsigned>(from);
  if ((mask >> lane & 1) == 0) {
    throw std::runtime_error(std::string("emulation: ") + name + " reads from lane " + std::to_string(lane) +
                             ", which its mask lacks");
  }
  return brought[lane];
}

// Asynchronous copies: begun, closed into a group, done at the wait; in between NaN stands at their
// destination.
inline void begin_copy(void* to, const void* from, std::size_t bytes, std::size_t valid_bytes) {
  {
    const Untraced untraced;
    if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0 ||
        reinterpret_cast<std::uintptr_t>(from) % bytes != 0) {
      throw std::runtime_error("emulation: an asynchronous copy of " + std::to_string(bytes) +
                               " bytes is not aligned to them");
    }
    self()->open_copies.push_back({to, from, bytes, valid_bytes});
  }
  // The device may write at any time from now on: what stands there is lost to whoever still reads it.
  auto* destination = static_cast<volatile unsigned char*>(to);
  for (std::size_t byte = 0; byte < bytes; ++byte) destination[byte] = 0xFF;
}
inline void close_copies() {
  const Untraced untraced;
  self()->copy_groups.push_back(std::move(self()->open_copies));
  self()->open_copies.clear();
}
inline void wait_for_copies(std::size_t num_left) {
  std::vector<Thread::Copy> due;
  {
    const Untraced untraced;
    auto& groups = self()->copy_groups;
    for (; groups.size() > num_left; groups.pop_front()) {
      due.insert(due.end(), groups.front().begin(), groups.front().end());
    }
  }
  for (const Thread::Copy& copy :
       due) {  // these accesses are the kernel's; byte by byte, so that none is taken for a library's
    const auto* from = static_cast<const volatile unsigned char*>(copy.from);
    auto* to = static_cast<volatile unsigned char*>(copy.to);
    for (std::size_t byte = 0; byte < copy.bytes; ++byte) to[byte] = byte < copy.valid_bytes ? from[byte] : 0;
  }
}

inline void run_thread(void* argument) {
  Thread* thread = static_cast<Thread*>(argument);
  Block& block = *thread->block;
  observe(block.launch_order);
  try {
    if (!block.failure) block.call(block.body);
  } catch (...) {
    const Untraced untraced;
    if (!block.failure) block.failure = std::current_exception();
  }
  {
    const Untraced untraced;
    publish(block.launch_order + 1);
    ++block.num_ended;
    thread->state = Thread::State::kEnded;
  }
  thread->fiber.yield();
}

inline std::string standstill(const Block& block) {
  unsigned in_collective = 0;
  for (const Thread* thread : block.threads) in_collective += thread->state == Thread::State::kInCollective;
  return "emulation: divergent barrier or collective in block (" + std::to_string(block.block_idx.x) + ", " +
         std::to_string(block.block_idx.y) + ", " + std::to_string(block.block_idx.z) + "): of " +
         std::to_string(block.num_threads) + " threads " + std::to_string(block.num_at_barrier) +
         " wait at __syncthreads, " + std::to_string(in_collective) + " in a warp collective, and " +
         std::to_string(block.num_ended) + " have ended";
}

// A host thread's CUDA threads, kept from block to block.
struct Pool {
  std::vector<std::unique_ptr<Thread>> threads;
  ~Pool() {
    const Untraced untraced;
    threads.clear();
  }
};

inline void run_block(Block& block, unsigned order_seed) {
  const Untraced untraced;
  static thread_local Pool kept;
  auto& pool = kept.threads;
  while (pool.size() < block.num_threads) pool.push_back(std::make_unique<Thread>());
  block.threads.resize(block.num_threads);
  for (unsigned idx = 0; idx < block.num_threads; ++idx) {
    Thread& thread = *(block.threads[idx] = pool[idx].get());
    thread.block = &block;
    thread.thread_idx = {idx % block.dims.x, idx / block.dims.x % block.dims.y,
                         idx / (block.dims.x * block.dims.y)};
    thread.lane = idx % kWarp;
    thread.warp = idx / kWarp;
    thread.state = Thread::State::kRunnable;
    thread.entered = {};
    thread.open_copies.clear();
    thread.copy_groups.clear();
    thread.fiber.start(run_thread, &thread);
  }
  std::mt19937 draw(order_seed);
  std::vector<unsigned> warps((block.num_threads + kWarp - 1) / kWarp), lanes(kWarp);
  std::iota(warps.begin(), warps.end(), 0u);
  std::iota(lanes.begin(), lanes.end(), 0u);
  const auto resume = [](Thread* thread) {
    self() = thread;
    thread->fiber.resume();
    self() = nullptr;
  };
  while (block.num_ended < block.num_threads && !block.failure) {
    bool progress = false;
    std::shuffle(warps.begin(), warps.end(), draw);
    for (unsigned warp : warps) {
      std::shuffle(lanes.begin(), lanes.end(), draw);
      for (unsigned lane : lanes) {
        Thread* thread = block.lane_of(warp, lane);
        if (thread == nullptr || thread->state != Thread::State::kRunnable || block.failure) continue;
        progress = true;
        resume(thread);
      }
    }
    if (!progress && !block.failure) {
      block.failure = std::make_exception_ptr(std::runtime_error(standstill(block)));
    }
  }
  for (Thread* thread : block.threads) {  // of a failed block: so that what lies on their stacks is destroyed
    if (thread->state != Thread::State::kEnded) resume(thread);
  }
  if (block.failure) std::rethrow_exception(block.failure);
}

inline void check_launch(dim3 grid, dim3 dims, std::size_t shared_bytes) {
  const std::size_t num_threads = std::size_t{dims.x} * dims.y * dims.z;
  if (num_threads == 0 || num_threads > kMaxThreads || dims.z > 64) {
    throw std::runtime_error("emulation: a launch of " + std::to_string(num_threads) +
                             " threads a block; 1 to 1,024 can be");
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65'535 || grid.z > 65'535 ||
      grid.x > 0x7FFF'FFFFu) {
    throw std::runtime_error("emulation: a launch with a grid that no device has");
  }
  if (shared_bytes > kMaxSharedBytes) {
    throw std::runtime_error("emulation: a launch with " + std::to_string(shared_bytes) +
                             " bytes of shared memory a block; 166,912 can be on sm_80");
  }
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, dim3 grid, dim3 dims, std::size_t shared_bytes, cudaStream_t,
            Arguments... arguments) {
  check_launch(grid, dims, shared_bytes);
  auto body = [kernel, packed = std::make_tuple(arguments...)] { std::apply(kernel, packed); };
  const std::size_t num_blocks = std::size_t{grid.x} * grid.y * grid.z;
  std::vector<std::size_t> order(num_blocks);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::mt19937 draw(seed());
  std::shuffle(order.begin(), order.end(), draw);
  std::exception_ptr failure;
  std::mutex failing;
  std::array<char, 2> launch_order{};
  publish(launch_order.data());
  const auto count = static_cast<std::int64_t>(num_blocks);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t place = 0; place < count; ++place) {
    const Untraced untraced;
    const std::size_t idx = order[static_cast<std::size_t>(place)];
    Block block;
    block.grid = grid;
    block.dims = dims;
    block.block_idx = {static_cast<unsigned>(idx % grid.x), static_cast<unsigned>(idx / grid.x % grid.y),
                       static_cast<unsigned>(idx / (std::size_t{grid.x} * grid.y))};
    block.num_threads = dims.x * dims.y * dims.z;
    void* memory = nullptr;
    if (posix_memalign(&memory, 1024, std::max<std::size_t>(shared_bytes, 1)) != 0) std::abort();
    std::memset(memory, 0xFF, shared_bytes);
    block.shared = static_cast<unsigned char*>(memory);
    block.launch_order = launch_order.data();
    block.body = &body;
    block.call = [](const void* what) { (*static_cast<const decltype(body)*>(what))(); };
    try {
      run_block(block, seed() + static_cast<unsigned>(idx) * 2654435761u);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failing);
      if (!failure) failure = std::current_exception();
    }
    std::free(memory);
  }
  observe(launch_order.data() + 1);
  if (failure) std::rethrow_exception(failure);
}

}  // namespace psy::emulation

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
