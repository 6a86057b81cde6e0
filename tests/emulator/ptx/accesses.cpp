// Accesses of memory: each finds its state space, is checked against its bounds and alignment, and
// is shown to the race detector.
#include <algorithm>

#include "addresses.h"

namespace ptx {
namespace {

namespace emulator = birnn::emulator;

void* race_pc(const State& s, const Instruction& i) {
  const size_t index = static_cast<size_t>(&i - s.program->code.data());
  return reinterpret_cast<void*>(s.program->race_pc + index * 16 + 1);
}

bool is_shared_by_threads(Space space) {
  return space == Space::kShared || space == Space::kCluster || space == Space::kGlobal;
}

template <class T>
T read_word(const unsigned char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// T: of the memory; signed types reach the end of the register.
template <class T>
void load(State& s, const Instruction& i) {
  const uint64_t address = s.get<uint64_t>(i.slots[i.count]) + static_cast<uint64_t>(i.immediate);
  const size_t bytes = sizeof(T) * i.count;
  const Place place = find(s, i, address, bytes);
  if (s.race && is_shared_by_threads(place.space)) {
    emulator::tsan::read_range_at(place.pointer, bytes, race_pc(s, i));
  }
  T values[4];
  emulator::raw_copy(values, place.pointer, bytes);  // shown already, by the line of PTX
  for (int e = 0; e < i.count; ++e) {
    if (i.slots[e] == kNoSlot) continue;
    if constexpr (std::is_signed_v<T>) {
      s.slots[i.slots[e]] = static_cast<uint64_t>(static_cast<int64_t>(values[e]));
    } else {
      s.slots[i.slots[e]] = values[e];
    }
  }
}

template <class T>
void store(State& s, const Instruction& i) {
  const uint64_t address = s.get<uint64_t>(i.slots[0]) + static_cast<uint64_t>(i.immediate);
  const size_t bytes = sizeof(T) * i.count;
  const Place place = find(s, i, address, bytes);
  if (s.race && is_shared_by_threads(place.space)) {
    emulator::tsan::write_range_at(place.pointer, bytes, race_pc(s, i));
  }
  T values[4];
  for (int e = 0; e < i.count; ++e) values[e] = s.get<T>(i.slots[1 + e]);
  emulator::raw_copy(place.pointer, values, bytes);
  s.polled = false;
}

// ---------------------------------------------------------------------------------------------
// Strong accesses of global memory: the emulator's.

uint64_t global_address(const State& s, const Instruction& i, Slot slot) {
  const uint64_t address = s.get<uint64_t>(slot) + static_cast<uint64_t>(i.immediate);
  const size_t bytes = size_t{i.bytes} * i.count;
  if (address % bytes != 0) fail(s, i, "misaligned address " + hex(address));
  check_global(s, i, address, bytes);
  return address;
}

void load_relaxed(State& s, const Instruction& i) {
  const uint64_t address = global_address(s, i, i.slots[i.count]);
  uint64_t values[4] = {};
  for (int e = i.count - 1; e >= 0; --e) {  // of a vector each word is atomic, no order among them
    const auto* word = reinterpret_cast<const void*>(address + size_t{i.bytes} * e);
    emulator::load_relaxed(word, &values[e], i.bytes, s.where(i));
  }
  for (int e = 0; e < i.count; ++e) s.put(i.slots[e], values[e]);
  s.polled = true;
}
void load_acquire(State& s, const Instruction& i) {
  const uint64_t address = global_address(s, i, i.slots[1]);
  const auto* word = reinterpret_cast<const uint32_t*>(address);
  s.put(i.slots[0], emulator::load_acquire(word, s.where(i)));
  s.polled = true;
}
void store_relaxed(State& s, const Instruction& i) {
  const uint64_t address = global_address(s, i, i.slots[0]);
  for (int e = 0; e < i.count; ++e) {
    auto* word = reinterpret_cast<void*>(address + size_t{i.bytes} * e);
    emulator::store_relaxed(word, &s.slots[i.slots[1 + e]], i.bytes, s.where(i));
  }
  s.polled = false;
}
void store_release(State& s, const Instruction& i) {
  const uint64_t address = global_address(s, i, i.slots[0]);
  auto* word = reinterpret_cast<uint32_t*>(address);
  emulator::store_release(word, s.get<uint32_t>(i.slots[1]), s.where(i));
  s.polled = false;
}
void add_release(State& s, const Instruction& i) {
  const uint64_t address = global_address(s, i, i.slots[0]);
  auto* word = reinterpret_cast<uint32_t*>(address);
  emulator::red_add_release(word, s.get<uint32_t>(i.slots[1]), s.where(i));
  s.polled = false;
}

struct Sum {
  template <class T>
  static T of(T a, T b) {
    return a + b;
  }
};
struct Largest {
  template <class T>
  static T of(T a, T b) {
    return std::max(a, b);
  }
};
// atom.global.add and max, relaxed. Threads are switched at other places: the two halves are one.
template <class T, class Operation>
void atomic(State& s, const Instruction& i) {
  const uint64_t address = global_address(s, i, i.slots[1]);
  auto* const word = reinterpret_cast<void*>(address);
  uint64_t before = 0;
  emulator::load_relaxed(word, &before, sizeof(T), s.where(i));
  const T after = Operation::template of<T>(static_cast<T>(before), s.get<T>(i.slots[2]));
  if constexpr (sizeof(T) == 4)
    emulator::tsan::store32(word, after, __ATOMIC_RELAXED);
  else
    emulator::tsan::store64(word, after, __ATOMIC_RELAXED);
  ++emulator::machine->progress;
  s.put(i.slots[0], static_cast<T>(before));
  s.polled = false;
}

// emulated.shared_array
void shared_array(State& s, const Instruction& i) {
  const uint32_t begin = s.get<uint32_t>(i.slots[0]) - kSharedBase;
  const uint32_t bytes = s.get<uint32_t>(i.slots[1]), needed = s.get<uint32_t>(i.slots[2]);
  const uint64_t given = dynamic_shared_bytes(s);
  if (needed > given) {
    fail(s, i,
         std::to_string(needed) + " bytes of shared memory needed, " + std::to_string(given) +
             " in the launch");
  }
  if (uint64_t{begin} + bytes > s.shared_bytes) fail(s, i, "more arrays than there is room for");
  std::vector<uint8_t>& in_arrays = emulator::running->block->in_arrays;
  const emulator::RuntimeScope allocates;
  if (in_arrays.empty()) in_arrays.assign(s.shared_bytes, 0);
  const uint32_t end = begin + bytes, end_of_load = std::min((end + 15) & ~15u, s.shared_bytes);
  std::fill_n(in_arrays.begin() + begin, bytes, kInArray);
  for (uint32_t byte = end; byte < end_of_load; ++byte)
    in_arrays[byte] = std::max(in_arrays[byte], kBehindArray);
  s.in_arrays = in_arrays.data();
}

// Hints about caches, which change no value.
bool is_hint(std::string_view part) {
  static const std::string_view hints[] = {"nc",
                                           "ca",
                                           "cg",
                                           "cs",
                                           "lu",
                                           "cv",
                                           "wb",
                                           "wt",
                                           "L1::no_allocate",
                                           "L1::evict_last",
                                           "L1::evict_first",
                                           "L2::64B",
                                           "L2::128B",
                                           "L2::256B"};
  return std::find(std::begin(hints), std::end(hints), part) != std::end(hints);
}

template <bool Stores>
Handler access(std::string_view type) {
#define PTX_ACCESS(T) Stores ? Handler(store<T>) : Handler(load<T>)
  if (type == "b8" || type == "u8") return PTX_ACCESS(uint8_t);
  if (type == "s8") return PTX_ACCESS(int8_t);
  if (type == "b16" || type == "u16") return PTX_ACCESS(uint16_t);
  if (type == "s16") return PTX_ACCESS(int16_t);
  if (type == "b32" || type == "u32" || type == "f32") return PTX_ACCESS(uint32_t);
  if (type == "s32") return PTX_ACCESS(int32_t);
  if (type == "b64" || type == "u64" || type == "f64") return PTX_ACCESS(uint64_t);
  if (type == "s64") return PTX_ACCESS(int64_t);
#undef PTX_ACCESS
  return nullptr;
}

bool decode_load_or_store(const Statement& statement, Instruction& instruction, bool stores) {
  std::string_view order;
  for (size_t part = 1; part + 1 < statement.parts.size(); ++part) {
    const std::string_view modifier = statement.parts[part];
    if (take_space(modifier, instruction.space) || is_hint(modifier) || modifier == "weak" ||
        modifier == "gpu" || modifier == "volatile") {
      continue;
    }
    if (modifier == "v2" || modifier == "v4")
      instruction.count = modifier == "v2" ? 2 : 4;
    else if (modifier == "relaxed" || modifier == "acquire" || modifier == "release")
      order = modifier;
    else
      return false;
  }
  const std::string_view type = statement.type();
  instruction.bytes = static_cast<uint8_t>(type_bytes("." + std::string(type)));
  instruction.kind = stores ? Class::kStore : Class::kLoad;
  instruction.stores = stores;
  if (instruction.bytes == 0 || instruction.bytes * instruction.count > 16) return false;
  if (order.empty()) {
    // Volatile: of shared memory alone, where the race detector judges it as any other access.
    if (statement.has("volatile") && instruction.space != Space::kShared) return false;
    if (statement.has("gpu")) return false;
    instruction.run = stores ? access<true>(type) : access<false>(type);
  } else {
    const bool one_word = instruction.bytes == 4 && instruction.count == 1;
    const bool words = instruction.bytes == 4 || instruction.bytes == 8;
    if (instruction.space != Space::kGlobal || !statement.has("gpu") || !words) return false;
    if (order == "relaxed") instruction.run = stores ? store_relaxed : load_relaxed;
    if (order == "acquire" && one_word && !stores) instruction.run = load_acquire;
    if (order == "release" && one_word && stores) instruction.run = store_release;
  }
  if (!instruction.run) return false;
  if (instruction.space == Space::kConst) instruction.space = Space::kGlobal;
  const int elements = instruction.count;
  set_slots(instruction, statement, stores ? 0 : elements, stores ? elements + 1 : 1);
  for (const Operand& operand : statement.operands) {
    if (operand.is_parameter && instruction.space != Space::kParam) {
      throw std::string("a parameter in another state space");
    }
  }
  return true;
}

bool decode_atomic(const Statement& statement, Instruction& instruction) {
  if (statement.parts.size() != 4 || statement.parts[1] != "global") return false;
  const std::string_view operation = statement.parts[2], type = statement.type();
  if (operation == "add" && type == "u32") instruction.run = atomic<uint32_t, Sum>;
  if (operation == "add" && type == "u64") instruction.run = atomic<uint64_t, Sum>;
  if (operation == "max" && type == "u32") instruction.run = atomic<uint32_t, Largest>;
  if (operation == "max" && type == "u64") instruction.run = atomic<uint64_t, Largest>;
  if (!instruction.run) return false;
  instruction.kind = Class::kAtomic;
  instruction.space = Space::kGlobal;
  instruction.bytes = type == "u32" ? 4 : 8;
  set_slots(instruction, statement, 1, 2);
  return true;
}

}  // namespace

bool decode_access(const Statement& statement, Instruction& instruction) {
  const std::string_view base = statement.parts[0];
  if (base == "ld") return decode_load_or_store(statement, instruction, false);
  if (base == "st") return decode_load_or_store(statement, instruction, true);
  if (base == "atom") return decode_atomic(statement, instruction);
  if (is_opcode(statement, kSharedArray)) {
    instruction.run = shared_array;
    instruction.kind = Class::kMove;
    set_slots(instruction, statement, 0, 3);
    return true;
  }
  if (base == "red") {
    if (!is_opcode(statement, "red.release.gpu.global.add.u32")) return false;
    instruction.run = add_release;
    instruction.kind = Class::kAtomic;
    instruction.space = Space::kGlobal;
    instruction.bytes = 4;
    set_slots(instruction, statement, 0, 2);
    return true;
  }
  return false;
}

}  // namespace ptx
