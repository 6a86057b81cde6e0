#include "addresses.h"

#include <cstdio>
#include <map>

namespace ptx {

namespace emulator = birnn::emulator;

namespace {

// What kernels may access, by first byte: empty if nobody said.
std::map<uintptr_t, size_t>& allowed() {
  static std::map<uintptr_t, size_t> ranges;
  return ranges;
}

unsigned char* parameter(State& s, const Instruction& i, uint64_t address, size_t bytes) {
  if (address + bytes > s.program->parameter_bytes) {
    fail(s, i, "outside of the parameters: offset " + std::to_string(address));
  }
  return s.parameters + address;
}

unsigned char* local(State& s, const Instruction& i, uint64_t address, size_t bytes) {
  const uint64_t offset = address - kLocalBase;
  if (address < kLocalBase || offset + bytes > s.local.size()) {
    fail(s, i, "outside of local memory: offset " + std::to_string(static_cast<int64_t>(offset)));
  }
  return s.local.data() + offset;
}

}  // namespace

std::string hex(uint64_t number) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(number));
  return text;
}

void check_global(const State& s, const Instruction& i, uint64_t address, size_t bytes) {
  if (address < 1 << 16) {
    fail(s, i,
         hex(address) +
             " is no address of global memory (null, or an offset of shared "
             "memory?)");
  }
  if (address >> 47 != 0) {
    const uint64_t tag = address & kTagMask;
    fail(s, i,
         hex(address) + (tag == kSharedTag  ? " is a generic address of shared memory"
                         : tag == kLocalTag ? " is a generic address of local memory"
                                            : " is no address of global memory"));
  }
  if (!allowed().empty()) {
    auto range = allowed().upper_bound(address);
    const bool inside =
        range != allowed().begin() && address + bytes <= (--range)->first + range->second;
    if (!inside) fail(s, i, hex(address) + ": outside of every allocation");
  }
  if (emulator::asan::is_poisoned(reinterpret_cast<const void*>(address), bytes)) {
    fail(s, i, "out of bounds");
  }
}

uint64_t dynamic_shared_bytes(const State& s) {
  const Image& image = *s.program->image;
  return s.shared_bytes - image.static_shared_bytes - image.gap_bytes;
}

namespace {

void check_arrays(const State& s, const Instruction& i, uint64_t offset, size_t bytes) {
  if (!s.in_arrays) return;
  // An access is shorter than the gaps. Of what lies behind an array nvcc may load a part, with it.
  const uint8_t least = i.stores ? kInArray : kBehindArray;
  if (s.in_arrays[offset] < kInArray || s.in_arrays[offset + bytes - 1] < least)
    fail(s, i, "outside of every shared array: offset " + std::to_string(offset));
}

}  // namespace

char* own_shared(const State& s, const Instruction& i, uint64_t address, size_t bytes) {
  const uint64_t offset = address - kSharedBase;
  if (address < kSharedBase || offset + bytes > s.shared_bytes) {
    if (address >> kRankShift != 0 && address >> 32 == 0) {
      fail(s, i, hex(address) + ": an address of the cluster's window, of shared::cta");
    }
    fail(s, i,
         "outside of shared memory: offset " + std::to_string(static_cast<int64_t>(offset)) + ", " +
             std::to_string(bytes) + " bytes, of " + std::to_string(s.shared_bytes));
  }
  check_arrays(s, i, offset, bytes);
  return s.shared + offset;
}

char* cluster_shared(const State& s, const Instruction& i, uint32_t address, size_t bytes) {
  const uint32_t rank = address >> kRankShift;
  if (rank == 0) return own_shared(s, i, address, bytes);
  const uint32_t offset = (address & kOffsetMask) - kSharedBase;
  const auto& blocks = emulator::running->block->cluster->blocks;
  if (rank > blocks.size()) {
    fail(s, i,
         hex(address) +
             ": of a rank outside the cluster, or mapped from no address of "
             "shared memory");
  }
  if ((address & kOffsetMask) < kSharedBase || offset + bytes > s.shared_bytes) {
    fail(s, i,
         "outside of the shared memory of rank " + std::to_string(rank - 1) + ": offset " +
             std::to_string(static_cast<int32_t>(offset)));
  }
  check_arrays(s, i, offset, bytes);  // those of a peer lie alike
  const char* const own_arena = emulator::running->block->arena;
  return blocks[rank - 1]->arena + (s.shared - own_arena) + offset;
}

Place find(State& s, const Instruction& i, uint64_t address, size_t bytes) {
  if (address & (bytes - 1)) {
    fail(s, i, "misaligned address " + hex(address) + " of " + std::to_string(bytes) + " bytes");
  }
  Space space = i.space;
  if (space == Space::kGeneric) {
    const uint64_t tag = address & kTagMask;
    space = tag == kSharedTag ? Space::kShared : tag == kLocalTag ? Space::kLocal : Space::kGlobal;
    if (space != Space::kGlobal) address = (address & ~kTagMask) ^ kGenericBit;
    if (space == Space::kShared && address >> kRankShift) space = Space::kCluster;
  } else if (space == Space::kShared || space == Space::kCluster) {
    address &= 0xffffffff;  // a 64-bit register may hold it
  }
  switch (space) {
    case Space::kShared:
      return {reinterpret_cast<unsigned char*>(own_shared(s, i, address, bytes)), space};
    case Space::kCluster: {
      char* const pointer = cluster_shared(s, i, static_cast<uint32_t>(address), bytes);
      // The peer has begun, and has not ended.
      emulator::check_cluster_shared(
          pointer, bytes, i.stores ? "st.shared::cluster" : "ld.shared::cluster", s.where(i));
      return {reinterpret_cast<unsigned char*>(pointer), space};
    }
    case Space::kLocal:
      return {local(s, i, address, bytes), space};
    case Space::kParam:
      return {parameter(s, i, address, bytes), space};
    default:
      check_global(s, i, address, bytes);
      return {reinterpret_cast<unsigned char*>(address), Space::kGlobal};
  }
}

bool take_space(std::string_view part, Space& space) {
  static const std::map<std::string_view, Space> spaces{
      {"global", Space::kGlobal},      {"shared", Space::kShared},
      {"shared::cta", Space::kShared}, {"shared::cluster", Space::kCluster},
      {"local", Space::kLocal},        {"param", Space::kParam},
      {"const", Space::kConst}};
  const auto found = spaces.find(part);
  if (found != spaces.end()) space = found->second;
  return found != spaces.end();
}

bool is_opcode(const Statement& statement, std::string_view wanted) {
  std::string whole;
  for (const std::string_view part : statement.parts) whole += std::string(part) + ".";
  whole.pop_back();
  return whole == wanted;
}

void allow_global(const void* begin, size_t bytes) {
  allowed()[reinterpret_cast<uintptr_t>(begin)] = bytes;
}
void forbid_global(const void* begin) { allowed().erase(reinterpret_cast<uintptr_t>(begin)); }

}  // namespace ptx
