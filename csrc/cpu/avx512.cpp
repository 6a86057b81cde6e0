// The recurrence for x86-64 with AVX-512. The pragma, rather than a compiler flag, confines these
// instructions to the code below it: what standard headers instantiate stays portable, and so one
// shared library serves every processor.
#if defined(__x86_64__)
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/instruction_set.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif

#include "cells.h"

#define BIRNN_VECTOR_BYTES 64
#define BIRNN_VECTOR_REGISTERS 32

namespace birnn::cpu {
namespace avx512_set {
#include "cpu/vector.h"

#include "cpu/kernels.h"
}  // namespace avx512_set

const InstructionSet& avx512() {
  static const InstructionSet set{"avx512", avx512_set::make_table<float>(),
                                  avx512_set::make_table<double>()};
  return set;
}

}  // namespace birnn::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
