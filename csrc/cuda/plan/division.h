// The ways to run a pass on a device: how a shape can be divided among the blocks of each kernel,
// what each way asks of the device, and what it is estimated to cost. The plan (plan.h) takes one
// of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/plan/request.h"

namespace birnn::cuda {

cost::Format format_of(const PlanRequest& request);

// What a way of dividing a problem asks of a device.
struct Fit {
  bool fits = false;   // but for clusters, of which the driver decides (residency.h)
  int instance = -1;   // of a cluster kernel
  int64_t groups = 0;  // of blocks, of one direction
  int64_t ctas = 0;    // of a launch, of one direction
  int64_t threads = 0, shared_bytes = 0;
  int64_t launches = 0, workspace_bytes = 0;
  int64_t chain = 0;          // of mma in a warp, each adding to the sum of the one before
  double exchange_bytes = 0;  // into a block, a step; 0: as the cost model counts
  int hops = 1;               // of the exchange, one after the other
  cost::Work work;            // of a warp of a cluster
};

Fit fit_of(const PlanRequest& request, Pass pass, const Choice& choice);

// Every way to run a pass by one kernel. The estimate in it is the least that it can cost: as if
// all its clusters ran at once, each on multiprocessors of its own. So the driver need not be asked
// of those that cost too much even then.
struct Candidate {
  Choice choice;
  Fit fit;
  int64_t ctas = 0;  // of all directions
};
std::vector<Candidate> candidates(const PlanRequest& request, Pass pass, Kernel kernel,
                                  const cost::Constants& constants);

// Finds out how many of its clusters run at once, and corrects its estimate. Returns why it does
// not run at all, or an empty string.
std::string settle(const PlanRequest& request, Pass pass, const cost::Constants& constants,
                   Candidate& candidate);

}  // namespace birnn::cuda
