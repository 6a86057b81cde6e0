// stepwise of layer-normalised cells for ctypes, on the emulator: plain pointers and integers, and
// a plain loop for the library product.
#include "cuda/stepwise/normalised.cu"

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

// pointers, in the order of NormalisedDirection; strides: of gates_x, output, dy, dc.
constexpr int kPointers = 20;
NormalisedDirection direction_of(const RecurrenceShape& shape, int reverse, double eps,
                                 void* const* pointers, const int64_t* strides) {
  NormalisedDirection direction;
  direction.reverse = reverse != 0;
  direction.eps = eps;
  const void** const operands[] = {&direction.gates_x, &direction.weight_hh, &direction.norm_hh,
                                   &direction.bias_hh, &direction.norm_c,    &direction.bias_c,
                                   &direction.hx,      &direction.cx};
  void** const results[] = {&direction.output, &direction.reserve, &direction.hy, &direction.cy};
  void** const gradients[] = {&direction.dgates, &direction.dsums, &direction.dnorm_c,
                              &direction.dhx, &direction.dcx};
  int i = 0;
  for (const void** const operand : operands) *operand = pointers[i++];
  direction.resets = static_cast<const bool*>(pointers[i++]);
  for (void** const result : results) *result = pointers[i++];
  direction.dy = pointers[i++];
  direction.dc = pointers[i++];
  for (void** const gradient : gradients) *gradient = pointers[i++];
  static_assert(8 + 1 + 4 + 2 + 5 == kPointers);
  direction.gates_x_stride = strides[0];
  direction.output_stride = strides[1];
  direction.dy_stride = strides[2];
  direction.dc_stride = strides[3];
  direction.reserve_stride = normalised_reserve_size(shape.cell, shape.hidden_size);
  return direction;
}

}  // namespace

// sizes: as driver_arguments.h takes them, of which the last is not looked at. [first, last): the
// steps of each call, which together walk all of them.
extern "C" int normalised_driver(const int64_t* sizes, int backward, int reverse, double eps,
                                 const int64_t* lengths, void* const* pointers,
                                 const int64_t* strides, int64_t steps_of_a_call,
                                 int* products_before_error) {
  const RecurrenceShape shape = test::shape_of(sizes);
  const NormalisedDirection direction = direction_of(shape, reverse, eps, pointers, strides);
  const cuda::StepGemm gemm{multiply_by_loop, products_before_error, GemmCompute::kIeee};
  const int64_t bytes = backward ? cuda::normalised_backward_workspace(shape)
                                 : cuda::normalised_forward_workspace(shape);
  return test::with_workspace(bytes, [&](void* workspace) {
    cuda::Portion portion;
    for (; portion.first < shape.seq_len; portion.first = portion.last) {
      portion.last = portion.first + steps_of_a_call;
      const auto run = backward ? cuda::normalised_backward : cuda::normalised_forward;
      if (const int status = run(shape, lengths, direction, gemm, workspace, nullptr, portion))
        return status;
    }
    return 0;
  });
}
