// The modelled machine: what the files of the runtime share.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fibers.h"
#include "runtime.h"
#include "sanitizers.h"

namespace birnn::emulator {

struct Block;
struct Thread;
struct Warp;

// Bytes of shared memory that nobody has written: NaN in every float format, -1 as an integer.
constexpr unsigned char kUninitialised = 0xff;
// Bytes between shared arrays: NaN in fp16, -4e37 in bf16 and fp32.
constexpr unsigned char kRedZone = 0xfd;

// Threads that wait for one thing, first come first.
class WaitList {
 public:
  void add(Thread*);
  // Makes all of them runnable.
  void wake();

 private:
  Thread* first_ = nullptr;
  Thread* last_ = nullptr;
};

// A barrier of a block or a cluster. Two tokens, used in turn: the threads of phase p + 1 may
// release before those of phase p have all gone on.
struct Barrier {
  WaitList waiting;
  unsigned arrived = 0, expected = 0;
  uint64_t phase = 0;
  Location first_arrival;
  SyncToken token[2];
};

struct MBarrierState {
  const void* address = nullptr;
  WaitList waiting;
  uint32_t arrivals = 0, pending_arrivals = 0;
  int64_t pending_bytes = 0;
  uint64_t phase = 0;
  SyncToken released_to_block[2], released_to_cluster[2];
};

// A ThreadSanitizer fiber for the asynchronous operations of one thread. An operation is a thread
// of its own that starts when it is issued: it must not inherit what its issuer does later. One
// agent serves the operations issued with no acquire in between, and later ones once those have
// landed.
struct Agent {
  RaceFiber fiber = nullptr;
  SyncToken issued;
  uint64_t acquires_at_issue = 0;
  unsigned in_flight = 0;
  bool replaced = false;  // its thread has another one by now
};

struct AsyncCopy {
  Thread* issuer = nullptr;
  Block* target = nullptr;
  void* destination = nullptr;
  const void* source = nullptr;  // cp.async: read when the copy lands
  unsigned char data[16] = {};   // st.async: read when it was issued
  size_t bytes = 0, source_bytes = 0;
  MBarrierState* barrier = nullptr;  // st.async
  uint64_t group = 0;                // cp.async
  Agent* agent = nullptr;
  Location where;
};

struct BufferedStore {
  Thread* issuer = nullptr;
  unsigned char* address = nullptr;
  unsigned char data[8] = {};
  size_t bytes = 0;
  uint32_t priority = 0;  // the highest lands first
  bool ordered = false;   // a barrier of its block came after it
  bool fenced = false;    // a fence of its thread came before it
  Agent* agent = nullptr;
  Location where;
};

// The cp.async groups of one thread.
struct CopyGroups {
  static constexpr uint64_t kMaxOpen = 64;
  uint64_t committed = 0;  // groups; the open one has this number
  uint64_t waited = 0;     // groups below have landed and are visible
  unsigned in_flight[kMaxOpen] = {};
  SyncToken landed[kMaxOpen];
  WaitList waiting;
};

// Fences under ThreadSanitizer: what relaxed loads could acquire and relaxed stores release.
struct FenceState {
  RaceFiber reader = nullptr;    // has acquired what was released to the words loaded
  RaceFiber releaser = nullptr;  // knows what happened before the latest fence
  SyncToken read, released;
};

struct Thread {
  ThreadContext context;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Fiber* fiber = nullptr;  // from its start to its end
  Thread* next_waiting = nullptr;
  const char* waits_for = "its start";
  Location where;
  bool finished = false;
  bool arrived_at_cluster = false;
  bool knows_peers_began = false;
  uint64_t cluster_phase = 0;

  std::unique_ptr<CopyGroups> copies;
  unsigned copies_in_flight = 0;
  unsigned buffered_stores = 0;

  RaceFiber race_fiber = nullptr;
  Agent* copy_agent = nullptr;
  Agent* store_agent = nullptr;
  std::unique_ptr<FenceState> fence;
  uint64_t acquires = 0;  // so far
  // Waits that acquired nothing yet, and their parities.
  std::vector<std::pair<MBarrierState*, uint32_t>> relaxed_waits;
};

struct Warp {
  uint32_t priority = 0;  // in the skewed order
  WaitList waiting;
  unsigned arrived = 0;
  uint64_t phase = 0;
  int operation = 0;
  Location first_arrival;
  SyncToken token[2];
  Deposit deposits[2][32];
};

struct SharedArray {
  uint32_t offset, bytes;
};

struct Cluster;

struct Block {
  Cluster* cluster = nullptr;
  uint32_t priority = 0;
  unsigned live_threads = 0;
  bool exited = false;

  char* arena = nullptr;  // the shared memory, with red zones
  size_t arena_bytes = 0;
  std::vector<SharedArray> arrays;  // by offset
  // By byte of shared memory, in an array or behind one: where a front end has told.
  std::vector<uint8_t> in_arrays;
  std::vector<std::unique_ptr<MBarrierState>> mbarriers;
  std::unique_ptr<Barrier[]> barriers;  // 16
  std::unique_ptr<Warp[]> warps;

  SyncToken end;  // released by each thread at its end
};

struct Cluster {
  Barrier barrier;
  std::vector<std::unique_ptr<Block>> blocks;
};

// A ring buffer of threads, each in it at most once.
class ThreadQueue {
 public:
  void reset(size_t capacity);
  void push(Thread* thread) { at(size_++) = thread; }
  Thread* pop();
  Thread*& at(size_t i) { return ring_[(head_ + i) % ring_.size()]; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  void swap(ThreadQueue& other);

 private:
  std::vector<Thread*> ring_;
  size_t head_ = 0, size_ = 0;
};

// How many of the buffered stores are to a word of eight bytes, and from one block, by a hash:
// mostly none, and then nobody need look at all stores. Each lies within one such word.
class StoreFilter {
 public:
  uint32_t& at(const void* address, const Block* issuer = nullptr) {
    const auto word = reinterpret_cast<uintptr_t>(address) >> 3;
    return counts_[(word + reinterpret_cast<uintptr_t>(issuer) / sizeof(Block) * 977) % kWords];
  }

 private:
  static constexpr size_t kWords = 1 << 15;
  std::array<uint32_t, kWords> counts_{};
};

struct Machine {
  Options options;
  LaunchConfig config;
  void (*thread_body)(void*) = nullptr;
  void* argument = nullptr;

  std::vector<std::unique_ptr<Cluster>> clusters;  // resident ones
  std::vector<Thread> threads;
  ThreadQueue runnable, spinning;
  Warp* favourite = nullptr;  // in the skewed order: the warp that runs
  size_t favourite_position = 0;
  std::vector<AsyncCopy> copies;      // in flight
  std::vector<BufferedStore> stores;  // in the order of their issue
  StoreFilter stores_to_word, stores_of_block_to_word;

  uint64_t random_state = 1;
  uint64_t progress = 0;   // changes when something may have become possible
  char error[1024] = {};   // of the first thread that failed
  bool cancelled = false;  // threads that are resumed unwind

  RaceFiber host = nullptr;  // ThreadSanitizer's fiber of the calling thread
  SyncToken landed;          // released by every asynchronous operation
};

extern Machine* machine;
extern Thread* running;  // null in the scheduler
extern Statistics mutable_statistics;
extern size_t gap_bytes;  // of a launch's shared memory, beyond what its caller asked for

uint64_t random_number();
std::string describe(const Location&);
std::string describe(const Thread&);

// The runtime's own allocations happen as one ThreadSanitizer thread: memory that passes from
// fiber to fiber inside it is no race of the kernel.
class RuntimeScope {
 public:
  RuntimeScope() : as_host_(machine ? machine->host : nullptr) {}

 private:
  tsan::As as_host_;
};

// A ThreadSanitizer fiber that starts now, after all that the host did; null without it.
RaceFiber new_race_fiber();
void retire_race_fiber(RaceFiber);

void release(SyncToken&);
void acquire(SyncToken&);  // by the running thread

// Back to the scheduler until somebody makes the running thread runnable.
void suspend_running();

template <class Predicate>
void wait_until(WaitList& list, const char* what, const Location& where, Predicate predicate) {
  if (predicate()) return;
  running->waits_for = what;
  running->where = where;
  do {
    list.add(running);
    suspend_running();
  } while (!predicate());
}

// Copies without calling memcpy, which sanitizers intercept.
void raw_copy(void* destination, const void* source, size_t bytes);
void raw_fill(void* destination, unsigned char value, size_t bytes);

// barriers.cpp
void complete_bytes(MBarrierState&, size_t bytes);

// memory.cpp
void check_shared(const void* address, size_t bytes, size_t alignment, const char* what,
                  const Location&, bool whole_cluster);
Block* owner_of(const void* address, bool whole_cluster);
void check_red_zones(const Block&);
void submit_copy(AsyncCopy&);  // of the running thread
void land_copy(size_t index);
void land_store(size_t index);
void land_store_of_highest_priority();
void mark_stores_ordered();  // those of the running thread, which arrives at a barrier

}  // namespace birnn::emulator
