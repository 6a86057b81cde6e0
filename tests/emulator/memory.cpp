// Shared memory, asynchronous copies, and the store buffer of relaxed global stores.
#include <algorithm>
#include <cstdlib>

#include "machine.h"

namespace birnn::emulator {
namespace {

constexpr uint32_t kRedZoneBytes = 64;

// The agent for an operation that the running thread issues now.
Agent* issue(Agent*& agent, bool inherits_nothing_later) {
  if (!tsan::active()) return nullptr;
  if (inherits_nothing_later && agent && agent->in_flight > 0 &&
      agent->acquires_at_issue != running->acquires) {
    agent->replaced = true;
    agent = nullptr;
  }
  if (!agent) {
    RuntimeScope allocates;
    agent = new Agent;
    agent->fiber = new_race_fiber();
  }
  agent->acquires_at_issue = running->acquires;
  ++agent->in_flight;
  release(agent->issued);
  return agent;
}

// Runs the enclosing scope as the agent of an operation that lands.
class AsAgent {
 public:
  AsAgent(Agent* agent, const char* what, const Location& where, const Thread& issuer)
      : agent_(agent), as_(named(agent, what, where, issuer)) {
    if (agent) tsan::acquire(&agent->issued);
  }
  ~AsAgent() {
    if (!agent_) return;
    release(machine->landed);
    if (--agent_->in_flight > 0 || !agent_->replaced) return;
    RuntimeScope frees;
    retire_race_fiber(agent_->fiber);
    delete agent_;
  }

 private:
  static RaceFiber named(Agent* agent, const char* what, const Location& where,
                         const Thread& issuer) {
    if (!agent) return nullptr;
    const std::string name = what + (" from " + describe(where)) + ", " + describe(issuer);
    tsan::set_name(agent->fiber, name.c_str());
    return agent->fiber;
  }

  Agent* agent_;
  tsan::As as_;
};

bool overlap(const BufferedStore& store, const void* address, size_t bytes) {
  const auto* begin = static_cast<const unsigned char*>(address);
  return store.address < begin + bytes && begin < store.address + store.bytes;
}

// Whether what `store` writes happens before what the running thread does now, without a release.
bool precedes_running_thread(const BufferedStore& store) {
  return store.issuer == running ||
         (store.ordered && running && store.issuer->block == running->block);
}

// Stores that a release of the running thread publishes: its own, and those of its block before a
// barrier.
void land_preceding_stores() {
  for (size_t i = 0; i < machine->stores.size();) {
    if (precedes_running_thread(machine->stores[i])) {
      land_store(i);
      i = 0;
    } else {
      ++i;
    }
  }
}

void check_global(const void* address, size_t bytes, const char* what, const Location& where) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail(std::string(what) + ": misaligned address", where);
  }
  if (asan::is_poisoned(address, bytes)) fail(std::string(what) + ": out of bounds", where);
}

FenceState& fence_state() {
  if (!running->fence) {
    RuntimeScope allocates;
    running->fence = std::make_unique<FenceState>();
    running->fence->reader = new_race_fiber();
    running->fence->releaser = new_race_fiber();
  }
  return *running->fence;
}

}  // namespace

// ---------------------------------------------------------------------------------------------
// Shared memory.

Block* owner_of(const void* address, bool whole_cluster) {
  const char* byte = static_cast<const char*>(address);
  const auto owns = [&](const Block& block) {
    return byte >= block.arena && byte < block.arena + block.arena_bytes;
  };
  if (owns(*running->block)) return running->block;
  if (whole_cluster) {
    for (auto& peer : running->block->cluster->blocks) {
      if (owns(*peer)) return peer.get();
    }
  }
  return nullptr;
}

void check_shared(const void* address, size_t bytes, size_t alignment, const char* what,
                  const Location& where, bool whole_cluster) {
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
    fail(std::string(what) + ": misaligned address", where);
  }
  Block* block = owner_of(address, whole_cluster);
  if (!block) fail(std::string(what) + ": address not in shared memory", where);
  if (block->exited) fail(std::string(what) + ": that block has exited", where);
  if (block != running->block && !running->knows_peers_began) {
    fail(std::string(what) + ": peers may not have begun, no cluster barrier came before", where);
  }
  const size_t offset = static_cast<const char*>(address) - block->arena;
  for (const SharedArray& array : block->arrays) {
    if (offset >= array.offset && offset + bytes <= array.offset + array.bytes) return;
  }
  fail(std::string(what) + ": outside every shared array", where);
}

void check_own_shared(const void* address, size_t bytes, const char* what, Location where) {
  check_shared(address, bytes, bytes, what, where, false);
}

void check_cluster_shared(const void* address, size_t bytes, const char* what, Location where) {
  check_shared(address, bytes, bytes, what, where, true);
}

void* allocate_shared(SharedCursor& cursor, uint32_t bytes, uint32_t alignment, Location where) {
  Block& block = *running->block;
  if (alignment == 0 || alignment > 128 || (alignment & (alignment - 1)) != 0) {
    fail("Smem::alloc: alignment not a power of two up to 128", where);
  }
  const auto align = [&](uint32_t offset) { return (offset + alignment - 1) & ~(alignment - 1); };
  const uint32_t offset = align(cursor.arena + kRedZoneBytes);
  cursor.arena = offset + bytes;
  cursor.device = align(cursor.device) + bytes;
  if (cursor.device > machine->config.shared_bytes) {
    fail("Smem::alloc: " + std::to_string(cursor.device) + " bytes needed, " +
             std::to_string(machine->config.shared_bytes) + " in the launch",
         where);
  }
  if (cursor.arena + kRedZoneBytes > block.arena_bytes) {
    fail("Smem::alloc: more arrays than the emulator has room for", where);
  }
  char* address = block.arena + offset;
  for (const SharedArray& array : block.arrays) {
    if (array.offset == offset && array.bytes == bytes) return address;
    if (array.offset < offset + bytes && offset < array.offset + array.bytes) {
      fail("Smem::alloc: threads disagree about a shared array", where);
    }
  }
  asan::unpoison(address, bytes);
  raw_fill(address, kUninitialised, bytes);
  RuntimeScope allocates;
  block.arrays.push_back({offset, bytes});
  return address;
}

// Without AddressSanitizer, the only sign of a plain store outside an array.
void check_red_zones(const Block& block) {
  std::vector<SharedArray> arrays = block.arrays;
  arrays.push_back({static_cast<uint32_t>(block.arena_bytes), 0});
  std::sort(arrays.begin(), arrays.end(),
            [](const SharedArray& a, const SharedArray& b) { return a.offset < b.offset; });
  size_t position = 0;
  for (const SharedArray& array : arrays) {
    for (; position < array.offset; ++position) {
      if (static_cast<unsigned char>(block.arena[position]) == kRedZone) continue;
      throw Error("a store outside every shared array, found at the end of its block: " +
                  std::to_string(array.offset - position) + " bytes before the array of " +
                  std::to_string(array.bytes) + " bytes");
    }
    position = array.offset + array.bytes;
  }
}

char* map_to_rank(const void* own_shared, uint32_t rank, Location where) {
  Block* block = owner_of(own_shared, false);
  if (!block) fail("map_rank: not an address of this block's shared memory", where);
  auto& blocks = block->cluster->blocks;
  if (rank >= blocks.size()) fail("map_rank: rank outside the cluster", where);
  return blocks[rank]->arena + (static_cast<const char*>(own_shared) - block->arena);
}

// ---------------------------------------------------------------------------------------------
// Asynchronous copies.

void submit_copy(AsyncCopy& copy) {
  copy.agent = issue(running->copy_agent, true);
  {
    RuntimeScope allocates;
    machine->copies.push_back(copy);
  }
  if (machine->options.landing == Landing::kEager) land_copy(machine->copies.size() - 1);
}

void land_copy(size_t index) {
  AsyncCopy copy = machine->copies[index];
  machine->copies[index] = machine->copies.back();
  machine->copies.pop_back();
  ++mutable_statistics.async_operations;
  Thread& issuer = *copy.issuer;
  if (copy.target->exited) {
    throw Error("asynchronous store to a block that has exited, issued at " + describe(copy.where) +
                " by " + describe(issuer));
  }
  AsAgent as(copy.agent, "asynchronous copy", copy.where, issuer);
  if (copy.source && copy.source_bytes > 0) {
    tsan::read_range(copy.source, copy.source_bytes);
    raw_copy(copy.data, copy.source, copy.source_bytes);
  }
  tsan::write_range(copy.destination, copy.bytes);
  raw_copy(copy.destination, copy.data, copy.bytes);
  if (copy.barrier) {
    MBarrierState& barrier = *copy.barrier;
    const bool own = copy.target == issuer.block;
    release((own ? barrier.released_to_block : barrier.released_to_cluster)[barrier.phase & 1]);
    complete_bytes(barrier, copy.bytes);
  } else {
    CopyGroups& groups = *issuer.copies;
    const uint64_t slot = copy.group % CopyGroups::kMaxOpen;
    release(groups.landed[slot]);
    --groups.in_flight[slot];
    --issuer.copies_in_flight;
    ++machine->progress;
    groups.waiting.wake();
  }
}

void cp_async(void* destination, const void* source, size_t bytes, size_t source_bytes,
              Location where) {
  check_shared(destination, bytes, bytes, "cp_async", where, false);
  if (source_bytes > bytes) fail("cp_async: more source bytes than bytes", where);
  if (source_bytes > 0) {
    if (reinterpret_cast<uintptr_t>(source) % bytes != 0) {
      fail("cp_async: misaligned source", where);
    }
    if (asan::is_poisoned(source, source_bytes)) fail("cp_async: source out of bounds", where);
  }
  if (!running->copies) {
    RuntimeScope allocates;
    running->copies = std::make_unique<CopyGroups>();
  }
  CopyGroups& groups = *running->copies;
  ++groups.in_flight[groups.committed % CopyGroups::kMaxOpen];
  ++running->copies_in_flight;
  AsyncCopy copy;
  copy.issuer = running;
  copy.target = running->block;
  copy.destination = destination;
  copy.source = source;
  copy.bytes = bytes;
  copy.source_bytes = source_bytes;
  copy.group = groups.committed;
  copy.where = where;
  submit_copy(copy);
}

void cp_async_commit(Location where) {
  if (!running->copies) {
    RuntimeScope allocates;
    running->copies = std::make_unique<CopyGroups>();
  }
  CopyGroups& groups = *running->copies;
  ++groups.committed;
  if (groups.committed - groups.waited >= CopyGroups::kMaxOpen) {
    fail("cp_async_commit: too many groups without a cp_async_wait", where);
  }
}

void cp_async_wait(int pending, Location where) {
  if (!running->copies) return;
  CopyGroups& groups = *running->copies;
  if (groups.committed < groups.waited + pending) return;
  const uint64_t end = groups.committed - pending;
  wait_until(groups.waiting, "cp_async_wait", where, [&] {
    for (uint64_t group = groups.waited; group < end; ++group) {
      if (groups.in_flight[group % CopyGroups::kMaxOpen] > 0) return false;
    }
    return true;
  });
  for (; groups.waited < end; ++groups.waited) {
    acquire(groups.landed[groups.waited % CopyGroups::kMaxOpen]);
  }
}

// ---------------------------------------------------------------------------------------------
// Global memory shared by running blocks.
//
// Stores are delayed, loads are not: a load never returns a value older than one that has landed.

void mark_stores_ordered() {
  if (running->buffered_stores == 0) return;
  for (BufferedStore& store : machine->stores) {
    if (store.issuer == running) store.ordered = true;
  }
}

void land_store(size_t index) {
  // Earlier stores to the same place first.
  const bool is_alone = machine->stores_to_word.at(machine->stores[index].address) == 1;
  for (size_t i = 0; i < index && !is_alone; ++i) {
    const BufferedStore& later = machine->stores[index];
    if (!overlap(machine->stores[i], later.address, later.bytes)) continue;
    land_store(i);
    return land_store(index - 1);
  }
  const BufferedStore store = machine->stores[index];
  {
    RuntimeScope moves;
    machine->stores.erase(machine->stores.begin() + static_cast<ptrdiff_t>(index));
  }
  ++mutable_statistics.async_operations;
  ++machine->progress;
  --store.issuer->buffered_stores;
  --machine->stores_to_word.at(store.address);
  --machine->stores_of_block_to_word.at(store.address, store.issuer->block);
  if (store.fenced && tsan::active()) {
    tsan::As releaser(store.issuer->fence->releaser);
    tsan::release(store.address);
  }
  AsAgent as(store.agent, "relaxed store", store.where, *store.issuer);
  if (store.bytes == 4) {
    uint32_t value;
    raw_copy(&value, store.data, sizeof value);
    tsan::store32(store.address, value, __ATOMIC_RELAXED);
  } else {
    uint64_t value;
    raw_copy(&value, store.data, sizeof value);
    tsan::store64(store.address, value, __ATOMIC_RELAXED);
  }
}

void land_store_of_highest_priority() {
  size_t best = 0;
  for (size_t i = 1; i < machine->stores.size(); ++i) {
    if (machine->stores[i].priority > machine->stores[best].priority) best = i;
  }
  land_store(best);
}

void store_relaxed(void* destination, const void* value, size_t bytes, Location where) {
  check_global(destination, bytes, "store_relaxed_gpu", where);
  BufferedStore store;
  store.issuer = running;
  store.address = static_cast<unsigned char*>(destination);
  raw_copy(store.data, value, bytes);
  store.bytes = bytes;
  store.priority = static_cast<uint32_t>(random_number());
  store.fenced = running->fence != nullptr;
  store.where = where;
  store.agent = issue(running->store_agent, false);  // relaxed: nobody inherits anything from it
  ++running->buffered_stores;
  ++machine->stores_to_word.at(destination);
  ++machine->stores_of_block_to_word.at(destination, running->block);
  {
    RuntimeScope allocates;
    machine->stores.push_back(store);
  }
  if (machine->options.landing == Landing::kEager) land_store(machine->stores.size() - 1);
}

void load_relaxed(const void* source, void* value, size_t bytes, Location where) {
  check_global(source, bytes, "load_relaxed_gpu", where);
  // A thread sees its own stores, and those of its block before a barrier.
  const uint32_t& own = machine->stores_of_block_to_word.at(source, running->block);
  for (size_t i = 0; own > 0 && i < machine->stores.size();) {
    if (overlap(machine->stores[i], source, bytes) && precedes_running_thread(machine->stores[i])) {
      land_store(i);
      i = 0;
    } else {
      ++i;
    }
  }
  if (bytes == 4) {
    const uint32_t word = tsan::load32(source, __ATOMIC_RELAXED);
    raw_copy(value, &word, sizeof word);
  } else {
    const uint64_t word = tsan::load64(source, __ATOMIC_RELAXED);
    raw_copy(value, &word, sizeof word);
  }
  if (tsan::active()) {  // for a fence to come
    tsan::As reader(fence_state().reader);
    tsan::acquire(const_cast<void*>(source));
  }
}

uint32_t load_acquire(const uint32_t* source, Location where) {
  check_global(source, sizeof *source, "load_acquire_gpu", where);
  ++running->acquires;
  return tsan::load32(source, __ATOMIC_ACQUIRE);
}

void store_release(uint32_t* destination, uint32_t value, Location where) {
  check_global(destination, sizeof value, "store_release_gpu", where);
  land_preceding_stores();
  ++machine->progress;
  tsan::store32(destination, value, __ATOMIC_RELEASE);
}

void red_add_release(uint32_t* destination, uint32_t value, Location where) {
  check_global(destination, sizeof value, "red_add_release_gpu", where);
  land_preceding_stores();
  ++machine->progress;
  tsan::add32(destination, value, __ATOMIC_RELEASE);
}

void fence_acq_rel(Location) {
  land_preceding_stores();
  if (!tsan::active()) return;
  FenceState& fence = fence_state();
  {
    tsan::As reader(fence.reader);
    release(fence.read);
  }
  acquire(fence.read);
  release(fence.released);
  tsan::As releaser(fence.releaser);
  tsan::acquire(&fence.released);
}

}  // namespace birnn::emulator
