// The recurrence for x86-64 with AVX-512. The pragma, rather than a compiler flag, confines
// these instructions to the code below it: what standard headers instantiate stays portable, and so
// one shared library serves every processor.
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
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c")
#endif

#include "cells.h"

#define BIRNN_VECTOR_BYTES 64
#define BIRNN_VECTOR_REGISTERS 32
#define BIRNN_HAS_FLOAT16

namespace birnn::cpu {
namespace avx512_set {
#include "cpu/vector.h"

// Products of 16-bit integers, two of which VPMADDWD adds.
struct MultiplyInt8 {
  using Accumulator = __m512i;
  struct Halves {
    __m512i even, odd;  // bytes of every 16 bits, sign-extended
  };
  using Row = Halves;
  struct Registers {};
  static constexpr bool kTiles = false, kHasOffset = false;
  static constexpr int kAccumulators = 16;
  BIRNN_VECTOR_FN Halves halves(__m512i v) {
    return {_mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8), _mm512_srai_epi16(v, 8)};
  }
  BIRNN_VECTOR_FN Row broadcast(int32_t word) { return halves(_mm512_set1_epi32(word)); }
  template <class Words>
  BIRNN_VECTOR_FN Halves prepare(Words w) {
    return halves((__m512i)w);
  }
  BIRNN_VECTOR_FN __m512i multiply_add(__m512i sum, const Halves& w, const Halves& a) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(w.even, a.even));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(w.odd, a.odd));
  }
};

#include "cpu/kernels.h"
// kernels.h comes first
#include "cpu/matrix_product.h"
}  // namespace avx512_set

const InstructionSet& avx512() {
  using Product = avx512_set::MatrixProduct<float>;
  static const MatrixProductKernel product{Product::kTileRows, Product::scratch_bytes,
                                           Product::run};
  static const InstructionSet set{
      "avx512",
      [] { return has_avx512(); },
      {&avx512_set::kernel_table<avx512_set::Plain<double>>(),
       &avx512_set::kernel_table<avx512_set::Plain<float>>(),
       &avx512_set::kernel_table<avx512_set::Widened<Float16>>(),
       &avx512_set::kernel_table<avx512_set::Widened<BFloat16>>(),
       &avx512_set::kernel_table<avx512_set::Int8Words<avx512_set::MultiplyInt8>>()},
      &product};
  return set;
}

}  // namespace birnn::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
