// A block and its threads as fibers: where they wait, what they bring to a warp's collective, which
// asynchronous copies they have begun.
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

}  // namespace psy::emulation
