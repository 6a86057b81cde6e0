// Registers that some path reads before it has written them: a forward data flow over the branches
// of a program finds where that could be, and only there the interpreter asks when it happens.
//
// What is computed of an unwritten register counts as unwritten in turn, and is a mistake where an
// address, a branch, a store or another thread depends on it: compilers compute ahead what they
// then do not use.
#include <algorithm>
#include <set>

#include "program.h"

namespace ptx {
namespace {

using Bits = std::vector<uint64_t>;

bool has(const Bits& bits, Slot slot) { return bits[slot / 64] >> slot % 64 & 1; }
void add(Bits& bits, Slot slot) { bits[slot / 64] |= uint64_t{1} << slot % 64; }

bool ends_block(const Instruction& one) {
  return one.run == branch || one.run == branch_by_table || one.run == return_from ||
         one.run == trap;
}

// The instructions that may follow `index`.
std::vector<size_t> successors(const Program& program, size_t index) {
  const Instruction& one = program.code[index];
  std::vector<size_t> next;
  if (one.run == branch) next.push_back(static_cast<size_t>(one.immediate));
  if (one.run == branch_by_table) {
    const auto& table = program.tables[static_cast<size_t>(one.immediate)];
    next.assign(table.begin(), table.end());
  }
  const bool goes_on = one.guard != kNoSlot || !ends_block(one);
  if (goes_on && index + 1 < program.code.size()) next.push_back(index + 1);
  return next;
}

void write(const Instruction& one, Bits& written) {
  bool known = true;
  for (int i = one.num_written; i < one.num_slots; ++i) {
    if (one.slots[i] != kNoSlot && !has(written, one.slots[i])) known = !hands_on(one);
  }
  if (one.guard != kNoSlot && known) return;  // as before, if it is not executed
  for (int i = 0; i < one.num_written; ++i) {
    const Slot slot = one.slots[i];
    if (slot == kNoSlot) continue;
    if (known)
      add(written, slot);
    else
      written[slot / 64] &= ~(uint64_t{1} << slot % 64);
  }
}

}  // namespace

bool hands_on(const Instruction& one) {
  switch (one.kind) {
    case Class::kInteger:
    case Class::kFloat:
    case Class::kDouble:
    case Class::kConvert:
    case Class::kSpecial:
    case Class::kMove:
    case Class::kPredicate:
      return true;
    default:
      return false;
  }
}

void find_unwritten_reads(Program& program) {
  const size_t words = program.num_slots / 64 + 1;
  std::set<size_t> leaders{0};
  for (size_t i = 0; i < program.code.size(); ++i) {
    if (!ends_block(program.code[i])) continue;
    for (const size_t next : successors(program, i)) leaders.insert(next);
    if (i + 1 < program.code.size()) leaders.insert(i + 1);
  }
  std::map<size_t, Bits> at_entry;  // written on every path here; absent: not reached yet
  Bits first(words);
  for (const auto& [slot, bits] : program.constants) add(first, slot);
  for (const auto& [slot, special] : program.specials) add(first, slot);
  at_entry[0] = first;
  std::set<size_t> pending{0};
  const auto end_of = [&](size_t leader) {
    const auto next = leaders.upper_bound(leader);
    return next == leaders.end() ? program.code.size() : *next;
  };
  while (!pending.empty()) {
    const size_t leader = *pending.begin();
    pending.erase(pending.begin());
    Bits written = at_entry[leader];
    const size_t end = end_of(leader);
    for (size_t i = leader; i < end; ++i) write(program.code[i], written);
    for (const size_t next : successors(program, end - 1)) {
      const auto [entry, is_new] = at_entry.try_emplace(next, written);
      bool changed = is_new;
      for (size_t w = 0; !is_new && w < words; ++w) {
        const uint64_t both = entry->second[w] & written[w];
        changed |= both != entry->second[w];
        entry->second[w] = both;
      }
      if (changed) pending.insert(next);
    }
  }
  std::set<Slot> asked;
  for (auto& [leader, written] : at_entry) {
    for (size_t i = leader; i < end_of(leader); ++i) {
      Instruction& one = program.code[i];
      const auto read = [&](Slot slot) {
        if (slot == kNoSlot || has(written, slot)) return;
        one.checks_reads = true;
        asked.insert(slot);
      };
      for (int s = one.num_written; s < one.num_slots; ++s) read(one.slots[s]);
      read(one.guard);
      write(one, written);
    }
  }
  for (Instruction& one : program.code) {
    for (int s = 0; s < one.num_written; ++s) one.marks_writes |= asked.contains(one.slots[s]);
  }
  program.uninitialised.assign(asked.begin(), asked.end());
}

}  // namespace ptx
