// What the GPU layer needs of torch's CUDA runtime: the device, streams, and copies to it. The
// tests put an implementation in its place that runs everything on the CPU, under the emulator.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "cuda/plan/plan.h"
#include "cuda/recurrence_cuda.h"

namespace birnn::gpu {

// A stream, and the library on it: good until another queue is made in the same thread.
struct Queue {
  void* stream = nullptr;
  void* blas = nullptr;
};

// Makes a device the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(const at::Device& device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A side stream of the current stream; what runs there and what runs here may overlap between a
// fork and the join.
class SideStream {
 public:
  explicit SideStream(const at::Device& device);
  ~SideStream();  // joins what is still forked
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

  // What is enqueued on the side stream from now on follows what the current stream holds. Any
  // number of times. Returns an error code, as do all of these.
  int fork();
  // Makes the side stream the current one, and back.
  void enter();
  void leave();
  // What is enqueued on the current stream from now on follows what the side stream holds.
  int join();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The queue of torch's current stream.
Queue current_queue();

// What the plan asks of a device; remembered.
const cuda::DeviceLimits& limits_of(const at::Device& device);

// Whether the current stream is being captured in a CUDA graph.
bool is_capturing();

// Integers of the host on the device, without anyone waiting.
at::Tensor copy_to_device(const at::Tensor& host, const at::Device& device);

// The library product, and the text of an error code of it or of CUDA. Forgets a failed launch, so
// that it is not found again by whoever looks next.
int gemm(void* handle, void* stream, const GemmShape& shape, const void* a, const void* b, void* c,
         Element element, GemmCompute compute);
const char* take_error_text(int code);

}  // namespace birnn::gpu
