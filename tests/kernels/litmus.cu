// Litmus tests of global accesses between two running blocks: which outcomes the memory model
// forbids, and which one the emulator must be able to show. On a GPU the forbidden ones must not
// appear in many runs; an allowed one that never appears says nothing.
//
//   message_passing_relaxed   data, then flag, both relaxed: flag seen and data not, is allowed
//   message_passing_release   the flag by release, polled by acquire: forbidden
//   message_passing_barrier   data of another thread, a block barrier, then release: forbidden
//   message_passing_fence     fences around relaxed accesses: forbidden
//   coherence                 two values of one word seen against their order: forbidden
//   forwarding                a thread, and its block after a barrier, miss their own stores:
//                             forbidden
#include <string>

#include "cuda/device/device.h"
#include "test_support.h"

using namespace birnn::device;
using birnn::test::Buffer;
using birnn::test::expect;
using birnn::test::run;

enum class Litmus { kRelaxed, kRelease, kBarrier, kFence, kCoherence, kForwarding };

constexpr int kThreads = 64;
constexpr int kWords = 4;  // of data per thread
constexpr uint32_t kLast = 8;

BIRNN_DEVICE void write_and_signal(Litmus test, uint32_t* data, uint32_t* flag) {
  const uint32_t thread = thread_idx();
  const uint32_t writer = test == Litmus::kBarrier ? 40 : 0;
  if (thread == writer) {
    for (int i = 0; i < kWords; ++i) store_relaxed_gpu(data + i * kThreads, 1u);
  }
  if (test == Litmus::kBarrier) sync_threads();
  if (thread != 0) return;
  if (test == Litmus::kFence) fence_acq_rel_gpu();
  if (test == Litmus::kRelaxed || test == Litmus::kFence) {
    store_relaxed_gpu(flag, 1u);
  } else {
    store_release_gpu(flag, 1u);
  }
}

// Whether data is missing when the flag is there.
BIRNN_DEVICE bool poll_and_read(Litmus test, const uint32_t* data, const uint32_t* flag) {
  if (test == Litmus::kRelaxed || test == Litmus::kFence) {
    while (load_relaxed_gpu(flag) == 0) spin_pause();
    if (test == Litmus::kFence) fence_acq_rel_gpu();
  } else {
    while (load_acquire_gpu(flag) == 0) spin_pause();
  }
  bool missing = false;
  for (int i = 0; i < kWords; ++i) missing |= load_relaxed_gpu(data + i * kThreads) == 0;
  return missing;
}

BIRNN_KERNEL void litmus_kernel(Litmus test, uint32_t* data, uint32_t* flag, uint32_t* weak) {
  const uint32_t thread = thread_idx();
  const bool first_block = block_idx().x == 0;
  if (test == Litmus::kCoherence) {
    if (thread != 0) return;
    if (first_block) {
      for (uint32_t i = 1; i <= kLast; ++i) store_relaxed_gpu(data, i);
      return;
    }
    for (uint32_t seen = 0; seen < kLast;) {
      const uint32_t value = load_relaxed_gpu(data);
      if (value < seen) *weak = 1;
      seen = value;
      spin_pause();
    }
  } else if (test == Litmus::kForwarding) {
    if (!first_block) return;
    store_relaxed_gpu(data + thread, 7u);
    bool missed = load_relaxed_gpu(data + thread) != 7u;
    sync_threads();
    missed |= load_relaxed_gpu(data + (thread + 33) % kThreads) != 7u;
    if (missed) *weak = 1;
  } else if (first_block) {
    write_and_signal(test, data, flag);
  } else if (thread == 0) {
    if (poll_and_read(test, data, flag)) *weak = 1;
  }
}

// Runs the test under many seeds and counts the weak outcome.
void test_litmus(Litmus test) {
  constexpr int kRuns = 20;
  int num_weak = 0;
  for (int seed = 1; seed <= kRuns; ++seed) {
    Buffer<uint32_t> data(kThreads * kWords, 0u), flag(1, 0u), weak(1, 0u);
    LaunchConfig config;
    config.grid.x = 2;
    config.threads = kThreads;
    config.cooperative = true;
#if defined(BIRNN_EMULATED)
    birnn::emulator::options().seed = seed;
#endif
    if (!run(config, litmus_kernel, test, data.data(), flag.data(), weak.data())) return;
    num_weak += weak[0] != 0;
  }
  std::printf("weak outcome in %d of %d runs\n", num_weak, kRuns);
  if (test != Litmus::kRelaxed) return expect(num_weak == 0, "a forbidden outcome");
#if defined(BIRNN_EMULATED)
  if (birnn::emulator::options().landing == birnn::emulator::Landing::kEager) return;
  expect(num_weak > 0, "the weak outcome was never seen");
#endif
}

int main(int argc, char** argv) {
  return birnn::test::run_cases(
      {
          {"message_passing_relaxed", [] { test_litmus(Litmus::kRelaxed); }},
          {"message_passing_release", [] { test_litmus(Litmus::kRelease); }},
          {"message_passing_barrier", [] { test_litmus(Litmus::kBarrier); }},
          {"message_passing_fence", [] { test_litmus(Litmus::kFence); }},
          {"coherence", [] { test_litmus(Litmus::kCoherence); }},
          {"forwarding", [] { test_litmus(Litmus::kForwarding); }},
      },
      argc, argv);
}
