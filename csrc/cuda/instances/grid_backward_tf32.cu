// The grid backward kernel in tf32.
#include "cuda/grid/backward_launch.cuh"

namespace birnn::cuda::gather_reduce {

int launch_tf32(const Call& call) { return launch_precision<Tf32>(call); }

}  // namespace birnn::cuda::gather_reduce
