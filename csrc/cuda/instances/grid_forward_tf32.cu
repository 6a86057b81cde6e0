// The grid forward kernel in fp32, products of tf32.
#include "cuda/grid/forward_launch.cuh"

namespace birnn::cuda::grid_gather {

int launch_tf32(const Call& call) { return launch_precision<Tf32>(call); }

}  // namespace birnn::cuda::grid_gather
