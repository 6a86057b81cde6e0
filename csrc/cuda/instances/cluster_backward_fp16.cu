// The cluster backward kernel in fp16.
#include "cuda/cluster/backward_launch.cuh"

namespace birnn::cuda::reduce_scatter {

int launch_fp16(const Call& call) { return launch_precision<Fp16>(call); }

}  // namespace birnn::cuda::reduce_scatter
