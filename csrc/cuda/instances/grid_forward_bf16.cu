// The grid forward kernel in bf16.
#include "cuda/grid/forward_launch.cuh"

namespace birnn::cuda::grid_gather {

int launch_bf16(const Call& call) { return launch_precision<Bf16>(call); }

}  // namespace birnn::cuda::grid_gather
