// The recurrence for the instruction set that the compiler assumes by default.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cells.h"
#include "cpu/instruction_set.h"

#define BIRNN_VECTOR_BYTES 16
#if defined(__aarch64__)
#define BIRNN_VECTOR_REGISTERS 32
#else
#define BIRNN_VECTOR_REGISTERS 16
#endif

namespace birnn::cpu {
namespace baseline_set {
#include "cpu/vector.h"

#include "cpu/kernels.h"
}  // namespace baseline_set

const InstructionSet& baseline() {
  static const InstructionSet set{"baseline", baseline_set::make_table<float>(),
                                  baseline_set::make_table<double>()};
  return set;
}

}  // namespace birnn::cpu
