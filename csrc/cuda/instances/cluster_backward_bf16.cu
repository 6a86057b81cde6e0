// The cluster backward kernel in bf16.
#include "cuda/cluster/backward_launch.cuh"

namespace birnn::cuda::reduce_scatter {

int launch_bf16(const Call& call) { return launch_precision<Bf16>(call); }

}  // namespace birnn::cuda::reduce_scatter
