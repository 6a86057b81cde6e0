// The ways to run a pass on a device: how a shape can be divided among the blocks of each kernel,
// what each way asks of the device, and what it is estimated to cost. The plan (plan.h) takes one
// of them.
#pragma once

#include <cstdint>
#include <functional>

#include "cuda/plan/request.h"

namespace birnn::cuda {

cost::Format format_of(const PlanRequest& request);

// What a way of dividing a problem asks of a device.
struct Fit {
  bool fits = false;
  int64_t groups = 0;  // of blocks, of one direction
  int64_t ctas = 0;    // of a launch, of one direction
  int64_t threads = 0, shared_bytes = 0;
  int64_t launches = 0, workspace_bytes = 0;
  int64_t chain = 0;          // of mma in a warp, each adding to the sum of the one before
  double exchange_bytes = 0;  // into a block, a step; 0: as the cost model counts
  int hops = 1;               // of the exchange, one after the other
  cost::Work work;            // of a warp of a cluster
};

// Clusters of a size that a device holds at once, its blocks having a multiprocessor each: as the
// driver says, or else by what is published of the H100.
int64_t resident_clusters(const DeviceLimits& device, int size);
// How many blocks of a cluster kernel a multiprocessor holds.
int64_t blocks_of_multiprocessor(const DeviceLimits& device, const Fit& fit);

Fit fit_of(const PlanRequest& request, Pass pass, const Choice& choice);

// Calls body(choice, the multiprocessors that it keeps busy) for every way to run a pass by one
// kernel, its estimate in it.
using ChoiceBody = std::function<void(const Choice& choice, int64_t ctas)>;
void for_each_choice(const PlanRequest& request, Pass pass, Kernel kernel,
                     const cost::Constants& constants, const ChoiceBody& body);

}  // namespace birnn::cuda
