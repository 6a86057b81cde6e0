// stepwise for ctypes, on the emulator: plain pointers and integers, and a plain loop for the
// library product. STEPWISE_SOURCE names another text of the same functions, such as one with a
// planted defect.
#if !defined(STEPWISE_SOURCE)
#define STEPWISE_SOURCE "stepwise.cu"
#endif
#include STEPWISE_SOURCE

#include "driver_arguments.h"

namespace {

using namespace birnn;
using device::BFloat16;
using device::Half;
using test::shape_of;
using test::WorkspaceMemory;

template <class Operand, class Sum, class Result>
void multiply(const GemmShape& shape, const void* a_memory, const void* b_memory, void* c_memory) {
  const auto* a = static_cast<const Operand*>(a_memory);
  const auto* b = static_cast<const Operand*>(b_memory);
  auto* c = static_cast<Result*>(c_memory);
  for (int64_t i = 0; i < shape.m; ++i)
    for (int64_t j = 0; j < shape.n; ++j) {
      Sum sum = 0;
      for (int64_t k = 0; k < shape.k; ++k)
        sum += Sum(cuda::stepwise::load(shape.transpose_a ? a + k * shape.lda + i
                                                          : a + i * shape.lda + k)) *
               Sum(cuda::stepwise::load(shape.transpose_b ? b + j * shape.ldb + k
                                                          : b + k * shape.ldb + j));
      Result* const target = c + i * shape.ldc + j;
      // As in BLAS: with beta 0 what C holds is not read.
      if (shape.beta != 0) sum += Sum(shape.beta) * Sum(cuda::stepwise::load(target));
      cuda::stepwise::store(target, sum);
    }
}

template <class T>
void multiply_16_bit(const GemmShape& shape, const void* a, const void* b, void* c) {
  if (shape.float_output)
    multiply<T, float, float>(shape, a, b, c);
  else
    multiply<T, float, T>(shape, a, b, c);
}

// The handle is a count of calls left before one that fails, or null.
constexpr int kGemmError = 77;

int multiply_by_loop(void* handle, void*, const GemmShape& shape, const void* a, const void* b,
                     void* c, Element element, GemmCompute) {
  if (handle && (*static_cast<int*>(handle))-- == 0) return kGemmError;
  switch (element) {
    case Element::kFloat64:
      multiply<double, double, double>(shape, a, b, c);
      break;
    case Element::kFloat32:
      multiply<float, float, float>(shape, a, b, c);
      break;
    case Element::kFloat16:
      multiply_16_bit<Half>(shape, a, b, c);
      break;
    case Element::kBFloat16:
      multiply_16_bit<BFloat16>(shape, a, b, c);
      break;
  }
  return 0;
}

}  // namespace

// sizes, pointers, strides: as driver_arguments.h takes them.
extern "C" int stepwise_forward_driver(const int64_t* sizes, int reverse, int save_reserve,
                                       const int64_t* lengths, void* const* pointers,
                                       const int64_t* strides, int* products_before_error) {
  const RecurrenceShape shape = shape_of(sizes);
  const ForwardDirection direction = test::forward_direction(reverse != 0, pointers, strides);
  const cuda::StepGemm gemm{multiply_by_loop, products_before_error, GemmCompute::kIeee};
  const WorkspaceMemory workspace(cuda::stepwise_forward_workspace(shape));
  return cuda::stepwise_forward(shape, lengths, direction, save_reserve != 0, gemm, workspace.data,
                                nullptr);
}

extern "C" int stepwise_backward_driver(const int64_t* sizes, int reverse, const int64_t* lengths,
                                        void* const* pointers, const int64_t* strides,
                                        int* products_before_error) {
  const RecurrenceShape shape = shape_of(sizes);
  const BackwardDirection direction = test::backward_direction(reverse != 0, pointers, strides);
  const cuda::StepGemm gemm{multiply_by_loop, products_before_error, GemmCompute::kIeee};
  const WorkspaceMemory workspace(cuda::stepwise_backward_workspace(shape));
  return cuda::stepwise_backward(shape, lengths, direction, pointers[test::kFirstDgates], gemm,
                                 workspace.data, nullptr);
}
