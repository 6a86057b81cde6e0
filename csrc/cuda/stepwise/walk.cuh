// stepwise, the host side: what the walks over a direction's steps share.
#pragma once

#include "cuda/recurrence_cuda.h"
#include "cuda/stepwise/sizes.h"
#include "cuda/stepwise/stepwise.cuh"

namespace birnn::cuda::stepwise {

inline Step first_step(const RecurrenceShape& shape, const int64_t* lengths, bool reverse) {
  Step step;
  step.lengths = lengths;
  step.seq_len = shape.seq_len;
  step.batch_size = shape.batch_size;
  step.hidden_size = shape.hidden_size;
  step.state_size = shape.state_size();
  step.reverse = reverse;
  return step;
}

// One direction's calls on one stream. The first error ends the walk.
struct Walk {
  const RecurrenceShape& shape;
  const StepGemm& gemm;
  void* stream;
  const Portion& portion;

  int64_t end() const { return portion.last < shape.seq_len ? portion.last : shape.seq_len; }

  int multiply(GemmShape product, const void* a, const void* b, void* c) const {
    return gemm.function(gemm.handle, stream, product, a, b, c, shape.element, gemm.compute);
  }

  // c [B, n] = a [B, k] w^T, w [n, k].
  int multiply_by_transpose(const void* a, int64_t n, int64_t k, const void* w, void* c,
                            bool carried) const {
    GemmShape product;
    product.transpose_b = true;
    product.m = shape.batch_size;
    product.n = n;
    product.k = k;
    product.lda = k;
    product.ldb = k;
    product.ldc = n;
    product.float_output = carried && element_bytes(shape.element) == 2;
    return multiply(product, a, w, c);
  }

  // c [B, n], carried type = a [B, k] with rows lda apart, times w [k, n].
  int multiply_by(const void* a, int64_t lda, int64_t n, int64_t k, const void* w, void* c) const {
    GemmShape product;
    product.m = shape.batch_size;
    product.n = n;
    product.k = k;
    product.lda = lda;
    product.ldb = n;
    product.ldc = n;
    product.float_output = element_bytes(shape.element) == 2;
    return multiply(product, a, w, c);
  }

  // A kernel with a thread for each of `width` units of each sequence.
  template <class... Parameters, class... Arguments>
  int run(int64_t width, void (*kernel)(Parameters...), Arguments... arguments) const {
    return run(config_for(width, shape.batch_size, stream), kernel, arguments...);
  }
  template <class... Parameters, class... Arguments>
  int run(const device::LaunchConfig& config, void (*kernel)(Parameters...),
          Arguments... arguments) const {
    return static_cast<int>(launch(config, kernel, arguments...));
  }
};

}  // namespace birnn::cuda::stepwise
