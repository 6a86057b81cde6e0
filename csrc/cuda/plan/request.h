// What the plan and the ways to divide a pass both speak of: a device, a choice, and what is asked.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/plan/cost_model.h"
#include "cuda/recurrence_cuda.h"
#include "recurrence.h"

namespace birnn::cuda {

using cost::Pass;

struct PlanRequest;
struct Choice;
// Asks the driver of request.device, for a division of a block or a cluster that fits its limits.
using AskDriver = Residency (*)(const PlanRequest& request, Pass pass, const Choice& choice);

// What a kernel can ask of a device.
struct DeviceLimits {
  std::string name;
  int compute_capability = 0;          // 90 for 9.0
  int num_multiprocessors = 0;         // SMs
  int64_t shared_bytes_per_block = 0;  // the most that a block can opt in to
  int max_cluster_size = 1;            // blocks, the non-portable size included; 1: no clusters
  int64_t memory_bytes = 0;
  // Of a device that is here: its number, and how its driver is asked. Null: a published table
  // stands in (residency.h).
  int index = -1;
  AskDriver ask_driver = nullptr;
};

// By public data sheets; memory as sold, a GB being 10^9 bytes.
const std::vector<DeviceLimits>& known_devices();

// The largest cluster that a chip of this compute capability can be asked for.
int max_cluster_size(int compute_capability);

// block and cluster: cluster_forward and cluster_backward, by one block or by 2 to 16. grid:
// grid_forward and grid_backward.
enum class Kernel : int { kBlock, kCluster, kGrid, kStepwise };
constexpr Kernel kKernels[] = {Kernel::kBlock, Kernel::kCluster, Kernel::kGrid, Kernel::kStepwise};
const char* name_of(Kernel kernel);
std::optional<Kernel> kernel_of(const std::string& name);
std::string no_such_kernel(const std::string& name);      // an error: which there are
std::string join(const std::vector<std::string>& words);  // by commas

// A kernel, and how it divides the problem.
struct Choice {
  Kernel kernel = Kernel::kStepwise;
  int blocks = 1;          // that share a direction's hidden units
  int batch_tiles = 1;     // of 8 sequences, to each such group of blocks
  int k_split = 1;         // warps that share the columns of W_hh (block and cluster, forward)
  int groups_at_once = 1;  // groups of a direction that run side by side (grid, forward)
  double microseconds_per_step = 0;  // by the cost model, all directions
  // Of block and cluster: how many of its clusters run at once, and of them each on multiprocessors
  // of its own (residency.h).
  int64_t resident_clusters = 0, clusters_apart = 0;
};
// (blocks, batch_tiles, k_split): (resident_clusters, clusters_apart)
using Answers = std::map<std::tuple<int, int, int>, std::pair<int64_t, int64_t>>;

struct PlanRequest {
  RecurrenceShape shape;
  int64_t input_size = 0;
  int num_directions = 2;
  bool ieee = true;  // fp32 products; false: tf32
  bool training = true;
  bool has_lengths = false;  // sequences of a batch end at different steps
  bool captured =
      false;  // in a CUDA graph, whose replays the host does not enqueue launch by launch
  DeviceLimits device;
  std::string kernel;  // this one and no other, by name; empty: the best
  // These, divided in just this way, whatever `kernel` and the estimates say: for tuning.
  std::optional<Choice> forward, backward;
  // What a driver said of all divisions of one pass of this shape, elsewhere: others do not run.
  std::optional<Answers> answers;
};

}  // namespace birnn::cuda
