// CUDA's runtime as the timeline's.
#include "cuda_runtime_api.h"
#include "timeline.h"

namespace timeline = birnn::emulator::timeline;

namespace {

constexpr int kLeastPriority = 0, kGreatestPriority = -5;
cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;

timeline::Stream* of(cudaStream_t stream) { return reinterpret_cast<timeline::Stream*>(stream); }
timeline::Event* of(cudaEvent_t event) { return reinterpret_cast<timeline::Event*>(event); }

// Making something is not allowed in a capture unless the thread says that it knows.
void check_mode(const char* what) {
  if (timeline::capturing() && mode_of_thread != cudaStreamCaptureModeRelaxed)
    timeline::violate(std::string(what) + " in a capture that is not relaxed");
}

}  // namespace

extern "C" {

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  const cudaStreamCaptureMode before = mode_of_thread;
  mode_of_thread = *mode;
  *mode = before;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = kLeastPriority;
  *greatest = kGreatestPriority;
  return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  *priority = timeline::priority_of(of(stream));
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  check_mode("a stream is made");
  if (flags != cudaStreamNonBlocking) timeline::violate("a stream that the null stream blocks");
  if (priority > kLeastPriority || priority < kGreatestPriority) return cudaErrorInvalidValue;
  *stream = reinterpret_cast<cudaStream_t>(timeline::new_stream(priority));
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = timeline::is_captured(of(stream)) ? cudaStreamCaptureStatusActive
                                              : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  timeline::wait(of(stream), of(event));
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  check_mode("an event is made");
  if (flags != cudaEventDisableTiming) timeline::violate("an event that takes the time");
  *event = reinterpret_cast<cudaEvent_t>(timeline::new_event());
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  timeline::record(of(event), of(stream));
  return cudaSuccess;
}

}  // extern "C"
