// The cluster forward kernel in fp32, products to the accuracy of fp32.
#include "cuda/cluster/forward_launch.cuh"

namespace birnn::cuda::all_gather {

int launch_ieee(const Call& call) { return launch_precision<Ieee>(call); }

}  // namespace birnn::cuda::all_gather
