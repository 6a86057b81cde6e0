// The recurrence for x86-64 with AVX2 and FMA. The pragma, rather than a compiler flag, confines
// these instructions to the code below it: what standard headers instantiate stays portable, and so
// one shared library serves every processor.
#if defined(__x86_64__)
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/instruction_set.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "cells.h"

#define BIRNN_VECTOR_BYTES 32
#define BIRNN_VECTOR_REGISTERS 16

namespace birnn::cpu {
namespace avx2_set {
#include "cpu/vector.h"

#include "cpu/kernels.h"
}  // namespace avx2_set

const InstructionSet& avx2() {
  static const InstructionSet set{"avx2", avx2_set::make_table<float>(),
                                  avx2_set::make_table<double>()};
  return set;
}

}  // namespace birnn::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
