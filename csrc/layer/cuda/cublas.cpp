#include "layer/cuda/cublas.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <algorithm>

namespace birnn::cuda {
namespace {

struct Types {
  cudaDataType_t operand, result;
  cublasComputeType_t compute;
};

Types types_of(Element element, GemmCompute compute, bool float_output) {
  switch (element) {
    case Element::kFloat64:
      return {CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_64F};
    case Element::kFloat32:
      return {CUDA_R_32F, CUDA_R_32F,
              compute == GemmCompute::kTf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F};
    case Element::kFloat16:
      return {CUDA_R_16F, float_output ? CUDA_R_32F : CUDA_R_16F, CUBLAS_COMPUTE_32F};
    case Element::kBFloat16:
      break;
  }
  return {CUDA_R_16BF, float_output ? CUDA_R_32F : CUDA_R_16BF, CUBLAS_COMPUTE_32F};
}

int64_t bytes_of(cudaDataType_t type) {
  return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2;
}

int code_of(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? 0 : kCublasErrorBase + static_cast<int>(status);
}

// Sets the math mode for one product: torch leaves its own on the handle, under which a product
// that asks for fp32 may be computed in tf32. Sums of 16-bit products stay in fp32 when K is split.
class MathMode {
 public:
  explicit MathMode(cublasHandle_t handle) : handle_(handle) {
    status = cublasGetMathMode(handle_, &before_);
    if (status != CUBLAS_STATUS_SUCCESS || before_ == kWanted) return;
    status = cublasSetMathMode(handle_, kWanted);
    changed_ = status == CUBLAS_STATUS_SUCCESS;
  }
  ~MathMode() {
    if (changed_) cublasSetMathMode(handle_, before_);
  }
  MathMode(const MathMode&) = delete;
  MathMode& operator=(const MathMode&) = delete;

  cublasStatus_t status;

 private:
  static constexpr auto kWanted = static_cast<cublasMath_t>(
      CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
  cublasHandle_t handle_;
  cublasMath_t before_ = CUBLAS_DEFAULT_MATH;
  bool changed_ = false;
};

}  // namespace

int bind(void* handle, void* stream, void* workspace, int64_t workspace_bytes) {
  const auto blas = static_cast<cublasHandle_t>(handle);
  // Takes away the workspace that was set before.
  if (const cublasStatus_t status = cublasSetStream(blas, static_cast<cudaStream_t>(stream)))
    return code_of(status);
  if (workspace_bytes == 0) return 0;
  return code_of(cublasSetWorkspace(blas, workspace, static_cast<size_t>(workspace_bytes)));
}

int gemm(void* handle, void* stream, const GemmShape& s, const void* a, const void* b, void* c,
         Element element, GemmCompute compute) {
  if (s.m == 0 || s.n == 0) return 0;
  const auto blas = static_cast<cublasHandle_t>(handle);
  const Types types = types_of(element, compute, s.float_output);
  if (s.k == 0) {  // an empty sum
    if (s.beta != 0.0f) return 0;
    const int64_t bytes = bytes_of(types.result);
    return cudaMemset2DAsync(c, s.ldc * bytes, 0, s.n * bytes, s.m,
                             static_cast<cudaStream_t>(stream));
  }
  cudaStream_t bound = nullptr;
  if (const cublasStatus_t status = cublasGetStream(blas, &bound)) return code_of(status);
  if (bound != static_cast<cudaStream_t>(stream)) return code_of(CUBLAS_STATUS_INVALID_VALUE);
  const MathMode mode(blas);
  if (mode.status != CUBLAS_STATUS_SUCCESS) return code_of(mode.status);

  const float one = 1.0f;
  const double one64 = 1.0, beta64 = s.beta;
  const bool wide = element == Element::kFloat64;
  const void* const alpha = wide ? static_cast<const void*>(&one64) : &one;
  const void* const beta = wide ? static_cast<const void*>(&beta64) : &s.beta;
  // cuBLAS is column-major, where a row-major matrix is its transpose: C^T = op(B)^T op(A)^T. Of a
  // matrix with one row the leading dimension is never used, but still checked.
  const int64_t columns_a = s.transpose_a ? s.m : s.k, columns_b = s.transpose_b ? s.k : s.n;
  return code_of(cublasGemmEx_64(blas, s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                                 s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, s.n, s.m, s.k, alpha, b,
                                 types.operand, std::max(s.ldb, columns_b), a, types.operand,
                                 std::max(s.lda, columns_a), beta, c, types.result,
                                 std::max(s.ldc, s.n), types.compute, CUBLAS_GEMM_DEFAULT));
}

const char* error_text(int code) {
  if (code >= kCublasErrorBase)
    return cublasGetStatusString(static_cast<cublasStatus_t>(code - kCublasErrorBase));
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

}  // namespace birnn::cuda
