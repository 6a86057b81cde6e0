// A side stream beside the caller's: for the second direction, or for weight gradients beside a
// recurrence. It belongs to that (device, stream) alone. A fork makes the side stream wait for what
// the caller's holds so far, a join makes the caller's wait for what the side stream holds.
//
// Both are events recorded and waited on within one call, so a CUDA graph can capture them: the
// side stream joins the capture at the fork and leaves it at the join. Memory that is allocated on
// the caller's stream before the fork and released after the join needs no further care.
#pragma once

namespace birnn::cuda {

// Streams are cudaStream_t; functions return 0 or a cudaError_t. The current device must be
// `device` from fork() to the destructor. Any number of threads may use forks of the same stream:
// they share the side stream, which costs overlap and no more.
class ForkedStream {
 public:
  ForkedStream() = default;
  ForkedStream(const ForkedStream&) = delete;
  ForkedStream& operator=(const ForkedStream&) = delete;
  // Joins what is still forked, as after an error halfway: a capture must not end with a loose
  // stream, and the memory of a failed call is given back to the caller's stream.
  ~ForkedStream();

  int fork(int device, void* caller);
  int join();

  void* side() const { return side_; }

 private:
  int device_ = 0;
  void* caller_ = nullptr;
  void* side_ = nullptr;
  void* event_ = nullptr;
  bool forked_ = false;
};

}  // namespace birnn::cuda
