// The cluster forward kernel in fp16.
#include "cuda/cluster/forward_launch.cuh"

namespace birnn::cuda::all_gather {

int launch_fp16(const Call& call) { return launch_precision<Fp16>(call); }

}  // namespace birnn::cuda::all_gather
