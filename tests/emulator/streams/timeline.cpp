#include "timeline.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>

namespace birnn::emulator::timeline {

struct Stream {
  int priority = 0;
  int id = -1;  // in the recording of this number
  int recording = 0;
  Clock clock{};
  bool captured = false;
};

struct Event {
  Clock clock{};
  int recording = 0;
  bool captured = false;
};

namespace {

constexpr size_t kGrain = 2;  // bytes: an element at least

struct Cell {
  int writer = -1;
  std::array<int, kMaxStreams> readers;
  Cell() { readers.fill(-1); }
};

struct Allocation {
  const char* begin = nullptr;
  size_t bytes = 0;
  int number = 0;
  std::vector<Cell> cells;
  Stream* owner = nullptr;
};

struct State {
  bool recording = false, capturing = false;
  Mistake mistake;
  int number = 0;  // of the recording
  Recording result;
  std::vector<Stream*> streams;
  Stream* caller = nullptr;
  std::map<const char*, Allocation> allocations;  // by begin
  Allocation* latest = nullptr;
  int num_allocations = 0;
  size_t live_bytes = 0;
  std::set<std::string> seen;
};

State state;
Stream* current_stream = nullptr;

Stream& used(Stream* stream) {
  if (stream->recording != state.number) {
    stream->recording = state.number;
    stream->id = static_cast<int>(state.streams.size());
    stream->clock.fill(0);
    state.streams.push_back(stream);
    if (stream->id >= kMaxStreams) {
      violate("more streams than a recording holds");
      stream->id = kMaxStreams - 1;
    }
  }
  return *stream;
}

// A step of a stream that everything enqueued on it so far comes before.
int enqueue(Stream* on, const std::string& what) {
  Stream& stream = used(on);
  if (state.capturing && !stream.captured) violate(what + " is not part of the capture");
  Operation operation;
  operation.what = what;
  operation.stream = stream.id;
  operation.priority = stream.priority;
  operation.index = ++stream.clock[stream.id];
  operation.clock = stream.clock;
  state.result.operations.push_back(operation);
  return static_cast<int>(state.result.operations.size()) - 1;
}

std::string describe(int operation) {
  const Operation& one = state.result.operations[operation];
  return one.what + " (" + std::to_string(operation) + ", stream " + std::to_string(one.stream) +
         ")";
}

Allocation* find(const void* address) {
  const char* const byte = static_cast<const char*>(address);
  const auto holds = [&](const Allocation* one) {
    return one && byte >= one->begin && byte < one->begin + one->bytes;
  };
  if (holds(state.latest)) return state.latest;
  auto next = state.allocations.upper_bound(byte);
  if (next == state.allocations.begin()) return nullptr;
  Allocation* const found = &std::prev(next)->second;
  if (!holds(found)) return nullptr;
  return state.latest = found;
}

Allocation& add(const void* begin, size_t bytes, int writer) {
  state.latest = nullptr;
  Allocation& one = state.allocations[static_cast<const char*>(begin)];
  one = Allocation();
  one.begin = static_cast<const char*>(begin);
  one.bytes = bytes;
  one.number = state.num_allocations++;
  state.result.owners.push_back(writer < 0 ? -1 : used(current_stream).id);
  one.owner = current_stream;
  one.cells.resize((bytes + kGrain - 1) / kGrain);
  for (Cell& cell : one.cells) cell.writer = writer;
  return one;
}

}  // namespace

int enqueued = -1;

void begin(Stream* caller, bool capturing, const Mistake& mistake) {
  const int number = state.number + 1;
  state = State();
  state.number = number;
  enqueued = -1;
  state.recording = true;
  state.capturing = capturing;
  state.mistake = mistake;
  state.caller = current_stream = caller;
  used(caller).captured = capturing;
}

Recording end() {
  const Clock& joined = state.caller->clock;
  for (size_t i = 0; i < state.result.operations.size(); ++i) {
    const Operation& one = state.result.operations[i];
    if (joined[one.stream] < one.index)
      violate("the caller does not wait for " + describe(static_cast<int>(i)));
  }
  if (current_stream != state.caller) violate("the current stream is not the caller's at the end");
  for (Stream* stream : state.streams) stream->captured = false;
  Recording result = std::move(state.result);
  const int number = state.number;
  state = State();
  state.number = number;
  enqueued = -1;
  return result;
}

bool recording() { return state.recording; }
bool capturing() { return state.capturing; }

Stream* new_stream(int priority) {
  static std::deque<Stream> streams;  // kept, as those of streams.cpp are
  streams.emplace_back();
  streams.back().priority = priority;
  return &streams.back();
}
int priority_of(const Stream* stream) { return stream->priority; }

Stream* current() {
  if (!current_stream) current_stream = new_stream(0);
  return current_stream;
}
void set_current(Stream* stream) { current_stream = stream; }

Event* new_event() {
  static std::deque<Event> events;
  events.emplace_back();
  return &events.back();
}

void record(Event* event, Stream* on) {
  if (!state.recording) return;
  const Stream& stream = used(on);
  event->clock = stream.clock;
  event->recording = state.number;
  event->captured = stream.captured;
}

void wait(Stream* on, Event* event) {
  if (!state.recording) return;
  Stream& stream = used(on);
  if (state.result.num_waits++ == state.mistake.forgotten_wait) return;
  if (event->recording != state.number) return violate("waits for an event of another call");
  if (stream.captured && !event->captured) violate("waits in a capture for an event of outside");
  if (event->captured) stream.captured = true;
  for (int i = 0; i < kMaxStreams; ++i)
    stream.clock[i] = std::max(stream.clock[i], event->clock[i]);
  ++stream.clock[stream.id];  // what comes after a wait is not what came before it
}

bool is_captured(const Stream* stream) { return state.recording && stream->captured; }

void violate(const std::string& what) {
  if (state.seen.insert(what).second) state.result.violations.push_back(what);
}

int know(const void* begin, size_t bytes) {
  const Allocation* const known = find(begin);
  return known ? known->number : add(begin, bytes, -1).number;
}

int number_of(const void* address) {
  const Allocation* const known = find(address);
  return known ? known->number : -1;
}

void allocated(const void* begin, size_t bytes) {
  if (!state.recording || bytes == 0) return;
  add(begin, bytes, enqueue(current_stream, "an allocation"));
  state.live_bytes += bytes;
  state.result.peak_bytes = std::max(state.result.peak_bytes, state.live_bytes);
}

void freed(const void* begin) {
  if (!state.recording) return;
  const auto entry = state.allocations.find(static_cast<const char*>(begin));
  if (entry == state.allocations.end()) return;
  const Allocation& one = entry->second;
  const Stream& owner = used(one.owner);
  const auto check = [&](int operation) {
    if (operation < 0) return;
    const Operation& user = state.result.operations[operation];
    if (owner.clock[user.stream] < user.index)
      violate("memory of stream " + std::to_string(owner.id) + " is freed before " +
              describe(operation) + " need have ended");
  };
  for (const Cell& cell : one.cells) {
    check(cell.writer);
    for (const int reader : cell.readers) check(reader);
  }
  if (state.result.owners[one.number] >= 0) state.live_bytes -= one.bytes;
  state.latest = nullptr;
  state.allocations.erase(entry);
}

Enqueued::Enqueued(Stream* stream, const std::string& what) {
  if (state.recording) enqueued = enqueue(stream, what);
}
Enqueued::~Enqueued() {
  const int ended = enqueued;
  enqueued = -1;
  if (ended < 0 || ended != state.mistake.freed_after) return;
  for (const auto& [begin, one] : state.allocations)
    if (one.number == state.mistake.freed_allocation) {
      freed(begin);  // forgets it
      return;
    }
}

void access_of_enqueued(const void* address, size_t bytes, bool writes) {
  Allocation* const one = find(address);
  if (!one) return;
  const int self = enqueued;
  Operation& operation = state.result.operations[self];
  (writes ? operation.writes : operation.reads).insert(one->number);
  const auto check = [&](int other, const char* what) {
    if (other < 0 || other == self) return;
    if (!operation.follows(state.result.operations[other]))
      violate(std::string(what) + ": nothing orders " + describe(other) + " and " + describe(self) +
              ", which touch the same memory");
  };
  const size_t first = static_cast<const char*>(address) - one->begin;
  const size_t last = std::min(first + bytes, one->bytes);
  for (size_t i = first / kGrain; i < (last + kGrain - 1) / kGrain; ++i) {
    Cell& cell = one->cells[i];
    if (cell.writer != self) check(cell.writer, writes ? "written twice" : "read after a write");
    if (writes) {
      if (cell.writer == self) continue;
      for (const int reader : cell.readers) check(reader, "written after a read");
      cell.writer = self;
      cell.readers.fill(-1);
    } else {
      if (cell.writer >= 0 && cell.writer != self) operation.sources.insert(cell.writer);
      cell.readers[operation.stream] = self;
    }
  }
}

}  // namespace birnn::emulator::timeline
