// Running a block's fibers until all have ended, and a grid's blocks in an order that is drawn.
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

#include "threads.h"

namespace psy::emulation {

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
