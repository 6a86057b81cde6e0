// The cluster backward kernel in fp32, products of tf32.
#include "cuda/cluster/backward_launch.cuh"

namespace birnn::cuda::reduce_scatter {

int launch_tf32(const Call& call) { return launch_precision<Tf32>(call); }

}  // namespace birnn::cuda::reduce_scatter
