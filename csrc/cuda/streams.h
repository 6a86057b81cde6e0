// Side streams beside the caller's: for the second direction, or for a recurrence whose products
// follow it elsewhere. A side stream belongs to one (device, caller, role). A fork makes it wait
// for what the caller's holds so far, a join makes the caller's wait for what it holds.
//
// Both are events recorded and waited on within one call, so a CUDA graph can capture them: the
// side stream joins the capture at the fork and leaves it at the join. Memory that is allocated on
// the caller's stream before the fork and released after the join needs no further care.
#pragma once

namespace birnn::cuda {

// What a side stream is for. Of one caller, work in different roles never shares a stream.
enum class Role : int {
  kSecondDirection,  // all that the second direction runs
  kAhead,            // a recurrence, of which the products of its parts follow on other streams
  kUrgentlyAhead,    // the same, of a higher priority than the caller's
};

// Streams are cudaStream_t; functions return 0 or a cudaError_t. The current device must be
// `device` from fork() to the destructor. Any number of threads may use forks of the same stream:
// they share the side streams, which costs overlap and no more.
class ForkedStream {
 public:
  ForkedStream() = default;
  ForkedStream(const ForkedStream&) = delete;
  ForkedStream& operator=(const ForkedStream&) = delete;
  // Joins what is still forked, as after an error halfway: a capture must not end with a loose
  // stream, and the memory of a failed call is given back to the caller's stream.
  ~ForkedStream();

  // Any number of times, by the same caller in the same role.
  int fork(int device, void* caller, Role role);
  // What `stream` holds from now on follows what the side stream holds so far.
  int precede(void* stream);
  int join();

  void* side() const { return side_; }

 private:
  int device_ = 0;
  void* caller_ = nullptr;
  void* side_ = nullptr;
  void* event_ = nullptr;
  void* kept_ = nullptr;  // the side stream's entry among those that are kept
  bool forked_ = false;
};

// How many side streams are kept of a device. A program that calls from ever new streams gets those
// that were used least recently: work of two callers may then share one, which costs overlap.
constexpr int kMostSideStreams = 96;
int num_side_streams(int device);

}  // namespace birnn::cuda
