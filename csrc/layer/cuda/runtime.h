// What the GPU layer needs of torch's CUDA runtime: the device, streams, and copies to it. The
// tests put an implementation in its place that runs everything on the CPU, under the emulator.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "cuda/plan/plan.h"
#include "cuda/recurrence_cuda.h"
#include "cuda/streams.h"

namespace birnn::gpu {

// A stream, and the library on it.
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

// A side stream of the stream that is current when this is made, the caller; what runs there and
// what runs on the caller's may overlap between a fork and the join.
class SideStream {
 public:
  SideStream(const at::Device& device, cuda::Role role);
  ~SideStream();  // leaves, and joins what is still forked
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

  // What is enqueued on the side stream from now on follows what the caller's stream holds. Any
  // number of times. Returns an error code, as do all of these.
  int fork();
  // Makes the side stream the current one, and back.
  void enter();
  void leave();
  // What is enqueued on the current stream, or on the caller's, from now on follows what the side
  // stream holds.
  int precede_current();
  int join();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

void* current_stream();

// The library for the products of one call, on several streams: each has a workspace of its own,
// memory of the call. (The workspaces that torch keeps for each of its handles and streams stay for
// good, and how they are set has changed between its versions; products on two streams that share
// one are not repeatable.)
class Library {
 public:
  Library(const at::Device& device, int num_streams);
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  // The current stream, the i-th of those that multiply: good until the next is asked for.
  Queue queue(int i) const;

 private:
  void* handle_ = nullptr;
  void* caller_ = nullptr;
  at::Tensor workspaces_;
  int64_t workspace_bytes_ = 0;
};

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
