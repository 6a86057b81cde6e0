// The grid forward kernel in fp32, products to the accuracy of fp32.
#include "cuda/grid/forward_launch.cuh"

namespace birnn::cuda::grid_gather {

int launch_ieee(const Call& call) { return launch_precision<Ieee>(call); }

}  // namespace birnn::cuda::grid_gather
