// Runs a program: the loop of a thread, branches, calls.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "addresses.h"
#include "counts.h"
#include "program.h"

uint32_t ptx_environment_registers[1] = {};

namespace ptx {
namespace {

namespace emulator = birnn::emulator;

constexpr size_t kMostFrames = 64;

// Branches back without waiting for anybody, after which a thread is taken to loop forever.
uint32_t most_branches_back() {
  static const uint32_t most = [] {
    const char* const given = std::getenv("PTX_MOST_BRANCHES");
    return given ? static_cast<uint32_t>(std::strtoul(given, nullptr, 10)) : 1u << 22;
  }();
  return most;
}

uint64_t value_of(Special which, const State& s) {
  const emulator::ThreadContext& thread = *emulator::current_thread;
  const auto lanes_below = [&](uint32_t lane) { return (uint64_t{1} << lane) - 1; };
  switch (which) {
    case Special::kTidX:
      return thread.thread;
    case Special::kNtidX:
      return thread.block_size;
    case Special::kCtaidX:
      return thread.block.x;
    case Special::kCtaidY:
      return thread.block.y;
    case Special::kCtaidZ:
      return thread.block.z;
    case Special::kNctaidX:
      return thread.grid.x;
    case Special::kNctaidY:
      return thread.grid.y;
    case Special::kNctaidZ:
      return thread.grid.z;
    case Special::kLaneid:
      return thread.lane;
    case Special::kWarpid:
      return thread.warp;
    case Special::kNwarpid:
      return thread.block_size / 32;
    case Special::kClusterCtarank:
    case Special::kClusterCtaidX:
      return thread.cluster_rank;
    case Special::kClusterNctarank:
    case Special::kClusterNctaidX:
      return thread.cluster_size;
    case Special::kClusteridX:
      return thread.block.x / thread.cluster_size;
    case Special::kNclusteridX:
      return thread.grid.x / thread.cluster_size;
    case Special::kDynamicSmemSize:
      return dynamic_shared_bytes(s);
    case Special::kLanemaskLt:
      return lanes_below(thread.lane);
    case Special::kLanemaskLe:
      return lanes_below(thread.lane + 1);
    case Special::kLanemaskGt:
      return 0xffffffff - lanes_below(thread.lane + 1);
    case Special::kLanemaskGe:
      return 0xffffffff - lanes_below(thread.lane);
    case Special::kLanemaskEq:
      return uint64_t{1} << thread.lane;
    case Special::kEnvreg0:
      return ptx_environment_registers[0];
    case Special::kNtidY:
    case Special::kNtidZ:
    case Special::kOne:
      return 1;
    case Special::kTidY:
    case Special::kTidZ:
    case Special::kSmid:
    case Special::kZero:
      break;
  }
  return 0;
}

// Makes a frame the innermost one.
void enter(State& s, const Program& program) {
  if (s.frames.size() == kMostFrames) throw emulator::Error("calls nest too deeply");
  Frame& frame = s.frames.emplace_back();
  frame.program = s.program = &program;
  frame.slots.reset(new uint64_t[program.num_slots]);
  std::fill_n(frame.slots.get(), program.num_slots, 0);
  frame.parameters.reset(new unsigned char[program.parameter_bytes + 16]());
  frame.local_base = s.local.size();
  s.local.resize(s.local.size() + program.local_bytes, 0xff);
  if (!program.uninitialised.empty()) {
    frame.written.reset(new bool[program.num_slots]);
    std::fill_n(frame.written.get(), program.num_slots, true);
    for (const int64_t slot : program.uninitialised) frame.written[slot] = false;
  }
  s.slots = frame.slots.get();
  s.parameters = frame.parameters.get();
  for (const auto& [slot, bits] : program.constants) s.slots[slot] = bits;
  for (const auto& [slot, special] : program.specials) s.slots[slot] = value_of(special, s);
  s.next = program.code.data();
}

// Of an instruction that some path reaches with unwritten registers: whether all it reads was
// written. A mistake, unless it only computes.
bool check_reads(const State& s, const Instruction& i) {
  const bool* const written = s.frames.back().written.get();
  const auto check = [&](Slot slot, bool hands_on) {
    if (slot == kNoSlot || written[slot]) return true;
    if (hands_on) return false;
    fail(s, i, "depends on " + s.program->names[slot] + ", which was never written");
  };
  check(i.guard, false);
  if (i.guard != kNoSlot && (s.slots[i.guard] != 0) == i.guard_negated) return true;
  bool known = true;
  for (int slot = i.num_written; slot < i.num_slots; ++slot) {
    if (i.selects && slot < 3 && written[i.slots[3]]) {  // selp: of two it takes one
      if (slot != (s.slots[i.slots[3]] != 0 ? 1 : 2)) continue;
    }
    known &= check(i.slots[slot], hands_on(i));
  }
  return known;
}

void mark_writes(State& s, const Instruction& i, bool known) {
  bool* const written = s.frames.back().written.get();
  for (int slot = 0; slot < i.num_written; ++slot) {
    if (i.slots[slot] != kNoSlot) written[i.slots[slot]] = known;
  }
}

void run(State& s) {
  const Counter* const counter = s.counter;
  while (s.next) {
    const Instruction& i = *s.next++;
    if (counter) ++s.counts[counter->index_of(*s.program) + (&i - s.program->code.data())];
    const bool known = !i.checks_reads || check_reads(s, i);
    if (i.guard != kNoSlot && (s.slots[i.guard] != 0) == i.guard_negated) continue;
    if (i.marks_writes) mark_writes(s, i, known);
    i.run(s, i);
  }
}

// A string among the variables of the module.
std::string text_at(const State& s, const Instruction& i, uint64_t address) {
  for (const auto& [name, memory] : s.program->image->globals) {
    const uint64_t begin = reinterpret_cast<uint64_t>(memory.data());
    if (address < begin || address >= begin + memory.size()) continue;
    const auto first = memory.begin() + static_cast<ptrdiff_t>(address - begin);
    return std::string(first, std::find(first, memory.end(), '\0'));
  }
  fail(s, i, "a string that is no variable of the module");
}

// printf("%s...", ...) of the device: the arguments lie behind each other, each at a multiple of
// its size.
int print(State& s, const Instruction& i, uint64_t format_address, uint64_t arguments_address) {
  const std::string format_text = text_at(s, i, format_address);
  const char* format = format_text.c_str();
  const uint64_t offset = ((arguments_address & ~kTagMask) ^ kGenericBit) - kLocalBase;
  size_t position = offset;
  const auto next = [&]<class T>(T) {
    position = (position + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    if (position + sizeof(T) > s.local.size()) fail(s, i, "arguments outside of local memory");
    T value;
    std::memcpy(&value, s.local.data() + position, sizeof value);
    position += sizeof(T);
    return value;
  };
  std::string text;
  for (; *format; ++format) {
    if (*format != '%') {
      text += *format;
      continue;
    }
    std::string one = "%";
    bool is_long = false;
    while (*++format && !std::strchr("diuxXcsfgep%", *format)) {
      is_long |= *format == 'l' || *format == 'z';
      if (*format != 'l' && *format != 'z') one += *format;
    }
    const char kind = *format ? *format : '%';
    char buffer[256];
    if (kind == '%' || one.find_first_not_of("%0123456789.-+ #") != std::string::npos) {
      text += '%';
      if (!*format) break;
      continue;
    }
    if (kind == 's') {
      const auto address = next(uint64_t{});
      std::snprintf(buffer, sizeof buffer, (one + "s").c_str(), text_at(s, i, address).c_str());
    } else if (std::string_view("fge").find(kind) != std::string::npos) {
      std::snprintf(buffer, sizeof buffer, (one + kind).c_str(), next(double{}));
    } else if (is_long || kind == 'p') {
      const std::string with = kind == 'p' ? one + "p" : one + "ll" + kind;
      std::snprintf(buffer, sizeof buffer, with.c_str(), next(uint64_t{}));
    } else {
      std::snprintf(buffer, sizeof buffer, (one + kind).c_str(), next(uint32_t{}));
    }
    text += buffer;
  }
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
  return static_cast<int>(text.size());
}

}  // namespace

// A loop that waits for what others write would never let them run: behind each branch back since
// which something was polled, the others do.
void branch(State& s, const Instruction& i) {
  const Instruction* const target = s.program->code.data() + i.immediate;
  if (target <= &i) {
    if (s.polled) {
      s.polled = false;
      emulator::spin_pause(s.where(i));
    }
    if (++s.branches_back > most_branches_back()) fail(s, i, "loops without an end");
  }
  s.next = target;
}

void branch_by_table(State& s, const Instruction& i) {
  const auto& table = s.program->tables[static_cast<size_t>(i.immediate)];
  const uint32_t index = s.get<uint32_t>(i.slots[0]);
  if (index >= table.size()) fail(s, i, "an index outside of its table");
  if (++s.branches_back > most_branches_back()) fail(s, i, "loops without an end");
  s.next = s.program->code.data() + table[index];
}

void return_from(State& s, const Instruction& i) {
  if (i.detail == 1) {  // exit
    s.next = nullptr;
    return;
  }
  Frame done = std::move(s.frames.back());
  s.frames.pop_back();
  s.local.resize(done.local_base);
  if (s.frames.empty()) {
    s.next = nullptr;
    return;
  }
  const Frame& caller = s.frames.back();
  s.program = caller.program;
  s.slots = caller.slots.get();
  s.parameters = caller.parameters.get();
  s.next = done.return_to;
  for (size_t r = 0; r < done.call->results.size(); ++r) {
    const auto& [offset, bytes] = done.call->results[r];
    std::memcpy(s.parameters + offset, done.parameters.get() + done.program->parameter_offsets[r],
                std::min(bytes, done.call->callee->results[r].bytes));
  }
}

void call(State& s, const Instruction& i) {
  const CallSite& site = s.program->calls[static_cast<size_t>(i.immediate)];
  if (site.callee->name == "vprintf") {
    uint64_t arguments[2] = {};
    for (size_t a = 0; a < 2; ++a) {
      std::memcpy(&arguments[a], s.parameters + site.arguments[a].first, sizeof(uint64_t));
    }
    const int written = print(s, i, arguments[0], arguments[1]);
    std::memcpy(s.parameters + site.results[0].first, &written, sizeof written);
    return;
  }
  if (!site.callee->has_body) {
    fail(s, i, std::string(site.callee->name) + " has no body in the module");
  }
  if (++s.branches_back > most_branches_back()) fail(s, i, "calls without an end");
  const Program& callee = s.program->image->program(site.callee->name);
  const unsigned char* const caller_parameters = s.parameters;
  const Instruction* const return_to = s.next;
  enter(s, callee);
  s.frames.back().call = &site;
  s.frames.back().return_to = return_to;
  const size_t num_results = site.results.size();
  for (size_t a = 0; a < site.arguments.size(); ++a) {
    const auto& [offset, bytes] = site.arguments[a];
    std::memcpy(s.parameters + callee.parameter_offsets[num_results + a],
                caller_parameters + offset, std::min(bytes, site.callee->parameters[a].bytes));
  }
}

void trap(State& s, const Instruction& i) { fail(s, i, "the kernel stops itself"); }

void run_thread(void* opaque) {
  const Entry& entry = *static_cast<const Entry*>(opaque);
  State s;
  s.race = emulator::tsan::active();
  s.shared_bytes = entry.shared_bytes;
  s.counter = entry.counter;
  std::vector<uint32_t> counts;
  if (s.counter) {
    counts.assign(s.counter->size(), 0);
    s.counts = counts.data();
  }
  if (entry.shared_bytes > 0) {
    emulator::SharedCursor cursor;
    s.shared = static_cast<char*>(emulator::allocate_shared(
        cursor, entry.shared_bytes, 128, s.program ? Location() : Location("launch", 0, "")));
  }
  enter(s, *entry.program);
  std::copy(entry.parameters.begin(), entry.parameters.end(), s.parameters);
  run(s);
  if (s.counter) s.counter->add(*emulator::current_thread, counts);
}

}  // namespace ptx
