// From addresses to memory: each in its state space, checked against its bounds and alignment.
#pragma once

#include <string>

#include "program.h"

namespace ptx {

std::string hex(uint64_t number);

void check_global(const State&, const Instruction&, uint64_t address, size_t bytes);
// What a byte of shared memory is, where kernels announce their arrays: nothing, of the 16 bytes
// that an array's last byte is in, or of an array.
constexpr uint8_t kBehindArray = 1, kInArray = 2;

// What the launch gave.
uint64_t dynamic_shared_bytes(const State&);
// Of the block's own window.
char* own_shared(const State&, const Instruction&, uint64_t address, size_t bytes);
// Of the cluster's window: some block's.
char* cluster_shared(const State&, const Instruction&, uint32_t address, size_t bytes);

struct Place {
  unsigned char* pointer;
  Space space;
};
// Where `bytes` bytes of the instruction's space lie.
Place find(State&, const Instruction&, uint64_t address, size_t bytes);

// The name of a state space in an opcode.
bool take_space(std::string_view part, Space& space);
bool is_opcode(const Statement&, std::string_view wanted);

}  // namespace ptx
