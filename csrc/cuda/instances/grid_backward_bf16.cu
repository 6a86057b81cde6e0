// The grid backward kernel in bf16.
#include "cuda/grid/backward_launch.cuh"

namespace birnn::cuda::gather_reduce {

int launch_bf16(const Call& call) { return launch_precision<Bf16>(call); }

}  // namespace birnn::cuda::gather_reduce
