// int8 products for x86-64 with AVX-512 VNNI; see avx512.cpp for the rest and for the pragma.
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
    __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,avx512vnni"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c,avx512vnni")
#endif

#include "cells.h"

#define BIRNN_VECTOR_BYTES 64
#define BIRNN_VECTOR_REGISTERS 32

namespace birnn::cpu {
namespace avx512_vnni_set {
#include "cpu/vector.h"

// VPDPBUSD: unsigned rows, signed weights.
struct MultiplyInt8 {
  using Accumulator = __m512i;
  using Row = __m512i;
  struct Registers {};
  static constexpr bool kTiles = false, kHasOffset = true;
  static constexpr int kAccumulators = kNumAccumulators;
  BIRNN_VECTOR_FN Row broadcast(int32_t word) { return _mm512_set1_epi32(word); }
  template <class Words>
  BIRNN_VECTOR_FN __m512i prepare(Words w) {
    return (__m512i)w;
  }
  BIRNN_VECTOR_FN __m512i multiply_add(__m512i sum, __m512i w, __m512i a) {
    return _mm512_dpbusd_epi32(sum, a, w);
  }
};

#include "cpu/kernels.h"
}  // namespace avx512_vnni_set

const InstructionSet& avx512_vnni() {
  static const InstructionSet set{
      "avx512_vnni",
      [] { return has_avx512_vnni(); },
      {nullptr, nullptr, nullptr, nullptr,
       &avx512_vnni_set::kernel_table<
           avx512_vnni_set::Int8Words<avx512_vnni_set::MultiplyInt8>>()}};
  return set;
}

}  // namespace birnn::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
