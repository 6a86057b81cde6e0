// The kernels of micro.cu. Like every kernel they reach the GPU through device.h, so that the
// emulator runs them too and checks their protocols; it has no clock, and theirs stands still.
#pragma once

#include <cstdint>

#include "cuda/device/device.h"

namespace birnn::micro {

using namespace birnn::device;

// What a kernel leaves: the longest of its blocks' clocks, and how many values were wrong.
struct Outcome {
  unsigned long long clocks;
  uint32_t num_wrong;
};

#if defined(__CUDACC__)
BIRNN_DEVICE long long read_clock() { return clock64(); }
BIRNN_DEVICE void leave(Outcome* outcome, long long clocks, uint32_t num_wrong) {
  atomicMax(&outcome->clocks, static_cast<unsigned long long>(clocks));
  if (num_wrong > 0) atomicAdd(&outcome->num_wrong, num_wrong);
}
#else
BIRNN_DEVICE long long read_clock() { return 0; }
BIRNN_DEVICE void leave(Outcome* outcome, long long, uint32_t num_wrong) {
  __atomic_fetch_add(&outcome->num_wrong, num_wrong, __ATOMIC_RELAXED);
}
#endif

// ---------------------------------------------------------------------------------------------
// Clusters.

// 16 bytes go from the first block to the last and back by st.async.
BIRNN_KERNEL void st_async_round_trip(uint32_t rounds, Outcome* outcome) {
  Smem shared;
  Bits128* inbox = shared.alloc<Bits128>(1);
  MBarrier* full = shared.alloc<MBarrier>(1);
  const uint32_t rank = cluster_rank(), last = cluster_size() - 1;
  if (thread_idx() == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect_tx(full, sizeof(Bits128));
  }
  cluster_sync();
  if (thread_idx() == 0 && (rank == 0 || rank == last)) {
    const uint32_t peer = rank == 0 ? last : 0;
    const ClusterAddress target = map_rank(inbox, peer), barrier = map_rank(full, peer);
    const long long start = read_clock();
    Bits128 value{0, 0, 0, 0};
    if (rank == 0) st_async(target, value, barrier);
    for (uint32_t i = 0; i < rounds; ++i) {
      mbarrier_wait<Scope::kCluster>(full, i & 1);
      value = *inbox;
      // Armed again before the answer: the next message follows from it.
      if (i + 1 < rounds) mbarrier_arrive_expect_tx(full, sizeof(Bits128));
      value.x += 1;
      const bool is_final = rank == 0 && i + 1 == rounds;
      if (!is_final) st_async(target, value, barrier);
    }
    const uint32_t wanted = rank == 0 ? 2 * rounds : 2 * rounds - 1;
    leave(outcome, read_clock() - start, value.x != wanted);
  }
  cluster_sync();  // nobody ends before what was sent to it has arrived
}

// Every block sends its slice to all blocks, itself included, each step: the exchange of h.
BIRNN_KERNEL void all_gather(uint32_t slice_bytes, uint32_t steps, Outcome* outcome) {
  Smem shared;
  const uint32_t size = cluster_size(), rank = cluster_rank(), thread = thread_idx();
  const uint32_t pieces = slice_bytes / sizeof(Bits128);  // of a slice
  Bits128* buffers = shared.alloc<Bits128>(2 * size * pieces);
  MBarrier* full = shared.alloc<MBarrier>(2);
  const uint32_t step_bytes = size * slice_bytes;
  for (uint32_t i = thread; i < size * pieces; i += block_dim()) {
    buffers[i] = Bits128{i, 0, 0, 0};
  }
  if (thread == 0) {
    mbarrier_init(&full[0], 1);
    mbarrier_init(&full[1], 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect_tx(&full[1], step_bytes);
    if (steps > 1) mbarrier_arrive_expect_tx(&full[0], step_bytes);
  }
  cluster_sync();
  uint32_t num_wrong = 0;
  const long long start = read_clock();
  // Who has no piece to send waits for nothing, so every reader is one whose pushes the peers
  // wait for.
  for (uint32_t step = 0; step <= steps && thread < pieces; ++step) {
    MBarrier* arrived = &full[step & 1];
    if (step > 0) {
      mbarrier_wait<Scope::kCluster>(arrived, (step - 1) / 2 & 1);
      if (thread == 0 && step + 2 <= steps) mbarrier_arrive_expect_tx(arrived, step_bytes);
    }
    const Bits128* current = buffers + (step & 1) * size * pieces;
    Bits128* next = buffers + ((step + 1) & 1) * size * pieces;
    for (uint32_t i = thread; i < pieces; i += block_dim()) {
      // The neighbour's number, one greater: wrong for good if one message is ever lost or late.
      Bits128 value = current[(rank + 1) % size * pieces + i];
      num_wrong += value.y != step;
      if (step == steps) continue;
      value.y += 1;
      for (uint32_t other = 0; other < size; ++other) {
        const uint32_t to = (rank + other) % size;
        st_async(map_rank(next + rank * pieces + i, to), value,
                 map_rank(&full[(step + 1) & 1], to));
      }
    }
  }
  const long long clocks = read_clock() - start;
  if (thread < pieces) leave(outcome, clocks, num_wrong);
  cluster_sync();
}

// The same handshake by barrier alone.
BIRNN_KERNEL void cluster_barrier(uint32_t rounds, Outcome* outcome) {
  cluster_sync();
  const long long start = read_clock();
  for (uint32_t i = 0; i < rounds; ++i) cluster_sync();
  if (thread_idx() == 0) leave(outcome, read_clock() - start, 0);
}

// ---------------------------------------------------------------------------------------------
// Through L2.

// Block 0 and block `peer` answer each other; a message is its own flag: {epoch, data}.
BIRNN_KERNEL void poll_data(WordPair* slots, uint32_t peer, uint32_t rounds, Outcome* outcome) {
  const uint32_t block = block_idx().x;
  if (thread_idx() != 0 || (block != 0 && block != peer)) return;
  WordPair* inbox = slots + (block == 0 ? 0 : 16);  // 256 bytes apart
  WordPair* outbox = slots + (block == 0 ? 16 : 0);
  uint64_t data = 0;
  const long long start = read_clock();
  for (uint64_t i = 1; i <= rounds; ++i) {
    if (block == 0) store_relaxed_gpu(outbox, WordPair{i << 32 | data, i << 32 | data});
    WordPair seen = load_relaxed_gpu(inbox);
    while (seen.first >> 32 != i || seen.second >> 32 != i) {
      spin_pause();
      seen = load_relaxed_gpu(inbox);
    }
    data = (seen.second & 0xffffffffu) + 1;
    if (block != 0) store_relaxed_gpu(outbox, WordPair{i << 32 | data, i << 32 | data});
  }
  if (block == 0) leave(outcome, read_clock() - start, data != 2ull * rounds);
}

// The same with a flag apart from the data: release and acquire.
BIRNN_KERNEL void poll_flag(uint32_t* slots, uint32_t peer, uint32_t rounds, Outcome* outcome) {
  const uint32_t block = block_idx().x;
  if (thread_idx() != 0 || (block != 0 && block != peer)) return;
  uint32_t* inbox = slots + (block == 0 ? 0 : 64);  // data, and the flag 128 bytes on
  uint32_t* outbox = slots + (block == 0 ? 64 : 0);
  uint32_t data = 0;
  const long long start = read_clock();
  for (uint32_t i = 1; i <= rounds; ++i) {
    for (uint32_t turn = 0; turn < 2; ++turn) {
      if ((turn == 0) == (block == 0)) {
        store_relaxed_gpu(outbox, data);
        store_release_gpu(outbox + 32, i);
      } else {
        while (load_acquire_gpu(inbox + 32) != i) spin_pause();
        data = load_relaxed_gpu(inbox) + 1;
      }
    }
  }
  if (block == 0) leave(outcome, read_clock() - start, data != 2 * rounds);
}

BIRNN_KERNEL void grid_barrier(uint32_t* arrivals, uint32_t rounds, Outcome* outcome) {
  grid_sync(arrivals, 1);
  const long long start = read_clock();
  for (uint32_t i = 0; i < rounds; ++i) grid_sync(arrivals, i + 2);
  if (thread_idx() == 0) leave(outcome, read_clock() - start, 0);
}

#if defined(__CUDACC__)
// Occupies its multiprocessor for a while.
BIRNN_KERNEL void spin(long long clocks) {
  const long long start = read_clock();
  while (read_clock() - start < clocks) spin_pause();
}
#endif

}  // namespace birnn::micro
