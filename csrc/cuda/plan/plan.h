// Which kernel a problem runs on a GPU, with what launches and memory, and why. Plain host code
// without a CUDA header: it answers for any device on any machine, and is built everywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cuda/plan/cost_model.h"
#include "recurrence.h"

namespace birnn::cuda {

using cost::Pass;

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

// The largest cluster that a chip of this compute capability can be asked for.
int max_cluster_size(int compute_capability);

// block and cluster: cluster_forward and cluster_backward, by one block or by 2 to 16. grid:
// grid_forward and grid_backward.
enum class Kernel : int { kBlock, kCluster, kGrid, kStepwise };
const char* name_of(Kernel kernel);
std::optional<Kernel> kernel_of(const std::string& name);
std::string no_such_kernel(const std::string& name);  // an error: which there are

// A kernel, and how it divides the problem.
struct Choice {
  Kernel kernel = Kernel::kStepwise;
  int blocks = 1;          // that share a direction's hidden units
  int batch_tiles = 1;     // of 8 sequences, to each such group of blocks
  int k_split = 1;         // warps that share the columns of W_hh (block and cluster, forward)
  int groups_at_once = 1;  // groups of a direction that run side by side (grid, forward)
  double microseconds_per_step = 0;  // by the cost model, all directions
};

struct PlanRequest {
  RecurrenceShape shape;
  int64_t input_size = 0;
  int num_directions = 2;
  bool ieee = true;  // fp32 products; false: tf32
  bool training = true;
  bool has_lengths = false;               // sequences of a batch end at different steps
  bool has_cell_state_gradients = false;  // of each step's c: only stepwise takes them
  DeviceLimits device;
  std::string kernel;  // this one and no other, by name; empty: the best
  // These, divided in just this way, whatever `kernel` and the estimates say: for tuning.
  std::optional<Choice> forward, backward;
};

// The kernel of one pass. The kernel that is asked for must take the shape: else `error` says what
// does.
struct ChoiceResult {
  Choice choice;
  std::string error;
};
ChoiceResult choose(const PlanRequest& request, Pass pass);

// Every way to run a pass on the device, with its estimate by these constants, and which of them
// the plan takes then.
struct Divisions {
  std::string error;  // empty, or why nothing runs
  std::vector<Choice> choices;
  int chosen = -1;
};
Divisions divisions(const PlanRequest& request, Pass pass, const cost::Constants& constants = {});

// Into how many parts the steps of a backward pass are divided, for the weight gradients of one to
// overlap with the recurrence of the next.
int backward_parts(const PlanRequest& request, const Choice& choice);

// What every call of the process must do; for tests and benchmarks.
struct Forced {
  std::string kernel;                       // by name; empty: the best
  int backward_parts = 0;                   // 0: as the plan says
  std::optional<Choice> forward, backward;  // as in PlanRequest
};
Forced forced();
std::string force(const Forced& forced);  // an error, or empty

struct PassPlan {
  Choice choice;
  int parts = 1;  // backward_parts, 1 forward
  std::string reason;
  int64_t ctas = 0;             // blocks of a launch, of one direction
  int64_t threads = 0;          // of a block
  int64_t launches = 0;         // of one direction: kernels and products
  int64_t workspace_bytes = 0;  // all directions
};

struct Plan {
  std::string error;           // empty, or why nothing runs, and what would
  PassPlan forward, backward;  // backward: in training only
  int64_t reserve_bytes = 0;   // all directions; what backward needs, 0 without training
};

Plan plan(const PlanRequest& request);

}  // namespace birnn::cuda
