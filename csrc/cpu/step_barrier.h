// Where the cores that share the units of one direction meet, once a step.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace birnn::cpu {

// `shares` must arrive before any may go on. A thread may hold several of them: a parallel region
// that got fewer threads than it asked for hands out what is left.
//
// Whoever waits spins for about as long as a step takes, then sleeps: where another process has the
// core of the one that is waited for, spinning would keep it from coming back.
class StepBarrier {
 public:
  explicit StepBarrier(int64_t shares) : shares_(static_cast<uint32_t>(shares)) {}

  void arrive_and_wait(int64_t shares) {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    const auto arriving = static_cast<uint32_t>(shares);
    if (arrived_.fetch_add(arriving, std::memory_order_acq_rel) + arriving == shares_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      phase_.notify_all();
      return;
    }
    const auto start = std::chrono::steady_clock::now();
    do {
      for (int i = 0; i < kPauses; ++i) {
        if (phase_.load(std::memory_order_acquire) != phase) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
    } while (std::chrono::steady_clock::now() - start < kSpin);
    while (phase_.load(std::memory_order_acquire) == phase)
      phase_.wait(phase, std::memory_order_acquire);
  }

 private:
  static constexpr int kPauses = 32;
  static constexpr std::chrono::microseconds kSpin{50};

  const uint32_t shares_;
  // Apart from each other: who waits for the phase is not disturbed by who arrives.
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace birnn::cpu
