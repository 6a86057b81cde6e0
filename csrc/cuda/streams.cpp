#include "cuda/streams.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace birnn::cuda {
namespace {

// What is made once and kept for good. Never destroyed: at the end of the process the driver may be
// gone before a static's destructor runs.
struct Kept {
  std::mutex mutex;
  std::map<std::pair<int, cudaStream_t>, cudaStream_t> side_streams;  // by device and caller
  std::map<int, std::vector<cudaEvent_t>> idle_events;                // by device
};

Kept& kept() {
  static Kept* const instance = new Kept;
  return *instance;
}

// Lets this thread create a stream or an event while one of its streams is being captured.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

cudaError_t side_stream_of(int device, cudaStream_t caller, void** side) {
  Kept& all = kept();
  const std::lock_guard<std::mutex> lock(all.mutex);
  cudaStream_t& stream = all.side_streams[{device, caller}];
  if (!stream) {
    const RelaxedCapture relaxed;
    int priority = 0;
    if (const cudaError_t error = cudaStreamGetPriority(caller, &priority)) return error;
    if (const cudaError_t error =
            cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority)) {
      stream = nullptr;
      return error;
    }
  }
  *side = stream;
  return cudaSuccess;
}

// An event of this call's own: threads that fork from one stream must not record over each other.
cudaError_t take_event(int device, void** event) {
  Kept& all = kept();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::vector<cudaEvent_t>& idle = all.idle_events[device];
  if (!idle.empty()) {
    *event = idle.back();
    idle.pop_back();
    return cudaSuccess;
  }
  const RelaxedCapture relaxed;
  cudaEvent_t created = nullptr;
  const cudaError_t error = cudaEventCreateWithFlags(&created, cudaEventDisableTiming);
  *event = created;
  return error;
}

void give_event(int device, void* event) {
  Kept& all = kept();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.idle_events[device].push_back(static_cast<cudaEvent_t>(event));
}

// Work enqueued on `after` from now on follows what `before` holds. The event is free for another
// record as soon as this returns.
cudaError_t order(void* before, void* after, void* event) {
  const auto recorded = static_cast<cudaEvent_t>(event);
  if (const cudaError_t error = cudaEventRecord(recorded, static_cast<cudaStream_t>(before)))
    return error;
  return cudaStreamWaitEvent(static_cast<cudaStream_t>(after), recorded, 0);
}

}  // namespace

int ForkedStream::fork(int device, void* caller) {
  device_ = device;
  caller_ = caller;
  if (const cudaError_t error = side_stream_of(device, static_cast<cudaStream_t>(caller), &side_))
    return error;
  if (!event_)
    if (const cudaError_t error = take_event(device, &event_)) return error;
  const cudaError_t error = order(caller_, side_, event_);
  forked_ = error == cudaSuccess;
  return error;
}

int ForkedStream::join() {
  forked_ = false;
  return order(side_, caller_, event_);
}

ForkedStream::~ForkedStream() {
  if (forked_) join();
  if (event_) give_event(device_, event_);
}

}  // namespace birnn::cuda
