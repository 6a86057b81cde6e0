// layer/cuda/runtime.h without a GPU: one stream, on which everything has run when a call returns.
#include "layer/cuda/runtime.h"

#include <ATen/ATen.h>

#include "loop_gemm.h"

namespace birnn::gpu {

struct OnDevice::State {};
OnDevice::OnDevice(const at::Device&) {}
OnDevice::~OnDevice() = default;

// Counts what a stream must not see: entering twice, what was left unjoined.
struct SideStream::State {
  bool forked = false, entered = false;
};
SideStream::SideStream(const at::Device&) : state_(std::make_unique<State>()) {}
SideStream::~SideStream() = default;
int SideStream::fork() {
  TORCH_CHECK(!state_->entered, "a fork from the side stream itself");
  state_->forked = true;
  return 0;
}
void SideStream::enter() {
  TORCH_CHECK(state_->forked && !state_->entered, "entered a side stream that was not forked");
  state_->entered = true;
}
void SideStream::leave() { state_->entered = false; }
int SideStream::join() {
  TORCH_CHECK(state_->forked && !state_->entered, "joined a side stream that was not forked");
  state_->forked = false;
  return 0;
}

Queue current_queue() { return {}; }

const cuda::DeviceLimits& limits_of(const at::Device&) {
  for (const cuda::DeviceLimits& device : cuda::known_devices())
    if (device.name == "h100") return device;
  TORCH_CHECK(false, "the plan does not know the h100");
}

bool is_capturing() { return false; }

at::Tensor copy_to_device(const at::Tensor& host, const at::Device&) {
  return host.to(at::kLong).clone();
}

int gemm(void*, void*, const GemmShape& shape, const void* a, const void* b, void* c,
         Element element, GemmCompute compute) {
  test::multiply_by_loop(shape, a, b, c, element, compute);
  return 0;
}

const char* take_error_text(int code) { return device::error_message(code); }

}  // namespace birnn::gpu
