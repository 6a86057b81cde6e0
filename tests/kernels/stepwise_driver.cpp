// stepwise for ctypes, on the emulator: plain pointers and integers, and a plain loop for the
// library product.
#include "cuda/stepwise/stepwise.cu"

#include "driver_arguments.h"
#include "loop_gemm.h"

namespace {

using namespace birnn;

// The handle is a count of calls left before one that fails, or null.
constexpr int kGemmError = 77;

int multiply_by_loop(void* handle, void*, const GemmShape& shape, const void* a, const void* b,
                     void* c, Element element, GemmCompute) {
  if (handle && (*static_cast<int*>(handle))-- == 0) return kGemmError;
  test::multiply_by_loop(shape, a, b, c, element);
  return 0;
}

}  // namespace

// sizes, pointers, strides: as driver_arguments.h takes them.
extern "C" int stepwise_forward_driver(const int64_t* sizes, int reverse, int save_reserve,
                                       const int64_t* lengths, void* const* pointers,
                                       const int64_t* strides, int* products_before_error) {
  const Regularisers regularisers =
      test::regularisers(pointers + test::kForwardPointers, strides + test::kForwardStrides);
  const ForwardDirection direction = test::forward_direction(reverse != 0, pointers, strides);
  const RecurrenceShape shape = test::regularised_shape(sizes, regularisers, direction.resets);
  const cuda::StepGemm gemm{multiply_by_loop, products_before_error, GemmCompute::kIeee};
  return test::with_workspace(cuda::stepwise_forward_workspace(shape), [&](void* workspace) {
    return cuda::stepwise_forward(shape, lengths, direction, regularisers, save_reserve != 0, gemm,
                                  workspace, nullptr);
  });
}

extern "C" int stepwise_backward_driver(const int64_t* sizes, int reverse, const int64_t* lengths,
                                        void* const* pointers, const int64_t* strides,
                                        int* products_before_error) {
  const Regularisers regularisers =
      test::regularisers(pointers + test::kBackwardPointers, strides + test::kBackwardStrides);
  const BackwardDirection direction = test::backward_direction(reverse != 0, pointers, strides);
  const RecurrenceShape shape = test::regularised_shape(sizes, regularisers, direction.resets);
  const cuda::StepGemm gemm{multiply_by_loop, products_before_error, GemmCompute::kIeee};
  return test::with_workspace(cuda::stepwise_backward_workspace(shape), [&](void* workspace) {
    return cuda::stepwise_backward(shape, lengths, direction, regularisers,
                                   pointers[test::kFirstDgates], gemm, workspace, nullptr);
  });
}
