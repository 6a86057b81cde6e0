// layer/cuda/runtime.h without a GPU: a stream is one of the timeline (streams/timeline.h), which
// knows what a GPU may reorder; here everything has run when a call returns.
#include "layer/cuda/runtime.h"

#include <ATen/ATen.h>

#include "cuda/dispatch.h"
#include "cuda/streams.h"
#include "loop_gemm.h"
#include "runtime.h"
#include "streams/timeline.h"

namespace birnn::gpu {

namespace timeline = emulator::timeline;

struct OnDevice::State {};
OnDevice::OnDevice(const at::Device&) {}
OnDevice::~OnDevice() = default;

struct SideStream::State {
  cuda::Role role{};
  timeline::Stream* caller = timeline::current();
  timeline::Stream* before = nullptr;  // while entered
  cuda::ForkedStream forked;

  void leave() {
    if (before) timeline::set_current(before);
    before = nullptr;
  }
};
SideStream::SideStream(const at::Device&, cuda::Role role) : state_(std::make_unique<State>()) {
  state_->role = role;
}
SideStream::~SideStream() { state_->leave(); }
int SideStream::fork() { return state_->forked.fork(0, state_->caller, state_->role); }
void SideStream::enter() {
  TORCH_CHECK(!state_->before, "entered a side stream twice");
  state_->before = timeline::current();
  timeline::set_current(static_cast<timeline::Stream*>(state_->forked.side()));
}
void SideStream::leave() { state_->leave(); }
int SideStream::precede_current() { return state_->forked.precede(current_stream()); }
int SideStream::join() { return state_->forked.join(); }

void* current_stream() { return timeline::current(); }

// A library's handle: one to the thread, with the stream and the workspace that it was given last.
struct Handle {
  void* stream = nullptr;
  void* workspace = nullptr;
};

Library::Library(const at::Device& device, int num_streams) : workspace_bytes_(256) {
  static Handle handle;
  handle_ = &handle;
  workspaces_ = at::empty({num_streams * workspace_bytes_},
                          at::TensorOptions().dtype(at::kByte).device(device));
}
Library::~Library() { *static_cast<Handle*>(handle_) = {}; }
Queue Library::queue(int i) const {
  void* const workspace = static_cast<char*>(workspaces_.data_ptr()) + i * workspace_bytes_;
  *static_cast<Handle*>(handle_) = {current_stream(), workspace};
  return {current_stream(), handle_};
}

namespace {

cuda::DeviceLimits& h100() {
  static cuda::DeviceLimits limits = [] {
    for (cuda::DeviceLimits device : cuda::known_devices())
      if (device.name == "h100") {
        device.index = 0;
        device.ask_driver = cuda::residency;
        return device;
      }
    TORCH_CHECK(false, "the plan does not know the h100");
  }();
  return limits;
}

}  // namespace

const cuda::DeviceLimits& limits_of(const at::Device&) { return h100(); }

// Another device of the same kind, whose driver answers like this: as the emulator's options say.
// What the plan remembers is of the one before.
void change_driver(bool present, const std::map<uint32_t, int>& resident_clusters,
                   int blocks_of_multiprocessor, int code_capability) {
  emulator::options().resident_clusters = resident_clusters;
  emulator::options().blocks_of_multiprocessor = blocks_of_multiprocessor;
  emulator::options().code_capability = code_capability;
  ++h100().index;
  h100().ask_driver = present ? cuda::residency : nullptr;
}

// kernel, threads, blocks, blocks of a cluster, shared bytes; whether it is a launch or the driver
// is asked of it.
using SeenKernel = std::tuple<uintptr_t, uint32_t, uint32_t, uint32_t, size_t, bool>;
std::vector<SeenKernel> seen_kernels;

void see_kernels() {
  seen_kernels.clear();
  emulator::kernel_observer = [](const void* kernel, const device::LaunchConfig& config,
                                 bool launched) {
    seen_kernels.emplace_back(reinterpret_cast<uintptr_t>(kernel), config.threads, config.grid.x,
                              config.cluster, config.shared_bytes, launched);
  };
}

bool is_capturing() { return timeline::is_captured(timeline::current()); }

at::Tensor copy_to_device(const at::Tensor& host, const at::Device&) {
  return host.to(at::kLong).clone();
}

int gemm(void* handle, void* stream, const GemmShape& shape, const void* a, const void* b, void* c,
         Element element, GemmCompute compute) {
  TORCH_CHECK(handle && static_cast<Handle*>(handle)->stream == stream,
              "a product on a handle that is bound to another stream");
  {
    const timeline::Enqueued enqueued(static_cast<timeline::Stream*>(stream), "a product");
    const auto touch = [](const void* at, int64_t rows, int64_t columns, int64_t stride,
                          int64_t bytes, bool writes) {
      for (int64_t i = 0; i < rows; ++i)
        timeline::access(static_cast<const char*>(at) + i * stride * bytes, columns * bytes,
                         writes);
    };
    timeline::access(static_cast<Handle*>(handle)->workspace, 256, true);
    const int64_t bytes = element_bytes(element);
    const int64_t result_bytes = shape.float_output ? 4 : bytes;
    touch(a, shape.transpose_a ? shape.k : shape.m, shape.transpose_a ? shape.m : shape.k,
          shape.lda, bytes, false);
    touch(b, shape.transpose_b ? shape.n : shape.k, shape.transpose_b ? shape.k : shape.n,
          shape.ldb, bytes, false);
    if (shape.beta != 0.0f) touch(c, shape.m, shape.n, shape.ldc, result_bytes, false);
    touch(c, shape.m, shape.n, shape.ldc, result_bytes, true);
  }
  test::multiply_by_loop(shape, a, b, c, element, compute);
  return 0;
}

const char* take_error_text(int code) {
  return code == 0 ? "no error" : emulator::last_error().c_str();
}

}  // namespace birnn::gpu
