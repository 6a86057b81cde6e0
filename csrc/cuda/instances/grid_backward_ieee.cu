// The grid backward kernel in ieee.
#include "cuda/grid/backward_launch.cuh"

namespace birnn::cuda::gather_reduce {

int launch_ieee(const Call& call) { return launch_precision<Ieee>(call); }

}  // namespace birnn::cuda::gather_reduce
