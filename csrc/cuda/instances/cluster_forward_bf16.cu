// The cluster forward kernel in bf16.
#include "cuda/cluster/forward_launch.cuh"

namespace birnn::cuda::all_gather {

int launch_bf16(const Call& call) { return launch_precision<Bf16>(call); }

}  // namespace birnn::cuda::all_gather
