// What the steps of a recurrence are made of, measured on this GPU: exchange inside a cluster and
// through L2, barriers, how many clusters fit, whether two launches overlap, and what
// the host takes to enqueue one. Prints a JSON object a line.
//
//   nvcc -std=c++17 -O3 -arch=native -Icsrc benchmarks/sections/micro.cu -o micro && ./micro
//
// Clocks are the SM's, read on the device; each figure is the median of several launches. Every
// exchange carries numbers that are checked at the end: a wrong one is listed under "errors".
#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/device/device.h"
#include "micro_kernels.cuh"

using namespace birnn::device;
using namespace birnn::micro;

namespace {

constexpr int kLaunches = 7;
constexpr uint32_t kRounds = 2000;

std::vector<std::string> errors;

// A line of JSON as soon as it is known: what is read so far stays, whatever happens next.
void print_line(const std::string& object) {
  std::printf("%s\n", object.c_str());
  std::fflush(stdout);
}
void add_error(const std::string& what) {
  errors.push_back(what);
  print_line("{\"error\": \"" + what + "\"}");
}

std::string format(const char* pattern, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof(text), pattern, arguments);
  va_end(arguments);
  return text;
}

bool good(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return true;
  add_error(what + ": " + cudaGetErrorString(status));
  cudaGetLastError();
  return false;
}

// Device memory, zeroed.
template <class T>
class Array {
 public:
  explicit Array(size_t count) : count_(count) {
    if (good(cudaMalloc(&data_, count * sizeof(T)), "cudaMalloc")) clear();
  }
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  void clear() { good(cudaMemset(data_, 0, count_ * sizeof(T)), "cudaMemset"); }
  T* data() { return data_; }
  std::vector<T> read() {
    std::vector<T> values(count_);
    good(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy");
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

template <class T>
T median(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? T{} : values[values.size() / 2];
}

struct Timing {
  double clocks = 0, nanoseconds = 0;  // of a round
  bool valid = false;
};

// Launches several times; the median. `before` runs ahead of every launch.
template <class Before, class... Parameters, class... Arguments>
Timing measure(const std::string& what, const LaunchConfig& config, uint32_t rounds,
               const Before& before, Outcome* outcome, void (*kernel)(Parameters...),
               Arguments... arguments) {
  std::vector<double> clocks, nanoseconds;
  cudaEvent_t start, stop;
  cudaEventCreate(&start);
  cudaEventCreate(&stop);
  bool well = true;
  for (int i = 0; i <= kLaunches && well; ++i) {  // the first one warms up
    cudaMemset(outcome, 0, sizeof(Outcome));
    before();
    cudaEventRecord(start);
    well = good(launch(config, kernel, arguments..., outcome), what);
    cudaEventRecord(stop);
    well = well && good(cudaDeviceSynchronize(), what);
    Outcome seen{};
    cudaMemcpy(&seen, outcome, sizeof(seen), cudaMemcpyDeviceToHost);
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, start, stop);
    if (well && seen.num_wrong > 0) {
      add_error(what + format(": %u wrong values", seen.num_wrong));
      well = false;
    }
    if (i == 0) continue;
    clocks.push_back(static_cast<double>(seen.clocks) / rounds);
    nanoseconds.push_back(milliseconds * 1e6 / rounds);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  return Timing{median(clocks), median(nanoseconds), well};
}

const auto kNothing = [] {};

// ---------------------------------------------------------------------------------------------
// Clusters.

int clusters_that_fit(const LaunchConfig& config, void (*kernel)(uint32_t, uint32_t, Outcome*)) {
  int blocks = 0;
  const Status status = max_resident_blocks(config, kernel, &blocks);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return blocks / static_cast<int>(config.cluster);
}

void measure_clusters(Outcome* outcome) {
  for (const uint32_t size : {2u, 4u, 8u, 16u}) {
    LaunchConfig config;
    config.cluster = config.grid.x = size;
    config.threads = 256;
    for (const uint32_t kilobytes : {1u, 96u, 200u}) {
      config.shared_bytes = kilobytes * 1024;
      print_line(format(
          R"({"what": "clusters that fit", "cluster": %u, "shared_bytes": %zu, "count": %d})", size,
          config.shared_bytes, clusters_that_fit(config, all_gather)));
    }
    config.shared_bytes = 1024;
    if (clusters_that_fit(config, all_gather) == 0) continue;

    config.threads = 32;
    const std::string cluster = format(" in a cluster of %u", size);
    Timing time = measure("st.async" + cluster, config, kRounds, kNothing, outcome,
                          st_async_round_trip, kRounds);
    if (!time.valid) continue;
    print_line(
        format(R"({"what": "st.async round trip", "cluster": %u, "bytes": 16, "clocks": %.1f, )"
               R"("nanoseconds": %.1f})",
               size, time.clocks, time.nanoseconds));

    config.threads = 256;
    time =
        measure("barrier" + cluster, config, kRounds, kNothing, outcome, cluster_barrier, kRounds);
    if (time.valid) {
      print_line(format(R"({"what": "cluster barrier", "cluster": %u, "clocks": %.1f, )"
                        R"("nanoseconds": %.1f})",
                        size, time.clocks, time.nanoseconds));
    }

    for (const uint32_t slice : {128u, 512u, 1024u, 2048u, 4096u}) {
      config.shared_bytes = 2 * size * slice + 64;
      const int most = clusters_that_fit(config, all_gather);
      std::vector<int> counts = {1};
      if (most > 1) counts.push_back(most);
      for (const int clusters : counts) {
        config.grid.x = size * static_cast<uint32_t>(clusters);
        time = measure("all-gather" + cluster, config, kRounds, kNothing, outcome, all_gather,
                       slice, kRounds);
        if (!time.valid) continue;
        print_line(format(
            R"({"what": "all-gather", "cluster": %u, "clusters": %d, "slice_bytes": %u, )"
            R"("clocks": %.1f, "nanoseconds": %.1f, "bytes_per_clock_received": %.2f})",
            size, clusters, slice, time.clocks, time.nanoseconds, size * slice / time.clocks));
      }
      config.grid.x = size;
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Through L2.

void measure_l2(uint32_t multiprocessors, Outcome* outcome) {
  Array<WordPair> slots(64);
  Array<uint32_t> words(256);
  LaunchConfig config;
  config.grid.x = multiprocessors;
  config.cooperative = true;
  config.shared_bytes = 1024;
  struct Hops {
    const char* name;
    std::vector<double> clocks, nanoseconds;
  };
  Hops by_data{"L2 data-poll hop", {}, {}}, by_flag{"L2 flag hop", {}, {}};
  for (uint32_t i = 1; i <= 8; ++i) {
    const uint32_t peer = std::max(1u, (multiprocessors - 1) * i / 8);
    const Timing data = measure(
        by_data.name, config, kRounds, [&] { slots.clear(); }, outcome, poll_data, slots.data(),
        peer, kRounds);
    const Timing flag = measure(
        by_flag.name, config, kRounds, [&] { words.clear(); }, outcome, poll_flag, words.data(),
        peer, kRounds);
    if (!data.valid || !flag.valid) return;
    by_data.clocks.push_back(data.clocks / 2);
    by_data.nanoseconds.push_back(data.nanoseconds / 2);
    by_flag.clocks.push_back(flag.clocks / 2);
    by_flag.nanoseconds.push_back(flag.nanoseconds / 2);
  }
  for (const Hops& hops : {by_data, by_flag}) {
    print_line(format(R"({"what": "%s", "pairs": %zu, "clocks": %.1f, "clocks_least": %.1f, )"
                      R"("clocks_most": %.1f, "nanoseconds": %.1f})",
                      hops.name, hops.clocks.size(), median(hops.clocks),
                      *std::min_element(hops.clocks.begin(), hops.clocks.end()),
                      *std::max_element(hops.clocks.begin(), hops.clocks.end()),
                      median(hops.nanoseconds)));
  }

  config.threads = 256;
  for (const uint32_t blocks : {2u, 8u, 16u, 32u, 64u, multiprocessors}) {
    if (blocks > multiprocessors) continue;
    config.grid.x = blocks;
    const Timing time = measure(
        "grid barrier", config, kRounds, [&] { words.clear(); }, outcome, grid_barrier,
        words.data(), kRounds);
    if (!time.valid) return;
    print_line(
        format(R"({"what": "grid barrier", "blocks": %u, "clocks": %.1f, "nanoseconds": %.1f})",
               blocks, time.clocks, time.nanoseconds));
  }
}

// ---------------------------------------------------------------------------------------------
// Two launches on two streams.

// Milliseconds until both streams are done, the second launch left out if `both` is false.
float run_launches(LaunchConfig config, const cudaStream_t (&streams)[2], bool both,
                   long long clocks) {
  cudaEvent_t start, joined, stop;
  cudaEventCreate(&start);
  cudaEventCreate(&stop);
  cudaEventCreateWithFlags(&joined, cudaEventDisableTiming);
  cudaEventRecord(start, streams[0]);
  cudaStreamWaitEvent(streams[1], start);
  for (int i = 0; i < (both ? 2 : 1); ++i) {
    config.stream = streams[i];
    good(launch(config, spin, clocks), "launches that overlap");
  }
  cudaEventRecord(joined, streams[1]);
  cudaStreamWaitEvent(streams[0], joined);
  cudaEventRecord(stop, streams[0]);
  good(cudaDeviceSynchronize(), "launches that overlap");
  float milliseconds = 0;
  cudaEventElapsedTime(&milliseconds, start, stop);
  cudaEventDestroy(start);
  cudaEventDestroy(joined);
  cudaEventDestroy(stop);
  return milliseconds;
}

void measure_overlap(const cudaDeviceProp& properties) {
  const uint32_t multiprocessors = static_cast<uint32_t>(properties.multiProcessorCount);
  constexpr long long kClocks = 2'000'000;
  cudaStream_t streams[2];
  for (cudaStream_t& stream : streams) cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  struct Kind {
    const char* name;
    bool cooperative;
    uint32_t cluster;
  };
  for (const Kind kind :
       {Kind{"plain", false, 1}, Kind{"cooperative", true, 1}, Kind{"clusters", false, 8}}) {
    if (kind.cluster > 1 && properties.major < 9) continue;
    for (const uint32_t blocks : {8u, 32u, multiprocessors / 2}) {
      LaunchConfig config;
      config.cluster = kind.cluster;
      config.grid.x = blocks / kind.cluster * kind.cluster;
      config.threads = 256;
      // More than half of a multiprocessor's: one block on each.
      config.shared_bytes = properties.sharedMemPerMultiprocessor / 2 + 1024;
      config.cooperative = kind.cooperative;
      if (config.grid.x == 0) continue;
      std::vector<float> one, two;
      const size_t errors_before = errors.size();
      for (int i = 0; i <= kLaunches && errors.size() == errors_before; ++i) {
        const float alone = run_launches(config, streams, false, kClocks);
        const float together = run_launches(config, streams, true, kClocks);
        if (i == 0) continue;
        one.push_back(alone);
        two.push_back(together);
      }
      if (errors.size() != errors_before) break;
      print_line(format(R"({"what": "two launches over one", "kind": "%s", "blocks_each": %u, )"
                        R"("milliseconds_one": %.4f, "milliseconds_two": %.4f, "ratio": %.3f})",
                        kind.name, config.grid.x, median(one), median(two),
                        median(two) / median(one)));
    }
  }
  for (const cudaStream_t stream : streams) cudaStreamDestroy(stream);
}

__global__ void nothing() {}

// What a host thread takes to enqueue a kernel, behind others that the device has not begun.
void measure_enqueueing() {
  constexpr int kKernels = 200;
  const LaunchConfig config;
  std::vector<double> nanoseconds;
  bool well = true;
  for (int i = 0; i <= kLaunches && well; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    for (int j = 0; j < kKernels && well; ++j) well = good(launch(config, nothing), "a launch");
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - begin;
    well = well && good(cudaDeviceSynchronize(), "launches");
    if (i > 0) nanoseconds.push_back(taken.count() / kKernels);
  }
  if (well)
    print_line(
        format(R"({"what": "host enqueues a kernel", "nanoseconds": %.0f})", median(nanoseconds)));
}

}  // namespace

int main() {
  cudaDeviceProp properties{};
  if (!good(cudaGetDeviceProperties(&properties, 0), "no device")) return 1;
  const uint32_t multiprocessors = static_cast<uint32_t>(properties.multiProcessorCount);
  print_line(
      format(R"({"device": "%s", "multiprocessors": %u})", properties.name, multiprocessors));
  Array<Outcome> outcome(1);
  if (properties.major >= 9) measure_clusters(outcome.data());
  measure_l2(multiprocessors, outcome.data());
  measure_overlap(properties);
  measure_enqueueing();
  return errors.empty() ? 0 : 1;
}
