// Where the cores that share the units of one direction meet, once a step.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace birnn::cpu {

// Whether the cores of this process are somebody else's as well. A thread whose core another
// process has comes back after a slice of some milliseconds, in which whoever meets it stands
// still: tens of steps, or tens of short calls; and who slept meanwhile is woken late. So where a
// pass lost a third of its time in waits of more than a tenth of a millisecond, those that begin
// within a time after it meet nobody: eight times as long as was lost, so that one interruption
// costs little; and where the next one follows soon, twice as long as the last time, up to a fifth
// of a second. A pass that lost less was faster than on one core: two are as slow where half of the
// time is lost. The first pass after it is not judged: it wakes threads that slept meanwhile, which
// takes as long where a system wakes them on the caller's core. All threads share this; who reads a
// value a moment old decides as well.
class Crowding {
 public:
  using Clock = std::chrono::steady_clock;

  static bool is_crowded(Clock::time_point now = Clock::now()) {
    return count(now.time_since_epoch()) < until_.load(std::memory_order_relaxed);
  }

  static void begin_pass() {
    passes_.fetch_add(1, std::memory_order_relaxed);
    lost_.store(0, std::memory_order_relaxed);
  }

  // Threads that wait for the same one lose the same time, once.
  static void note_wait(Clock::time_point since, Clock::time_point ended = Clock::now()) {
    if (ended - since < kLong) return;
    const int64_t end = count(ended.time_since_epoch());
    const int64_t noted = noted_.exchange(end, std::memory_order_relaxed);
    const int64_t lost = end - std::max(count(since.time_since_epoch()), noted);
    if (lost > 0) lost_.fetch_add(lost, std::memory_order_relaxed);
  }

  static void end_pass(Clock::time_point begun, Clock::time_point ended = Clock::now()) {
    const int64_t passes = passes_.load(std::memory_order_relaxed);
    const int64_t lost = lost_.load(std::memory_order_relaxed);
    if (lost == 0 || 3 * lost < count(ended - begun) || passes <= 1) return;
    const int64_t now = count(ended.time_since_epoch()),
                  last = apart_.load(std::memory_order_relaxed);
    const int64_t since = now - until_.load(std::memory_order_relaxed);
    const bool soon = passes <= kFewPasses || since < count(kFewSlices);
    const int64_t apart = std::min(std::max(8 * lost, soon ? 2 * last : 0), count(kLongest));
    apart_.store(apart, std::memory_order_relaxed);
    until_.store(now + apart, std::memory_order_relaxed);
    passes_.store(0, std::memory_order_relaxed);
  }

 private:
  static int64_t count(std::chrono::nanoseconds time) { return time.count(); }

  static constexpr std::chrono::microseconds kLong{100};
  static constexpr std::chrono::milliseconds kFewSlices{16}, kLongest{200};
  static constexpr int64_t kFewPasses = 3;
  static inline std::atomic<int64_t> until_{0}, apart_{0}, passes_{0};  // passes since `until`
  static inline std::atomic<int64_t> lost_{0}, noted_{0};  // in this pass; until when it is noted
};

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
    const auto start = Crowding::Clock::now();
    do {
      for (int i = 0; i < kPauses; ++i) {
        if (phase_.load(std::memory_order_acquire) != phase) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
    } while (Crowding::Clock::now() - start < kSpin);
    while (phase_.load(std::memory_order_acquire) == phase)
      phase_.wait(phase, std::memory_order_acquire);
    Crowding::note_wait(start);
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
