// Uninitialised memory on a cache line, for scratch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace psyfast {

template <class T>
struct Buffer {
  explicit Buffer(int64_t count) : memory(new char[static_cast<size_t>(count) * sizeof(T) + 64]) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory.get());
    data = reinterpret_cast<T*>(memory.get() + (64 - address % 64) % 64);
  }
  std::unique_ptr<char[]> memory;
  T* data;
};

}  // namespace psyfast
