// The GemmFunction of a GPU: cuBLAS, on the handle that torch keeps for the thread.
#pragma once

#include "gemm.h"

namespace birnn::cuda {

// What gemm returns for a cuBLAS status: the status above this base, so that it cannot be taken for
// a CUDA error code.
constexpr int kCublasErrorBase = 100000;

// Binds a cublasHandle_t to a stream, and to a workspace for it: device memory, aligned to 256
// bytes; of 0 bytes: cuBLAS's own.
int bind(void* handle, void* stream, void* workspace, int64_t workspace_bytes);

// handle: a cublasHandle_t that is bound to `stream`. Never reads or changes torch's own precision
// settings: the compute type is explicit, the handle's math mode is put back.
int gemm(void* handle, void* stream, const GemmShape& shape, const void* a, const void* b, void* c,
         Element element, GemmCompute compute);

// The text of an error code that is a CUDA error or from gemm.
const char* error_text(int code);

}  // namespace birnn::cuda
