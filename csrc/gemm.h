// The one signature of a large matrix product. A library computes it on either backend: cuBLAS on a
// GPU, the BLAS behind torch on a CPU, a plain loop under the emulator.
#pragma once

#include <cstdint>

#include "recurrence.h"

namespace birnn {

// How fp32 products are computed. 16-bit types always accumulate in fp32.
enum class GemmCompute : int { kIeee, kTf32 };

// C [m, n] = op(A) op(B) + beta C, row-major. op(A) is [m, k], op(B) is [k, n]; a leading dimension
// is the distance of two stored rows in elements.
struct GemmShape {
  bool transpose_a = false, transpose_b = false;
  int64_t m = 0, n = 0, k = 0;
  int64_t lda = 0, ldb = 0, ldc = 0;
  float beta = 0.0f;
  bool float_output = false;  // C is fp32 although A and B are fp16 or bf16
};

// handle and stream: the library's handle and the CUDA stream, unused on a CPU. Returns 0, or the
// library's error code.
using GemmFunction = int (*)(void* handle, void* stream, const GemmShape& shape, const void* a,
                             const void* b, void* c, Element element, GemmCompute compute);

}  // namespace birnn
