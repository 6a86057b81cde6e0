// The order in which a GPU may run what a call enqueues: streams, events and operations as a
// program hands them to CUDA's runtime, each with a vector clock, and the memory that each
// operation reads and writes. From that follows what happens before what, and what nothing orders.
//
// A recording begins, the call enqueues, the recording ends: then there is a list of operations and
// one of violations. A violation is
//   - two operations that touch the same memory, at least one writing, with nothing between them
//     that orders them;
//   - memory used where its allocation does not come before, or freed where what uses it need not
//     have ended: as with torch's allocator, memory belongs to the stream that was current when it
//     was allocated, and is that stream's to use again as soon as it is freed;
//   - what the caller's stream does not wait for when the call has returned;
//   - work that is not part of a capture while one runs, or an event from outside of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace birnn::emulator::timeline {

constexpr int kMaxStreams = 12;  // of one recording
using Clock = std::array<uint32_t, kMaxStreams>;

struct Stream;

struct Operation {
  std::string what;
  int stream = 0;               // by first use; 0: the caller's
  int priority = 0;             // of its stream
  uint32_t index = 0;           // on the stream
  Clock clock{};                // everything that happens before it, itself included
  std::set<int> reads, writes;  // allocations, by number
  std::set<int> sources;        // operations whose results it reads, by number

  bool follows(const Operation& other) const { return clock[other.stream] >= other.index; }
};

struct Recording {
  std::vector<Operation> operations;
  std::vector<std::string> violations;
  std::vector<int> owners;  // of each allocation, its stream; -1: it was there before
  int num_waits = 0;
  size_t peak_bytes = 0;  // of all that was allocated and not yet freed
};

// What a recording pretends that the program has done wrong, to show that it would be seen: by
// number, from 0 on; -1: nothing.
struct Mistake {
  int forgotten_wait = -1;
  int freed_allocation = -1;  // as soon as this operation has been enqueued:
  int freed_after = -1;
};

// ---- the program's view

void begin(Stream* caller, bool capturing, const Mistake& mistake = {});
Recording end();
bool recording();
bool capturing();

Stream* new_stream(int priority);
int priority_of(const Stream*);

// The stream of allocations, and of what names none.
Stream* current();
void set_current(Stream*);

struct Event;
Event* new_event();
void record(Event*, Stream*);
void wait(Stream*, Event*);
bool is_captured(const Stream*);

void violate(const std::string& what);

// ---- memory

// Memory that is there before the call. Its number.
int know(const void* begin, size_t bytes);
int number_of(const void* address);  // of the allocation that holds it, -1 if none does
void allocated(const void* begin, size_t bytes);
void freed(const void* begin);

// What is enqueued on a stream, and runs while this lives as far as its accesses go.
class Enqueued {
 public:
  Enqueued(Stream*, const std::string& what);
  ~Enqueued();
  Enqueued(const Enqueued&) = delete;
  Enqueued& operator=(const Enqueued&) = delete;
};

extern int enqueued;  // the operation that runs, by number; -1: none, or nothing is recorded
void access_of_enqueued(const void* address, size_t bytes, bool writes);

// Every load and store of a kernel comes here, in most calls for nothing.
inline void access(const void* address, size_t bytes, bool writes) {
  if (enqueued >= 0) access_of_enqueued(address, bytes, writes);
}

}  // namespace birnn::emulator::timeline
