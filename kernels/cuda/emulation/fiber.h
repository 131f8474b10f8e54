// A fiber: a stack of its own, and a switch to and from it. Sanitizers are told of every switch.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_THREAD__)
#define PSY_FIBER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PSY_FIBER_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define PSY_FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PSY_FIBER_ASAN 1
#endif
#endif

#ifdef PSY_FIBER_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif
#if defined(PSY_FIBER_TSAN) && defined(__clang__)
#define PSY_UNSEEN_BY_TSAN __attribute__((no_sanitize("thread")))
#else
#define PSY_UNSEEN_BY_TSAN
#endif
#ifdef PSY_FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace psy::emulation {

#if defined(__x86_64__)
// Saves what a function must keep (System V ABI), swaps stacks, and restores it there.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*save*/, void* /*to*/) {
  __asm__ volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
#endif

class Fiber {
 public:
  static constexpr std::size_t kStackBytes = 256 * 1024;

  Fiber() { map_stack(); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
#ifdef PSY_FIBER_TSAN
    if (tsan_ != nullptr) __tsan_destroy_fiber(tsan_);
#endif
    munmap(stack_, kStackBytes);
  }

  // Makes the fiber begin at entry(argument) when it is next resumed; entry must end with yield_for_good().
  void start(void (*entry)(void*), void* argument) {
    entry_ = entry;
    argument_ = argument;
#ifdef PSY_FIBER_TSAN
    if (tsan_ != nullptr) __tsan_destroy_fiber(tsan_);
    tsan_ = __tsan_create_fiber(0);
    map_stack();  // a fresh one: what another fiber wrote there is no race
#endif
#ifdef PSY_FIBER_ASAN
    __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
#if defined(__x86_64__)
    auto* top = reinterpret_cast<std::uint64_t*>(stack_ + kStackBytes) - 2;
    *--top = 0;  // where entry would return to: it never does; keeps the stack aligned as at a call
    *--top = reinterpret_cast<std::uint64_t>(&Fiber::begin);
    for (int saved = 0; saved < 6; ++saved) *--top = 0;
    here_ = top;
#else
    getcontext(&here_);
    here_.uc_stack.ss_sp = stack_;
    here_.uc_stack.ss_size = kStackBytes;
    here_.uc_link = nullptr;
    makecontext(&here_, &Fiber::begin, 0);
#endif
  }

  // From the scheduler: runs the fiber until it yields.
  PSY_UNSEEN_BY_TSAN void resume() {
    starting() = this;
#ifdef PSY_FIBER_TSAN
    back_tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef PSY_FIBER_ASAN
    __sanitizer_start_switch_fiber(&back_fake_, stack_, kStackBytes);
#endif
#if defined(__x86_64__)
    switch_stacks(&back_, here_);
#else
    swapcontext(&back_, &here_);
#endif
#ifdef PSY_FIBER_ASAN
    __sanitizer_finish_switch_fiber(back_fake_, nullptr, nullptr);
#endif
  }

  // From inside: back to the scheduler until the next resume().
  PSY_UNSEEN_BY_TSAN void yield() {
#ifdef PSY_FIBER_TSAN
    __tsan_switch_to_fiber(back_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef PSY_FIBER_ASAN
    __sanitizer_start_switch_fiber(&fake_, back_bottom_, back_size_);
#endif
#if defined(__x86_64__)
    switch_stacks(&here_, back_);
#else
    swapcontext(&here_, &back_);
#endif
#ifdef PSY_FIBER_ASAN
    __sanitizer_finish_switch_fiber(fake_, &back_bottom_, &back_size_);
#endif
  }

 private:
  void map_stack() {
    if (stack_ != nullptr) munmap(stack_, kStackBytes);
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<char*>(memory);
  }

  PSY_UNSEEN_BY_TSAN static Fiber*& starting() {
    static thread_local Fiber* fiber = nullptr;
    return fiber;
  }

  PSY_UNSEEN_BY_TSAN static void begin() {
    Fiber* fiber = starting();
#ifdef PSY_FIBER_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &fiber->back_bottom_, &fiber->back_size_);
#endif
    fiber->entry_(fiber->argument_);
    std::abort();  // entry yields for good
  }

  char* stack_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
#if defined(__x86_64__)
  void* here_ = nullptr;
  void* back_ = nullptr;
#else
  ucontext_t here_{};
  ucontext_t back_{};
#endif
#ifdef PSY_FIBER_TSAN
  void* tsan_ = nullptr;
  void* back_tsan_ = nullptr;
#endif
#ifdef PSY_FIBER_ASAN
  void* fake_ = nullptr;
  void* back_fake_ = nullptr;
  const void* back_bottom_ = nullptr;
  std::size_t back_size_ = 0;
#endif
};

// While it lives, accesses are the emulator's own and no part of what a sanitizer for threads looks at.
class Untraced {
 public:
#ifdef PSY_FIBER_TSAN
  Untraced() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Untraced() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Untraced() {}
  ~Untraced() {}
#endif
  Untraced(const Untraced&) = delete;
  Untraced& operator=(const Untraced&) = delete;
};

// What orders memory between threads of a block: a barrier, and a warp's collectives.
inline void publish(void* at) {
#ifdef PSY_FIBER_TSAN
  __tsan_release(at);
#else
  (void)at;
#endif
}
inline void observe(void* at) {
#ifdef PSY_FIBER_TSAN
  __tsan_acquire(at);
#else
  (void)at;
#endif
}

}  // namespace psy::emulation
