// What a kernel test needs on either side, GPU or emulator: memory that both see, a launch that
// waits, and a list of expectations.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device/device.h"

// On the emulator, memory of the host is what kernels access: compiled against device_emulator.h,
// or by nvcc for the interpreter of its PTX (which defines PTX_EMULATED).
#if !defined(__CUDACC__) || defined(PTX_EMULATED)
#define BIRNN_EMULATED
#include "guard_zones.h"
#include "runtime.h"
#endif

namespace birnn::test {

using device::LaunchConfig;
using device::Status;

inline int num_failures = 0;

// An array that the host reads and writes here and kernels at data(). On a GPU these are two, in
// ordinary memory, and `run` copies all of them before and after: so nothing here depends on
// managed memory, whose pages would move while a kernel runs. On the emulator they are one, and
// writes past its ends are failures. Every byte starts as 0xff: NaN in the float formats.
#if !defined(BIRNN_EMULATED)
struct Mirrored {
  Mirrored(void* host_bytes, size_t count) : host(host_bytes), bytes(count) {
    if (cudaMalloc(&device, bytes) != cudaSuccess) std::abort();
    all().push_back(this);
  }
  ~Mirrored() {
    all().erase(std::find(all().begin(), all().end(), this));
    cudaFree(device);
  }
  Mirrored(const Mirrored&) = delete;
  Mirrored& operator=(const Mirrored&) = delete;

  static std::vector<Mirrored*>& all() {
    static std::vector<Mirrored*> alive;
    return alive;
  }
  static cudaError_t copy_all(cudaMemcpyKind kind) {
    cudaError_t status = cudaSuccess;
    for (Mirrored* one : all()) {
      const bool down = kind == cudaMemcpyDeviceToHost;
      const cudaError_t error = cudaMemcpy(down ? one->host : one->device,
                                           down ? one->device : one->host, one->bytes, kind);
      if (status == cudaSuccess) status = error;
    }
    return status;
  }

  void* host;
  size_t bytes;
  void* device = nullptr;
};

class HostMemory {
 public:
  explicit HostMemory(size_t bytes) : data_(std::malloc(bytes)), mirrored_(data_, bytes) {
    std::memset(data_, 0xff, bytes);
  }
  ~HostMemory() { std::free(data_); }
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  void* data() const { return data_; }
  void* kernels_data() const { return mirrored_.device; }
  bool is_intact() const { return true; }

 private:
  void* data_;
  Mirrored mirrored_;
};
using BufferMemory = HostMemory;
#else
using BufferMemory = GuardedMemory;
#endif

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count), memory_(count * sizeof(T)) {}
  Buffer(size_t count, T value) : Buffer(count) {
    for (size_t i = 0; i < count; ++i) (*this)[i] = value;
  }
  ~Buffer() {
    if (memory_.is_intact()) return;
    ++num_failures;
    std::printf("FAILED: a write past the end of a buffer of %zu bytes\n", count_ * sizeof(T));
  }

  T& operator[](size_t i) { return static_cast<T*>(memory_.data())[i]; }
  const T& operator[](size_t i) const { return static_cast<const T*>(memory_.data())[i]; }
  // Where kernels find it.
  T* data() {
#if !defined(BIRNN_EMULATED)
    return static_cast<T*>(memory_.kernels_data());
#else
    return static_cast<T*>(memory_.data());
#endif
  }
  size_t size() const { return count_; }

 private:
  size_t count_;
  BufferMemory memory_;
};

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++num_failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// Launches, waits, and reports an error as a failure. Returns whether all went well.
template <class... Parameters, class... Arguments>
bool run(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments&&... arguments) {
#if !defined(BIRNN_EMULATED)
  Status status = Mirrored::copy_all(cudaMemcpyHostToDevice);
  if (status == device::kSuccess)
    status = device::launch(config, kernel, std::forward<Arguments>(arguments)...);
  if (status == device::kSuccess) status = cudaDeviceSynchronize();
  if (status == device::kSuccess) status = Mirrored::copy_all(cudaMemcpyDeviceToHost);
#else
  Status status = device::launch(config, kernel, std::forward<Arguments>(arguments)...);
#endif
  if (status == device::kSuccess) return true;
  ++num_failures;
  std::printf("FAILED: launch: %s\n", device::error_message(status));
  return false;
}

// Whether clusters can be launched; the emulator's machine has them.
inline bool has_clusters() {
#if defined(__CUDACC__)
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major >= 9;
#else
  return true;
#endif
}

struct Case {
  const char* name;
  std::function<void()> body;
  bool needs_clusters = false;
};

// Runs the cases named in the arguments, or all of them; "list" prints their names. The exit status
// of main().
inline int run_cases(const std::vector<Case>& cases, int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "list") == 0) {
    for (const Case& one : cases) std::printf("%s\n", one.name);
    return 0;
  }
  int num_run = 0;
  for (const Case& one : cases) {
    bool wanted = argc < 2;
    for (int i = 1; i < argc; ++i) wanted |= std::strcmp(argv[i], one.name) == 0;
    if (!wanted) continue;
    ++num_run;
    if (one.needs_clusters && !has_clusters()) {
      std::printf("%-32s skipped: needs compute capability 9.0\n", one.name);
      continue;
    }
    const int failures_before = num_failures;
    one.body();
    std::printf("%-32s %s\n", one.name, num_failures == failures_before ? "ok" : "FAILED");
    std::fflush(stdout);
  }
  if (num_run == 0) {
    std::printf("no such case\n");
    return 2;
  }
  return num_failures == 0 ? 0 : 1;
}

}  // namespace birnn::test
