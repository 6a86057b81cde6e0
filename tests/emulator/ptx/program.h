// A decoded function: one record an instruction, its operands numbered, and what a thread that runs
// it owns.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "machine.h"
#include "module.h"

namespace ptx {

using birnn::emulator::Location;

struct Instruction;
struct Program;
struct State;
using Handler = void (*)(State&, const Instruction&);

// A register, constant or special register is a slot of 64 bits. Slots of constants and special
// registers are filled in before the first instruction.
using Slot = uint16_t;
constexpr Slot kNoSlot = 0xffff;
constexpr int kMostSlots = 14;  // mma: 4 + 4 + 2 + 4

// What the dynamic counts tell apart.
enum class Class : uint8_t {
  kInteger,
  kFloat,
  kDouble,
  kConvert,
  kSpecial,  // the special function unit
  kMove,
  kPredicate,  // setp, selp and logic on predicates
  kControl,
  kMatrix,  // mma, ldmatrix
  kWarp,    // shfl, vote, bar.warp.sync
  kBarrier,
  kLoad,
  kStore,
  kAsync,  // cp.async, st.async
  kAtomic,
  kFence,
};
constexpr int kNumClasses = 16;
extern const char* const kClassNames[kNumClasses];
extern const char* const kSpaceNames[7];

struct Instruction {
  Handler run = nullptr;
  int64_t immediate = 0;    // offset of an address; the target of a branch
  Slot slots[kMostSlots];   // destinations first
  Slot guard = kNoSlot;     // the predicate in front
  uint8_t num_written = 0;  // of the slots
  uint8_t num_slots = 0;
  uint8_t bytes = 0;  // of an access: those of one element
  uint8_t count = 1;  // elements of a vector access
  bool guard_negated = false;
  bool checks_reads = false;  // some path leads here on which an operand was not written
  bool marks_writes = false;  // somebody has to ask that
  Class kind = Class::kInteger;
  Space space = Space::kGeneric;
  uint8_t detail = 0;  // as the handler likes
  bool stores = false;
  bool selects = false;
};

// Facts about an instruction that only diagnoses need.
struct Origin {
  uint32_t line = 0;
  int32_t source = -1;  // of Program::sources
  std::string_view opcode;
  std::string_view text;
};

enum class Special : uint8_t {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneid,
  kWarpid,
  kNwarpid,
  kClusterCtarank,
  kClusterNctarank,
  kClusterCtaidX,
  kClusterNctaidX,
  kClusteridX,
  kNclusteridX,
  kSmid,
  kDynamicSmemSize,
  kLanemaskLt,
  kLanemaskLe,
  kLanemaskGt,
  kLanemaskGe,
  kLanemaskEq,
  kEnvreg0,
  kZero,
  kOne,
};

struct Image;

struct CallSite {
  const Function* callee = nullptr;
  std::vector<std::pair<uint64_t, uint64_t>> arguments, results;  // offset and bytes in parameters
};

struct Program {
  Image* image = nullptr;
  const Function* function = nullptr;
  std::vector<Instruction> code;
  std::vector<Origin> origins;
  std::vector<SourceLine> sources;
  std::vector<std::string> names;  // of the slots
  size_t num_slots = 0;
  std::vector<std::pair<Slot, uint64_t>> constants;
  std::vector<std::pair<Slot, Special>> specials;
  std::vector<uint64_t> parameter_offsets;  // of the formals, results first
  uint64_t formal_bytes = 0, parameter_bytes = 0, local_bytes = 0;
  std::vector<CallSite> calls;
  std::vector<std::vector<uint32_t>> tables;  // of brx.idx
  std::vector<int64_t> uninitialised;         // slots of which some path reads without a write
  uintptr_t race_pc = 0;                      // that of the first instruction

  Location location(const Instruction&) const;
};

// A module ready to run: its global variables in memory, its shared ones placed.
struct Image {
  std::unique_ptr<Module> module;
  std::map<std::string_view, std::vector<unsigned char>> globals;
  std::map<std::string_view, uint64_t> addresses;  // of variables, in their spaces
  uint64_t static_shared_bytes = 0;
  uint64_t gap_bytes = 0;  // room for gaps, where kernels announce the arrays of shared memory
  std::map<std::string_view, std::unique_ptr<Program>> programs;  // decoded when first wanted
  std::deque<std::string> kept;                                   // what diagnoses point to

  const Program& program(std::string_view name);
};

std::unique_ptr<Image> make_image(std::unique_ptr<Module> module);
std::unique_ptr<Program> decode(Image& image, const Function& function);
// Which reads have to be checked when they happen. Of decoder.cpp's work, the last.
void find_unwritten_reads(Program& program);
// Whether an instruction only computes: of unwritten operands it makes an unwritten result.
bool hands_on(const Instruction&);

// ---------------------------------------------------------------------------------------------
// Addresses. Shared ones are 32 bits: an offset into the window of a block, above which stands,
// for an address of the cluster's window (mapa), 1 + the rank of the block. A generic address is a
// pointer of the host, or carries the tag of its window, and kGenericBit.

constexpr uint64_t kSharedTag = 0x7e50'0000'0000'0000, kLocalTag = 0x7e51'0000'0000'0000;
constexpr uint64_t kTagMask = 0xffff'0000'0000'0000;
// What a generic address of shared memory has besides: its lower half is no address of the window.
constexpr uint64_t kGenericBit = 0x4000'0000;
constexpr uint32_t kSharedBase = 1024;  // of a block's own variables, as on sm_90
constexpr int kRankShift = 24;
constexpr uint32_t kOffsetMask = (1u << kRankShift) - 1;
constexpr uint32_t kNoRank = 0xff;  // in place of 1 + rank
constexpr uint32_t kLocalBase = 256;

// .pragma "emulated.shared_array address, bytes, needed", which ptxas passes over: a kernel that is
// compiled for the interpreter says by it which parts of its shared memory are arrays, and may
// leave gaps between them, in which no access may fall; without them `needed` bytes would be
// enough.
constexpr const char* kSharedArray = "emulated.shared_array";
constexpr uint64_t kMostGapBytes = 4096;

// What %envreg0 reads: the host's to set.
extern "C" uint32_t ptx_environment_registers[1];

struct Frame {
  const Program* program = nullptr;
  std::unique_ptr<uint64_t[]> slots;
  std::unique_ptr<bool[]> written;  // if any read of the program is checked
  std::unique_ptr<unsigned char[]> parameters;
  uint64_t local_base = 0;
  const CallSite* call = nullptr;  // that made it
  const Instruction* return_to = nullptr;
};

// Executions of each instruction, by thread; see counts.h.
struct Counter;

struct State {
  uint64_t* slots = nullptr;  // of the innermost frame
  const Instruction* next = nullptr;
  const Program* program = nullptr;
  unsigned char* parameters = nullptr;
  char* shared = nullptr;  // offset 0 of the block's own window
  uint32_t shared_bytes = 0;
  const uint8_t* in_arrays = nullptr;  // by byte of it, once an array was announced
  bool race = false;                   // ThreadSanitizer looks on
  bool polled = false;  // a value that others change was read since the last branch back
  uint32_t branches_back = 0;
  std::vector<Frame> frames;
  std::vector<unsigned char> local;
  uint32_t* counts = nullptr;
  Counter* counter = nullptr;

  template <class T>
  T get(Slot slot) const {
    T value;
    std::memcpy(&value, &slots[slot], sizeof value);
    return value;
  }
  template <class T>
  void put(Slot slot, T value) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    if (slot != kNoSlot) slots[slot] = bits;
  }
  Location where(const Instruction& instruction) const { return program->location(instruction); }
};

[[noreturn]] void fail(const State&, const Instruction&, const std::string& message);

// ---------------------------------------------------------------------------------------------
// What an opcode is, to the decoder: found by its first part, and told by its modifiers.

struct Operand {
  enum Kind { kSlot, kAddress, kVector, kName, kNone } kind = kNone;
  Slot slot = kNoSlot;         // kSlot; kAddress: the base
  Slot second = kNoSlot;       // behind '|'
  int64_t offset = 0;          // kAddress
  std::vector<Slot> elements;  // kVector
  std::string_view name;       // kName: a label, a function
  bool is_parameter = false;   // kAddress: of the space of parameters
};

struct Statement {
  std::vector<std::string_view> parts;  // of the opcode, between its dots
  std::vector<Operand> operands;
  bool has(std::string_view part) const;
  std::string_view type() const { return parts.back(); }
};

// Fill in the record; false if the opcode, or a modifier of it, is unknown. One for each file.
bool decode_arithmetic(const Statement&, Instruction&);
bool decode_bits(const Statement&, Instruction&);
bool decode_float(const Statement&, Instruction&);
bool decode_setp(const Statement&, Instruction&);
bool decode_conversion(const Statement&, Instruction&);
bool decode_asynchronous(const Statement&, Instruction&);
bool decode_access(const Statement&, Instruction&);
bool decode_synchronisation(const Statement&, Instruction&);

// Throws a std::string: the operands are not those the opcode takes.
void set_slots(Instruction&, const Statement&, int written, int read);

// interpreter.cpp
void branch(State&, const Instruction&);
void branch_by_table(State&, const Instruction&);
void return_from(State&, const Instruction&);
void call(State&, const Instruction&);
void trap(State&, const Instruction&);

struct Entry {  // of a launch
  const Program* program;
  std::vector<unsigned char> parameters;
  uint32_t shared_bytes;  // with the variables
  Counter* counter;
};
void run_thread(void* entry);

// Memory that kernels may access; once any is known, nothing else.
void allow_global(const void* begin, size_t bytes);
void forbid_global(const void* begin);

}  // namespace ptx
