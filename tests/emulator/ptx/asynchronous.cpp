// Copies that land later, and conversions of addresses.
#include "addresses.h"

namespace ptx {
namespace {

namespace emulator = birnn::emulator;

void copy_async(State& s, const Instruction& i) {
  // [destination], [source], bytes, source bytes; both addresses without an offset
  const uint32_t destination = s.get<uint32_t>(i.slots[0]);
  const uint64_t source = s.get<uint64_t>(i.slots[1]);
  const uint64_t bytes = s.get<uint64_t>(i.slots[2]);
  const uint32_t source_bytes =
      i.num_slots > 3 ? s.get<uint32_t>(i.slots[3]) : static_cast<uint32_t>(bytes);
  if (bytes != 4 && bytes != 8 && bytes != 16) fail(s, i, "copies of 4, 8 or 16 bytes alone");
  if (i.detail && bytes != 16) fail(s, i, ".cg copies 16 bytes");
  char* const to = own_shared(s, i, destination, bytes);
  if (destination % bytes != 0) fail(s, i, "misaligned address " + hex(destination));
  if (source_bytes > 0) check_global(s, i, source, source_bytes);
  emulator::cp_async(to, reinterpret_cast<const void*>(source), bytes, source_bytes, s.where(i));
}
void store_async(State& s, const Instruction& i) {
  uint32_t values[4];
  for (int e = 0; e < i.count; ++e) values[e] = s.get<uint32_t>(i.slots[1 + e]);
  const size_t bytes = 4 * size_t{i.count};
  const uint32_t destination = s.get<uint32_t>(i.slots[0]);
  char* const to = cluster_shared(s, i, destination, bytes);
  char* const barrier = cluster_shared(s, i, s.get<uint32_t>(i.slots[1 + i.count]), 8);
  if (destination % bytes != 0) fail(s, i, "misaligned address " + hex(destination));
  emulator::st_async(to, values, bytes, barrier, s.where(i));
  s.polled = false;
}

// As the compiler may, ahead of its use and of branches: what is no address or no rank becomes an
// address that no access accepts.
void map_address(State& s, const Instruction& i) {
  const uint32_t address = s.get<uint32_t>(i.slots[1]), rank = s.get<uint32_t>(i.slots[2]);
  const bool is_rank = rank < emulator::running->block->cluster->blocks.size();
  const uint32_t mapped = is_rank && !(address >> kRankShift) ? rank + 1 : kNoRank;
  s.put(i.slots[0], mapped << kRankShift | (address & kOffsetMask));
}

uint64_t tag_of(Space space) {
  return space == Space::kShared ? kSharedTag : space == Space::kLocal ? kLocalTag : 0;
}
void to_generic(State& s, const Instruction& i) {
  const uint64_t address = s.get<uint64_t>(i.slots[1]);
  if (tag_of(i.space) && address >> 32) fail(s, i, hex(address) + " is too large for its space");
  s.put(i.slots[0], tag_of(i.space) ? (address ^ kGenericBit) | tag_of(i.space) : address);
}
// The compiler converts addresses ahead of their use, and of branches: what is no address of the
// space becomes one that no access accepts.
void from_generic(State& s, const Instruction& i) {
  const uint64_t address = s.get<uint64_t>(i.slots[1]), tag = tag_of(i.space);
  const bool right = tag ? (address & kTagMask) == tag : true;
  s.put(i.slots[0], !tag ? address : right ? (address & ~kTagMask) ^ kGenericBit : uint64_t{0});
}

}  // namespace

bool decode_asynchronous(const Statement& statement, Instruction& instruction) {
  const std::string_view base = statement.parts[0];
  if (base == "st" && statement.has("async")) {
    const bool two = statement.type() == "b32" && statement.has("v2");
    const std::string opcode = "st.async.shared::cluster.mbarrier::complete_tx::bytes.";
    if (!is_opcode(statement, opcode + (two ? "v2.b32" : "v4.b32"))) return false;
    instruction.run = store_async;
    instruction.kind = Class::kAsync;
    instruction.space = Space::kCluster;
    instruction.bytes = 4;
    instruction.count = two ? 2 : 4;
    set_slots(instruction, statement, 0, instruction.count + 2);
    if (instruction.immediate != 0) throw std::string("an address with an offset");
    return true;
  }
  if (is_opcode(statement, "cp.async.ca.shared.global") ||
      is_opcode(statement, "cp.async.cg.shared.global")) {
    instruction.run = copy_async;
    instruction.kind = Class::kAsync;
    instruction.space = Space::kGlobal;
    instruction.detail = statement.has("cg");
    instruction.bytes = 1;
    set_slots(instruction, statement, 0, statement.operands.size() == 3 ? 3 : 4);
    for (const Operand& operand : statement.operands) {
      if (operand.offset != 0) throw std::string("an address with an offset");
    }
    return true;
  }
  if (is_opcode(statement, "mapa.shared::cluster.u32")) {
    instruction.run = map_address;
    instruction.kind = Class::kInteger;
    set_slots(instruction, statement, 1, 2);
    return true;
  }
  if (base == "cvta" && statement.type() == "u64") {
    const bool from = statement.parts.size() == 4 && statement.parts[1] == "to";
    if (!from && statement.parts.size() != 3) return false;
    if (!take_space(statement.parts[from ? 2 : 1], instruction.space)) return false;
    if (instruction.space == Space::kParam || instruction.space == Space::kCluster) return false;
    instruction.run = from ? from_generic : to_generic;
    instruction.kind = Class::kInteger;
    set_slots(instruction, statement, 1, 1);
    return true;
  }
  return false;
}

}  // namespace ptx
