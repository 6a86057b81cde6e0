// The cluster forward kernel in fp32, products of tf32.
#include "cuda/cluster/forward_launch.cuh"

namespace birnn::cuda::all_gather {

int launch_tf32(const Call& call) { return launch_precision<Tf32>(call); }

}  // namespace birnn::cuda::all_gather
