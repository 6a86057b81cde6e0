// Which kernel a problem runs on a GPU, with what launches and memory, and why. Plain host code
// without a CUDA header: it answers for any device on any machine, and is built everywhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../recurrence.h"

namespace birnn::cuda {

// What a kernel can ask of a device.
struct DeviceLimits {
  std::string name;
  int compute_capability = 0;          // 90 for 9.0
  int num_multiprocessors = 0;         // SMs
  int64_t shared_bytes_per_block = 0;  // the most that a block can opt in to
  int max_cluster_size = 1;            // blocks, the non-portable size included; 1: no clusters
  int64_t memory_bytes = 0;
};

// By public data sheets; memory as sold, a GB being 10^9 bytes.
const std::vector<DeviceLimits>& known_devices();

struct PlanRequest {
  RecurrenceShape shape;
  int64_t input_size = 0;
  int num_directions = 2;
  bool ieee = true;  // fp32 products; false: tf32
  bool training = true;
  DeviceLimits device;
  std::string kernel;  // this one and no other; empty: the best
};

struct Plan {
  std::string error;  // empty, or why nothing runs, and what would
  std::string kernel;
  std::string reason;
  int64_t ctas = 0;                                     // blocks of a launch, of one direction
  int64_t threads = 0;                                  // of a block
  int64_t launches_forward = 0, launches_backward = 0;  // one direction: kernels and products
  int64_t workspace_bytes = 0;  // all directions; the larger of forward and backward
  int64_t reserve_bytes = 0;    // all directions; what backward needs, 0 without training
};

Plan plan(const PlanRequest& request);

}  // namespace birnn::cuda
