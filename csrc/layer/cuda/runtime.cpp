#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <map>
#include <mutex>
#include <optional>

#include "cuda/plan/cluster_limit.h"
#include "cuda/streams.h"
#include "layer/cuda/gemm.h"
#include "layer/cuda/runtime.h"

namespace birnn::gpu {

struct OnDevice::State {
  explicit State(const at::Device& device) : guard(device) {}
  c10::cuda::CUDAGuard guard;
};
OnDevice::OnDevice(const at::Device& device) : state_(std::make_unique<State>(device)) {}
OnDevice::~OnDevice() = default;

struct SideStream::State {
  c10::DeviceIndex device;
  c10::cuda::CUDAStream caller;
  cuda::ForkedStream forked;
  std::optional<c10::cuda::CUDAStreamGuard> on_side;
};
SideStream::SideStream(const at::Device& device)
    : state_(new State{device.index(), at::cuda::getCurrentCUDAStream(device.index()), {}, {}}) {}
SideStream::~SideStream() = default;

int SideStream::fork() { return state_->forked.fork(state_->device, state_->caller.stream()); }
void SideStream::enter() {
  state_->on_side.emplace(c10::cuda::getStreamFromExternal(
      static_cast<cudaStream_t>(state_->forked.side()), state_->device));
}
void SideStream::leave() { state_->on_side.reset(); }
int SideStream::join() { return state_->forked.join(); }

Queue current_queue() {
  return {at::cuda::getCurrentCUDAStream().stream(), at::cuda::getCurrentCUDABlasHandle()};
}

const cuda::DeviceLimits& limits_of(const at::Device& device) {
  static std::mutex mutex;
  static std::map<int, cuda::DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace(device.index());
  cuda::DeviceLimits& limits = entry->second;
  if (is_new) {
    const cudaDeviceProp* const properties = at::cuda::getDeviceProperties(device.index());
    limits.name = properties->name;
    limits.compute_capability = 10 * properties->major + properties->minor;
    limits.num_multiprocessors = properties->multiProcessorCount;
    limits.shared_bytes_per_block = static_cast<int64_t>(properties->sharedMemPerBlockOptin);
    const c10::cuda::CUDAGuard guard(device);
    // All shared memory: the blocks of a cluster kernel have a multiprocessor each.
    limits.max_cluster_size = cuda::largest_cluster(
        cuda::max_cluster_size(limits.compute_capability), limits.shared_bytes_per_block);
    cudaGetLastError();  // of sizes that were refused
    limits.memory_bytes = static_cast<int64_t>(properties->totalGlobalMem);
  }
  return limits;
}

bool is_capturing() {
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

at::Tensor copy_to_device(const at::Tensor& host, const at::Device& device) {
  const at::Tensor pinned =
      at::empty(host.sizes(), at::TensorOptions().dtype(at::kLong).pinned_memory(true));
  pinned.copy_(host);
  return pinned.to(device, /*non_blocking=*/true);
}

int gemm(void* handle, void* stream, const GemmShape& shape, const void* a, const void* b, void* c,
         Element element, GemmCompute compute) {
  return cuda::gemm(handle, stream, shape, a, b, c, element, compute);
}

const char* take_error_text(int code) {
  cudaGetLastError();
  return cuda::error_text(code);
}

}  // namespace birnn::gpu
