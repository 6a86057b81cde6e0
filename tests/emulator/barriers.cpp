// Block, warp and cluster barriers, warp collectives and mbarriers.
#include <cstdlib>

#include "machine.h"

namespace birnn::emulator {
namespace {

void arrive(Barrier& barrier, unsigned expected, bool releases, bool same_line, const char* what,
            const Location& where) {
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.first_arrival = where;
  } else if (barrier.expected != expected) {
    fail(std::string(what) + ": thread counts differ within one phase, " +
             std::to_string(barrier.expected) + " at " + describe(barrier.first_arrival) + " and " +
             std::to_string(expected),
         where);
  } else if (same_line && barrier.first_arrival.place != where.place) {
    fail(std::string("divergent ") + what + ": others are at " + describe(barrier.first_arrival),
         where);
  }
  if (releases) {
    release(barrier.token[barrier.phase & 1]);
    mark_stores_ordered();
  }
  ++mutable_statistics.collectives;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.phase;
    ++machine->progress;
    barrier.waiting.wake();
  }
}

void block_barrier(Barrier& barrier, unsigned expected, bool wait, bool same_line, const char* what,
                   const Location& where) {
  const uint64_t phase = barrier.phase;
  arrive(barrier, expected, true, same_line, what, where);
  if (!wait) return;
  wait_until(barrier.waiting, what, where, [&] { return barrier.phase != phase; });
  acquire(barrier.token[phase & 1]);
}

constexpr int kSyncWarp = -1;

// Waits for the other lanes at the same operation on the same line. Returns the deposits.
const Deposit* meet_lanes(int operation, const char* what, const void* mine, size_t bytes,
                          void (*combine)(Deposit*), bool orders_memory, const Location& where) {
  Warp& warp = *running->warp;
  const uint64_t phase = warp.phase;
  Deposit* deposits = warp.deposits[phase & 1];
  if (warp.arrived == 0) {
    warp.operation = operation;
    warp.first_arrival = where;
  } else if (warp.operation != operation || warp.first_arrival.place != where.place) {
    fail(std::string("warp diverged: this lane is at ") + what + ", others at " +
             describe(warp.first_arrival),
         where);
  }
  raw_copy(deposits[running->context.lane].bytes, mine, bytes);
  if (orders_memory) {
    release(warp.token[phase & 1]);
    mark_stores_ordered();
  }
  ++mutable_statistics.collectives;
  if (++warp.arrived == 32) {
    if (combine) combine(deposits);
    warp.arrived = 0;
    ++warp.phase;
    warp.waiting.wake();  // no progress: a warp may vote on whether to spin on
  } else {
    wait_until(warp.waiting, what, where, [&] { return warp.phase != phase; });
  }
  if (orders_memory) acquire(warp.token[phase & 1]);
  return deposits;
}

MBarrierState& find_mbarrier(const void* address, bool whole_cluster, const Location& where) {
  check_shared(address, sizeof(device::MBarrier), alignof(device::MBarrier), "mbarrier", where,
               whole_cluster);
  for (auto& candidate : owner_of(address, whole_cluster)->mbarriers) {
    if (candidate->address == address) {
      // The use must be ordered after the initialisation, which "wrote" the object.
      tsan::read_range(address, sizeof(device::MBarrier));
      return *candidate;
    }
  }
  fail("mbarrier used before mbarrier.init", where);
}

void end_phase_if_complete(MBarrierState& barrier) {
  if (barrier.pending_arrivals != 0 || barrier.pending_bytes != 0) return;
  ++barrier.phase;
  barrier.pending_arrivals = barrier.arrivals;
  ++machine->progress;
  barrier.waiting.wake();
}

}  // namespace

// ---------------------------------------------------------------------------------------------

void sync_block(Location where) {
  block_barrier(running->block->barriers[0], machine->config.threads, true, true, "sync_threads",
                where);
}

void named_barrier(int id, int num_threads, bool wait, Location where) {
  const char* what = wait ? "bar_sync" : "bar_arrive";
  if (id < 1 || id > 15) fail(std::string(what) + ": barrier id outside 1..15", where);
  if (num_threads <= 0 || num_threads % 32 != 0) {
    fail(std::string(what) + ": thread count not a multiple of 32", where);
  }
  block_barrier(running->block->barriers[id], num_threads, wait, false, what, where);
}

void sync_warp(Location where) {
  meet_lanes(kSyncWarp, "sync_warp", nullptr, 0, nullptr, true, where);
}

const Deposit* warp_exchange(Collective operation, const void* mine, size_t bytes,
                             void (*combine)(Deposit*), Location where) {
  static const char* const kNames[] = {"warp_id",   "shfl",     "vote_ballot",
                                       "reduce_or", "ldmatrix", "mma"};
  const int number = static_cast<int>(operation);
  return meet_lanes(number, kNames[number], mine, bytes, combine, false, where);
}

void cluster_arrive(bool releases, Location where) {
  if (running->arrived_at_cluster) fail("second cluster_arrive without a cluster_wait", where);
  Barrier& barrier = running->block->cluster->barrier;
  running->arrived_at_cluster = true;
  running->cluster_phase = barrier.phase;
  arrive(barrier, machine->config.threads * machine->config.cluster, releases, false,
         "cluster_arrive", where);
}

void cluster_wait(Location where) {
  if (!running->arrived_at_cluster) fail("cluster_wait without a cluster_arrive", where);
  Barrier& barrier = running->block->cluster->barrier;
  const uint64_t phase = running->cluster_phase;
  wait_until(barrier.waiting, "cluster_wait", where, [&] { return barrier.phase != phase; });
  running->arrived_at_cluster = false;
  running->knows_peers_began = true;  // whatever the arrivals release
  acquire(barrier.token[phase & 1]);
}

// ---------------------------------------------------------------------------------------------

void mbarrier_init(device::MBarrier* address, uint32_t arrivals, Location where) {
  check_own_shared(address, sizeof *address, "mbarrier_init", where);
  Block& block = *running->block;
  for (auto& other : block.mbarriers) {
    if (other->address == address) fail("mbarrier initialised twice", where);
  }
  tsan::write_range(address, sizeof *address);
  RuntimeScope allocates;
  auto barrier = std::make_unique<MBarrierState>();
  barrier->address = address;
  barrier->arrivals = barrier->pending_arrivals = arrivals;
  block.mbarriers.push_back(std::move(barrier));
}

void mbarrier_arrive(void* address, uint32_t bytes, bool remote, Location where, bool releases) {
  MBarrierState& barrier = find_mbarrier(address, remote, where);
  const bool own = owner_of(address, true) == running->block;
  if (releases) {
    release((own ? barrier.released_to_block : barrier.released_to_cluster)[barrier.phase & 1]);
    mark_stores_ordered();
  }
  if (barrier.pending_arrivals == 0) {
    fail("mbarrier: more arrivals in a phase than it was initialised for", where);
  }
  barrier.pending_bytes += bytes;
  constexpr int64_t kMaxPendingBytes = (1 << 20) - 1;
  if (std::abs(barrier.pending_bytes) > kMaxPendingBytes) {
    fail("mbarrier: byte count out of range", where);
  }
  --barrier.pending_arrivals;
  end_phase_if_complete(barrier);
}

void complete_bytes(MBarrierState& barrier, size_t bytes) {
  barrier.pending_bytes -= static_cast<int64_t>(bytes);
  end_phase_if_complete(barrier);
}

bool mbarrier_try_wait(void* address, uint32_t parity, WaitOrder order, bool may_give_up,
                       Location where) {
  MBarrierState& barrier = find_mbarrier(address, false, where);
  const auto is_over = [&] { return (barrier.phase & 1) != parity; };
  if (may_give_up && !is_over() && random_number() % 8 == 0) return false;
  wait_until(barrier.waiting, "mbarrier_wait", where, is_over);
  if (order == WaitOrder::kRelaxed) {
    if (!tsan::active()) return true;
    RuntimeScope allocates;
    running->relaxed_waits.emplace_back(&barrier, parity);
    return true;
  }
  acquire(barrier.released_to_block[parity & 1]);
  // An acquire at block scope does not see the releases of other blocks.
  if (order == WaitOrder::kCluster) acquire(barrier.released_to_cluster[parity & 1]);
  return true;
}

void fence_acquire_waits(Location) {
  for (auto& [barrier, parity] : running->relaxed_waits) {
    acquire(barrier->released_to_block[parity & 1]);
    acquire(barrier->released_to_cluster[parity & 1]);
  }
  RuntimeScope frees;
  running->relaxed_waits.clear();
}

void mbarrier_wait(device::MBarrier* address, uint32_t parity, bool cluster_scope, Location where) {
  mbarrier_try_wait(address, parity, cluster_scope ? WaitOrder::kCluster : WaitOrder::kBlock, false,
                    where);
}

// ---------------------------------------------------------------------------------------------

void st_async(void* destination, const void* value, size_t bytes, void* barrier, Location where) {
  check_shared(destination, bytes, bytes, "st_async", where, true);
  Block* target = owner_of(destination, true);
  if (machine->config.cluster < 2) fail("st_async in a cluster of one block is undefined", where);
  if (owner_of(barrier, true) != target) {
    fail("st_async: destination and mbarrier are in different blocks", where);
  }
  AsyncCopy copy;
  copy.issuer = running;
  copy.target = target;
  copy.destination = destination;
  raw_copy(copy.data, value, bytes);
  copy.bytes = bytes;
  copy.barrier = &find_mbarrier(barrier, true, where);
  copy.where = where;
  submit_copy(copy);
}

}  // namespace birnn::emulator
