// The cluster backward kernel in fp32, products to the accuracy of fp32.
#include "cuda/cluster/backward_launch.cuh"

namespace birnn::cuda::reduce_scatter {

int launch_ieee(const Call& call) { return launch_precision<Ieee>(call); }

}  // namespace birnn::cuda::reduce_scatter
