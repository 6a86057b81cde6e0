// Addresses that stand for instructions, in the reports of ThreadSanitizer.
#pragma once

#include <cstdint>
#include <string>

namespace ptx {

struct Program;

void know_race_pcs(const Program& program);
// The instruction and its lines; empty if the address is none of ours.
std::string describe_race_pc(uintptr_t pc);

}  // namespace ptx
