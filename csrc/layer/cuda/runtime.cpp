#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <map>
#include <mutex>
#include <optional>
#include <type_traits>

#include "cuda/dispatch.h"
#include "cuda/streams.h"
#include "layer/cuda/cublas.h"
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
  cuda::Role role;
  c10::cuda::CUDAStream caller;
  cuda::ForkedStream forked;
  std::optional<c10::cuda::CUDAStreamGuard> on_side;
};
SideStream::SideStream(const at::Device& device, cuda::Role role)
    : state_(new State{
          device.index(), role, at::cuda::getCurrentCUDAStream(device.index()), {}, {}}) {}
SideStream::~SideStream() = default;

int SideStream::fork() {
  return state_->forked.fork(state_->device, state_->caller.stream(), state_->role);
}
void SideStream::enter() {
  state_->on_side.emplace(c10::cuda::getStreamFromExternal(
      static_cast<cudaStream_t>(state_->forked.side()), state_->device));
}
void SideStream::leave() { state_->on_side.reset(); }
int SideStream::precede_current() { return state_->forked.precede(current_stream()); }
int SideStream::join() { return state_->forked.join(); }

void* current_stream() { return at::cuda::getCurrentCUDAStream().stream(); }

namespace {

// The thread's handle, without a workspace of torch's for this stream where torch lets one choose.
template <class GetHandle>
cublasHandle_t handle_from(GetHandle get) {
  if constexpr (std::is_invocable_v<GetHandle, bool>)
    return get(/*setup=*/false);
  else
    return get();
}

}  // namespace

Library::Library(const at::Device& device, int num_streams)
    : handle_(handle_from(&at::cuda::getCurrentCUDABlasHandle)), caller_(current_stream()) {
  // As large as torch's own; it reads the environment for that, which takes long.
  static const auto bytes = static_cast<int64_t>(at::cuda::getChosenWorkspaceSize());
  constexpr int64_t kAlignment = 256;
  workspace_bytes_ = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  workspaces_ = at::empty({num_streams * workspace_bytes_},
                          at::TensorOptions().dtype(at::kByte).device(device));
}

// Binding a stream takes the workspace away: whoever has the handle next finds neither.
Library::~Library() { cuda::bind(handle_, caller_, nullptr, 0); }

Queue Library::queue(int i) const {
  void* const stream = current_stream();
  char* const workspace = static_cast<char*>(workspaces_.data_ptr()) + i * workspace_bytes_;
  const int code = cuda::bind(handle_, stream, workspace, workspace_bytes_);
  TORCH_CHECK(code == 0,
              "birnn_cuda: a stream cannot be given to cuBLAS: ", cuda::error_text(code));
  return {stream, handle_};
}

namespace {

cuda::Residency ask_driver(const cuda::PlanRequest& request, cuda::Pass pass,
                           const cuda::Choice& choice) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(request.device.index));
  // In a capture as well: a kernel that is loaded for the question may take memory.
  const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
  const cuda::Residency residency = cuda::residency(request, pass, choice);
  if (!residency.error.empty()) cudaGetLastError();  // of what was refused
  return residency;
}

}  // namespace

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
    limits.max_cluster_size = cuda::max_cluster_size(limits.compute_capability);
    limits.index = device.index();
    limits.ask_driver = ask_driver;
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
