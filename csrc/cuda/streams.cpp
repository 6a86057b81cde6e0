#include "cuda/streams.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <vector>

namespace birnn::cuda {
namespace {

struct SideStream {
  int device = 0;
  cudaStream_t caller = nullptr;
  Role role = Role::kSecondDirection;
  cudaStream_t stream = nullptr;
  int priority = 0;
  int users = 0;          // forks that have not ended
  uint64_t last_use = 0;  // counted in forks
};

// What is made once and kept for good. Never destroyed: at the end of the process the driver may be
// gone before a static's destructor runs.
struct Kept {
  std::mutex mutex;
  std::list<SideStream> side_streams;
  uint64_t forks = 0;
  std::map<int, std::vector<cudaEvent_t>> idle_events;  // by device
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

// Lower numbers are more urgent.
cudaError_t priority_for(cudaStream_t caller, Role role, int* priority) {
  if (const cudaError_t error = cudaStreamGetPriority(caller, priority)) return error;
  if (role != Role::kUrgentlyAhead) return cudaSuccess;
  int least = 0, greatest = 0;
  if (const cudaError_t error = cudaDeviceGetStreamPriorityRange(&least, &greatest)) return error;
  *priority = std::max(*priority - 1, greatest);
  return cudaSuccess;
}

// A stream that nobody has forked, of this priority, the one that has gone unused longest; or null.
// One that a graph is being captured on stays out of other hands.
SideStream* least_recently_used(Kept& all, int device, int priority) {
  SideStream* found = nullptr;
  for (SideStream& one : all.side_streams) {
    if (one.device != device || one.priority != priority || one.users > 0) continue;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(one.stream, &status) || status != cudaStreamCaptureStatusNone)
      continue;
    if (!found || one.last_use < found->last_use) found = &one;
  }
  return found;
}

cudaError_t take_side_stream(int device, cudaStream_t caller, Role role, SideStream** taken) {
  Kept& all = kept();
  const std::lock_guard<std::mutex> lock(all.mutex);
  SideStream* found = nullptr;
  int count = 0;
  for (SideStream& one : all.side_streams) {
    count += one.device == device;
    if (one.device == device && one.caller == caller && one.role == role) found = &one;
  }
  if (!found) {
    const RelaxedCapture relaxed;
    int priority = 0;
    if (const cudaError_t error = priority_for(caller, role, &priority)) return error;
    if (count >= kMostSideStreams) found = least_recently_used(all, device, priority);
    if (!found) {
      cudaStream_t stream = nullptr;
      if (const cudaError_t error =
              cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority))
        return error;
      found = &all.side_streams.emplace_back();
      found->device = device;
      found->stream = stream;
      found->priority = priority;
    }
    found->caller = caller;
    found->role = role;
  }
  ++found->users;
  found->last_use = ++all.forks;
  *taken = found;
  return cudaSuccess;
}

void give_side_stream(SideStream* stream) {
  const std::lock_guard<std::mutex> lock(kept().mutex);
  --stream->users;
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

int ForkedStream::fork(int device, void* caller, Role role) {
  device_ = device;
  caller_ = caller;
  if (!kept_) {
    SideStream* taken = nullptr;
    if (const cudaError_t error =
            take_side_stream(device, static_cast<cudaStream_t>(caller), role, &taken))
      return error;
    kept_ = taken;
    side_ = taken->stream;
  }
  if (!event_)
    if (const cudaError_t error = take_event(device, &event_)) return error;
  const cudaError_t error = order(caller_, side_, event_);
  forked_ = error == cudaSuccess;
  return error;
}

int ForkedStream::precede(void* stream) { return order(side_, stream, event_); }

int ForkedStream::join() {
  forked_ = false;
  return precede(caller_);
}

ForkedStream::~ForkedStream() {
  if (forked_) join();
  if (event_) give_event(device_, event_);
  if (kept_) give_side_stream(static_cast<SideStream*>(kept_));
}

int num_side_streams(int device) {
  Kept& all = kept();
  const std::lock_guard<std::mutex> lock(all.mutex);
  int count = 0;
  for (const SideStream& one : all.side_streams) count += one.device == device;
  return count;
}

}  // namespace birnn::cuda
