// Products in tiles for x86-64 with AMX; see avx512.cpp for the rest and for the pragma.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/instruction_set.h"
#include "cpu/processor.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                        \
    __attribute__((target(                                                                           \
        "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,avx512bf16,amx-tile,amx-bf16,amx-int8"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,avx512bf16,amx-tile,amx-bf16,amx-int8")
#endif

#include "cells.h"

#define BIRNN_VECTOR_BYTES 64
#define BIRNN_VECTOR_REGISTERS 32
#define BIRNN_HAS_BFLOAT16
#define BIRNN_HAS_TILES

namespace birnn::cpu {
namespace amx_set {
#include "cpu/vector.h"

struct TileRegisters;

struct MultiplyBFloat16 {
  using Registers = TileRegisters;
  static constexpr bool kTiles = true;
  template <int kSum, int kRows, int kWeights>
  BIRNN_VECTOR_FN void multiply_tile() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kRows), "i"(kWeights));
  }
};

struct MultiplyInt8 {
  using Registers = TileRegisters;
  static constexpr bool kTiles = true, kHasOffset = false;
  template <int kSum, int kRows, int kWeights>
  BIRNN_VECTOR_FN void multiply_tile() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kRows), "i"(kWeights));
  }
};

#include "cpu/kernels.h"
}  // namespace amx_set

const InstructionSet& amx() {
  static const InstructionSet set{
      "amx",
      [] { return has_amx(); },
      {nullptr, nullptr, nullptr,
       &amx_set::kernel_table<amx_set::BFloat16Words<amx_set::MultiplyBFloat16>>(),
       &amx_set::kernel_table<amx_set::Int8Words<amx_set::MultiplyInt8>>()}};
  return set;
}

}  // namespace birnn::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
