// How many clusters of a division run at once on a device: what its driver says of the very launch,
// asked once for each, or, where there is no such device, by what is published of the H100.
#pragma once

#include <string>

#include "cuda/plan/request.h"

namespace birnn::cuda {

struct Fit;

// Where the answers come from: "asked of the driver" or "published table".
const char* residency_source(const PlanRequest& request);

// Fills in the choice's resident_clusters and clusters_apart. Returns why there are none, or an
// empty string. The choice is of a block or a cluster and fits otherwise.
std::string find_residency(const PlanRequest& request, Pass pass, const Fit& fit, Choice& choice);

}  // namespace birnn::cuda
