// stepwise for ctypes, on the emulator: plain pointers and integers, and a plain loop for the
// library product. STEPWISE_SOURCE names another text of the same functions, such as one with a
// planted defect.
#if !defined(STEPWISE_SOURCE)
#define STEPWISE_SOURCE "stepwise.cu"
#endif
#include STEPWISE_SOURCE

#include <cstring>
#include <new>

namespace {

using namespace birnn;
using device::BFloat16;
using device::Half;

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

RecurrenceShape shape_of(const int64_t* sizes) {
  RecurrenceShape shape;
  shape.cell = static_cast<Cell>(sizes[0]);
  shape.element = static_cast<Element>(sizes[1]);
  shape.seq_len = sizes[2];
  shape.batch_size = sizes[3];
  shape.hidden_size = sizes[4];
  shape.proj_size = sizes[5];
  return shape;
}

// A workspace of exactly the bytes asked for, every byte 0xff: NaN in the float formats.
struct Memory {
  explicit Memory(int64_t bytes) : data(operator new(bytes, std::align_val_t(256))) {
    std::memset(data, 0xff, bytes);
  }
  ~Memory() { operator delete(data, std::align_val_t(256)); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data;
};

}  // namespace

// sizes: cell, element, T, B, H, P. pointers, in the order of ForwardDirection: weight_hh,
// weight_hr, bias, hx, cx, gates, output, hy, cy. strides: of gates, of output.
extern "C" int stepwise_forward_driver(const int64_t* sizes, int reverse, int save_reserve,
                                       const int64_t* lengths, void* const* pointers,
                                       const int64_t* strides, int* products_before_error) {
  const RecurrenceShape shape = shape_of(sizes);
  ForwardDirection direction;
  direction.reverse = reverse != 0;
  direction.weight_hh = pointers[0];
  direction.weight_hr = pointers[1];
  direction.bias = pointers[2];
  direction.hx = pointers[3];
  direction.cx = pointers[4];
  direction.gates = pointers[5];
  direction.gates_stride = strides[0];
  direction.output = pointers[6];
  direction.output_stride = strides[1];
  direction.hy = pointers[7];
  direction.cy = pointers[8];
  const cuda::StepGemm gemm{multiply_by_loop, products_before_error, GemmCompute::kIeee};
  const Memory workspace(cuda::stepwise_forward_workspace(shape));
  return cuda::stepwise_forward(shape, lengths, direction, save_reserve != 0, gemm, workspace.data,
                                nullptr);
}

// pointers, in the order of BackwardDirection: weight_hh, weight_hr, hx, cx, output, reserve, dy,
// dc, dgates, dproj, dhx, dcx, then first_dgates. strides: of output, reserve, dy, dc, dgates.
extern "C" int stepwise_backward_driver(const int64_t* sizes, int reverse, const int64_t* lengths,
                                        void* const* pointers, const int64_t* strides,
                                        int* products_before_error) {
  const RecurrenceShape shape = shape_of(sizes);
  BackwardDirection direction;
  direction.reverse = reverse != 0;
  direction.weight_hh = pointers[0];
  direction.weight_hr = pointers[1];
  direction.hx = pointers[2];
  direction.cx = pointers[3];
  direction.output = pointers[4];
  direction.output_stride = strides[0];
  direction.reserve = pointers[5];
  direction.reserve_stride = strides[1];
  direction.dy = pointers[6];
  direction.dy_stride = strides[2];
  direction.dc = pointers[7];
  direction.dc_stride = strides[3];
  direction.dgates = pointers[8];
  direction.dgates_stride = strides[4];
  direction.dproj = pointers[9];
  direction.dhx = pointers[10];
  direction.dcx = pointers[11];
  const cuda::StepGemm gemm{multiply_by_loop, products_before_error, GemmCompute::kIeee};
  const Memory workspace(cuda::stepwise_backward_workspace(shape));
  return cuda::stepwise_backward(shape, lengths, direction, pointers[12], gemm, workspace.data,
                                 nullptr);
}
