// The grid backward kernel in fp16.
#include "cuda/grid/backward_launch.cuh"

namespace birnn::cuda::gather_reduce {

int launch_fp16(const Call& call) { return launch_precision<Fp16>(call); }

}  // namespace birnn::cuda::gather_reduce
