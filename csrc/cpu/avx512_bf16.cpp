// bf16 products for x86-64 with AVX-512 BF16; see avx512.cpp for the rest and for the pragma.
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
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,avx512bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,avx512bf16")
#endif

#include "cells.h"

#define BIRNN_VECTOR_BYTES 64
#define BIRNN_VECTOR_REGISTERS 32
#define BIRNN_HAS_BFLOAT16

namespace birnn::cpu {
namespace avx512_bf16_set {
#include "cpu/vector.h"

// VDPBF16PS.
struct MultiplyBFloat16 {
  using Accumulator = __m512;
  using Row = __m512i;
  struct Registers {};
  static constexpr bool kTiles = false;
  static constexpr int kAccumulators = kNumAccumulators;
  BIRNN_VECTOR_FN Row broadcast(int32_t word) { return _mm512_set1_epi32(word); }
  template <class Words>
  BIRNN_VECTOR_FN __m512i prepare(Words w) {
    return (__m512i)w;
  }
  BIRNN_VECTOR_FN __m512 multiply_add(__m512 sum, __m512i w, __m512i a) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)a);
  }
};

#include "cpu/kernels.h"
}  // namespace avx512_bf16_set

const InstructionSet& avx512_bf16() {
  static const InstructionSet set{
      "avx512_bf16",
      [] { return has_avx512_bf16(); },
      {nullptr, nullptr, nullptr,
       &avx512_bf16_set::kernel_table<
           avx512_bf16_set::BFloat16Words<avx512_bf16_set::MultiplyBFloat16>>(),
       nullptr}};
  return set;
}

}  // namespace birnn::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
