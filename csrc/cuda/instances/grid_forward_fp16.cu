// The grid forward kernel in fp16.
#include "cuda/grid/forward_launch.cuh"

namespace birnn::cuda::grid_gather {

int launch_fp16(const Call& call) { return launch_precision<Fp16>(call); }

}  // namespace birnn::cuda::grid_gather
