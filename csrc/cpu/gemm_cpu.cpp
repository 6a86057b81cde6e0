#include "cpu/gemm_cpu.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "cpu/instruction_set.h"

namespace birnn::cpu {
namespace {

// A stored matrix as a tensor, transposed if asked: [rows, columns] of op(M).
at::Tensor matrix(const void* data, int64_t rows, int64_t columns, int64_t leading, bool transpose,
                  const at::TensorOptions& options) {
  const std::vector<int64_t> sizes{rows, columns};
  const std::vector<int64_t> strides{transpose ? 1 : leading, transpose ? leading : 1};
  return at::from_blob(const_cast<void*>(data), sizes, strides, options);
}

// Threads share C's rows, whose numbers are the same whoever adds them up.
void multiply(const MatrixProductKernel& kernel, const GemmShape& s, const void* a, const void* b,
              void* c) {
  constexpr int64_t kMultiplyAddsOfATask = 1 << 20;
  const int64_t tiles = (s.m + kernel.tile_rows - 1) / kernel.tile_rows;
  const int64_t least = std::max<int64_t>(kMultiplyAddsOfATask / (kernel.tile_rows * s.n * s.k), 1);
  at::parallel_for(0, tiles, least, [&](int64_t begin, int64_t end) {
    const int64_t row = begin * kernel.tile_rows;
    GemmShape part = s;
    part.m = std::min(end * kernel.tile_rows, s.m) - row;
    const at::Tensor scratch = at::empty({kernel.scratch_bytes(s)}, at::kByte);
    kernel.run(part, static_cast<const float*>(a) + row * (s.transpose_a ? 1 : s.lda), b,
               static_cast<float*>(c) + row * s.ldc, scratch.mutable_data_ptr());
  });
}

}  // namespace

int gemm(void*, void*, const GemmShape& s, const void* a, const void* b, void* c, Element element,
         GemmCompute) {
  if (s.m == 0 || s.n == 0) return 0;
  if (element == Element::kFloat32 && s.k > 0 && !s.transpose_b)
    if (const MatrixProductKernel* kernel = product_kernel()) {
      multiply(*kernel, s, a, b, c);
      return 0;
    }
  const c10::InferenceMode no_tracking;
  const at::ScalarType type = element == Element::kFloat64    ? at::kDouble
                              : element == Element::kBFloat16 ? at::kBFloat16
                                                              : at::kFloat;
  const auto options = at::TensorOptions().dtype(type);
  const bool widens = type == at::kBFloat16 && s.float_output;
  at::Tensor to = matrix(c, s.m, s.n, s.ldc, false, widens ? options.dtype(at::kFloat) : options);
  const at::Tensor left = matrix(a, s.m, s.k, s.lda, s.transpose_a, options);
  const at::Tensor right = matrix(b, s.k, s.n, s.ldb, s.transpose_b, options);
  if (widens) {
    // The library adds bf16 up in fp32, and rounds its sums.
    const at::Tensor product = at::mm(left, right);
    if (s.beta == 0.0f)
      to.copy_(product);
    else
      to.add_(product);
  } else if (s.beta == 0.0f) {
    at::mm_out(to, left, right);
  } else {
    at::addmm_out(to, to, left, right, s.beta);
  }
  return 0;
}

}  // namespace birnn::cpu
