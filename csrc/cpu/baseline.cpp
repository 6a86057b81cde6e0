// The recurrence for the instruction set that the compiler assumes by default.
#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>

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

// Products of 16-bit integers: a product of two int8 other than -128, and the sum of two, fit.
struct MultiplyInt8 {
  typedef int32_t Accumulator __attribute__((vector_size(kVectorBytes)));
  typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));
  struct Halves {
    Shorts even, odd;  // bytes of every 16 bits, sign-extended
  };
  using Row = Halves;
  struct Registers {};
  static constexpr bool kTiles = false, kHasOffset = false;
  static constexpr int kAccumulators = BIRNN_VECTOR_REGISTERS / 2;
  BIRNN_VECTOR_FN Halves halves(Accumulator v) { return {(Shorts)v << 8 >> 8, (Shorts)v >> 8}; }
  BIRNN_VECTOR_FN Row broadcast(int32_t word) { return halves(word - Accumulator{}); }
  BIRNN_VECTOR_FN Halves prepare(Accumulator w) { return halves(w); }
  BIRNN_VECTOR_FN Accumulator multiply_add(Accumulator sum, const Halves& w, const Halves& a) {
    const auto pairs = (Accumulator)(w.even * a.even + w.odd * a.odd);
    return sum + (pairs << 16 >> 16) + (pairs >> 16);
  }
};

#include "cpu/kernels.h"
}  // namespace baseline_set

const InstructionSet& baseline() {
  using namespace baseline_set;
  static const InstructionSet set{
      "baseline",
      [] { return true; },
      {&kernel_table<Plain<double>>(), &kernel_table<Plain<float>>(), nullptr,
       &kernel_table<Widened<BFloat16>>(), &kernel_table<Int8Words<MultiplyInt8>>()}};
  return set;
}

}  // namespace birnn::cpu
