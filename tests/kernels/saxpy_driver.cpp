// The smallest driver for ctypes: a kernel, its launch, and a C function. Real drivers look the
// same over the launchers of csrc/cuda.
#include "cuda/device/device.h"

namespace {

using namespace birnn::device;

BIRNN_KERNEL void saxpy_kernel(float a, const float* x, float* y, uint32_t count) {
  const uint32_t i = block_idx().x * block_dim() + thread_idx();
  if (i < count) y[i] += a * x[i];
}

}  // namespace

// y[0..count) += a * x[0..count). Returns a Status.
extern "C" int saxpy(float a, const float* x, float* y, uint32_t count, uint32_t threads) {
  LaunchConfig config;
  config.grid.x = (count + threads - 1) / threads;
  config.threads = threads;
  return launch(config, saxpy_kernel, a, x, y, count);
}
