// The GemmFunction of a GPU: cuBLAS, on the handle that torch keeps for the thread.
#pragma once

#include "gemm.h"

namespace birnn::cuda {

// What gemm returns for a cuBLAS status: the status above this base, so that it cannot be taken for
// a CUDA error code.
constexpr int kCublasErrorBase = 100000;

// handle: a cublasHandle_t that is bound to `stream`, with a workspace of its own for that stream
// (at::cuda::getCurrentCUDABlasHandle under a guard for the stream). Never reads or changes torch's
// own precision settings: the compute type is explicit, the handle's math mode is put back.
int gemm(void* handle, void* stream, const GemmShape& shape, const void* a, const void* b, void* c,
         Element element, GemmCompute compute);

// The text of an error code that is a CUDA error or from gemm.
const char* error_text(int code);

}  // namespace birnn::cuda
