// The recurrence for x86-64 with AVX2, FMA and F16C. The pragma, rather than a compiler flag,
// confines these instructions to the code below it: what standard headers instantiate stays
// portable, and so one shared library serves every processor.
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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "cells.h"

#define BIRNN_VECTOR_BYTES 32
#define BIRNN_VECTOR_REGISTERS 16
#define BIRNN_HAS_FLOAT16

namespace birnn::cpu {
namespace avx2_set {
#include "cpu/vector.h"

// Products of 16-bit integers, two of which VPMADDWD adds.
struct MultiplyInt8 {
  using Accumulator = __m256i;
  struct Halves {
    __m256i even, odd;  // bytes of every 16 bits, sign-extended
  };
  using Row = Halves;
  struct Registers {};
  static constexpr bool kTiles = false, kHasOffset = false;
  static constexpr int kAccumulators = 8;
  BIRNN_VECTOR_FN Halves halves(__m256i v) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
  }
  BIRNN_VECTOR_FN Row broadcast(int32_t word) { return halves(_mm256_set1_epi32(word)); }
  template <class Words>
  BIRNN_VECTOR_FN Halves prepare(Words w) {
    return halves((__m256i)w);
  }
  BIRNN_VECTOR_FN __m256i multiply_add(__m256i sum, const Halves& w, const Halves& a) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w.even, a.even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(w.odd, a.odd));
  }
};

#include "cpu/kernels.h"
}  // namespace avx2_set

const InstructionSet& avx2() {
  static const InstructionSet set{
      "avx2",
      [] { return has_avx2(); },
      {&avx2_set::kernel_table<avx2_set::Plain<double>>(),
       &avx2_set::kernel_table<avx2_set::Plain<float>>(),
       &avx2_set::kernel_table<avx2_set::Widened<Float16>>(),
       &avx2_set::kernel_table<avx2_set::Widened<BFloat16>>(),
       &avx2_set::kernel_table<avx2_set::Int8Words<avx2_set::MultiplyInt8>>()}};
  return set;
}

}  // namespace birnn::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
