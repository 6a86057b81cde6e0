// A library product by a plain loop: what cuBLAS is on a GPU, for kernels under the emulator.
#pragma once

#include "cuda/device/device_types.h"
#include "float_formats.h"
#include "gemm.h"

namespace birnn::test {

using device::BFloat16;
using device::Half;

inline double load(const double* source) { return *source; }
inline float load(const float* source) { return *source; }
inline float load(const Half* source) {
  return emulator::half_to_float(static_cast<uint16_t>(*source));
}
inline float load(const BFloat16* source) {
  return emulator::bfloat16_to_float(static_cast<uint16_t>(*source));
}
// An operand as the tensor cores of tf32 take it.
struct Tf32Operand {
  float value;
};
inline float load(const Tf32Operand* source) {
  return emulator::float_of(emulator::float_to_tf32(source->value));
}
inline void store(double* target, double value) { *target = value; }
inline void store(float* target, float value) { *target = value; }
inline void store(Half* target, float value) {
  *target = static_cast<Half>(emulator::float_to_half(value));
}
inline void store(BFloat16* target, float value) {
  *target = static_cast<BFloat16>(emulator::float_to_bfloat16(value));
}

template <class Operand, class Sum, class Result>
void multiply(const GemmShape& shape, const void* a_memory, const void* b_memory, void* c_memory) {
  const auto* a = static_cast<const Operand*>(a_memory);
  const auto* b = static_cast<const Operand*>(b_memory);
  auto* c = static_cast<Result*>(c_memory);
  for (int64_t i = 0; i < shape.m; ++i)
    for (int64_t j = 0; j < shape.n; ++j) {
      Sum sum = 0;
      for (int64_t k = 0; k < shape.k; ++k)
        sum += Sum(load(shape.transpose_a ? a + k * shape.lda + i : a + i * shape.lda + k)) *
               Sum(load(shape.transpose_b ? b + j * shape.ldb + k : b + k * shape.ldb + j));
      Result* const target = c + i * shape.ldc + j;
      // As in BLAS: with beta 0 what C holds is not read.
      if (shape.beta != 0) sum += Sum(shape.beta) * Sum(load(target));
      store(target, sum);
    }
}

template <class T>
void multiply_16_bit(const GemmShape& shape, const void* a, const void* b, void* c) {
  if (shape.float_output)
    multiply<T, float, float>(shape, a, b, c);
  else
    multiply<T, float, T>(shape, a, b, c);
}

inline void multiply_by_loop(const GemmShape& shape, const void* a, const void* b, void* c,
                             Element element, GemmCompute compute = GemmCompute::kIeee) {
  switch (element) {
    case Element::kFloat64:
      return multiply<double, double, double>(shape, a, b, c);
    case Element::kFloat32:
      if (compute == GemmCompute::kTf32) return multiply<Tf32Operand, float, float>(shape, a, b, c);
      return multiply<float, float, float>(shape, a, b, c);
    case Element::kFloat16:
      return multiply_16_bit<Half>(shape, a, b, c);
    case Element::kBFloat16:
      return multiply_16_bit<BFloat16>(shape, a, b, c);
  }
}

}  // namespace birnn::test
