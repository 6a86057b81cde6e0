// gemm.h on a CPU: the BLAS behind torch, through ATen (it exports no BLAS symbol of its own), or
// the own kernel where that is faster. Shared out over torch's threads, outside of a parallel
// region.
#pragma once

#include "gemm.h"

namespace birnn::cpu {

int gemm(void* handle, void* stream, const GemmShape& shape, const void* a, const void* b, void* c,
         Element element, GemmCompute compute);

}  // namespace birnn::cpu
