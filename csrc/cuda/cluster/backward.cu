// The cluster backward kernel, the host side: what a call is made of, and in which precision.
#include "cuda/cluster/backward_launch.cuh"
#include "cuda/recurrence_cuda.h"

namespace birnn::cuda {

using namespace reduce_scatter;

int64_t cluster_backward_workspace(const RecurrenceShape& shape,
                                   const ClusterBackwardTiling& tiling) {
  return Sizes(shape, tiling).workspace_bytes;
}

Residency cluster_backward_residency(const RecurrenceShape& shape, GemmCompute compute,
                                     const ClusterBackwardTiling& tiling) {
  return persistent::ask<Call, Sizes>(shape, compute, tiling);
}

int cluster_backward(const RecurrenceShape& shape, const int64_t* lengths,
                     const BackwardDirection& direction, const Regularisers& regularisers,
                     void* first_dgates, GemmCompute compute, const ClusterBackwardTiling& tiling,
                     void* workspace, void* stream, const Portion& portion) {
  const Sizes sizes(shape, tiling);
  if (sizes.instance < 0 || !fits_32_bits(direction)) return kNoInstance;

  Call call{shape, tiling, sizes, {}, workspace, stream, portion};
  Arguments& args = call.args;
  char* const bias_sums = static_cast<char*>(workspace) + sizes.fragment_bytes;
  args.of = backward_arguments(shape, lengths, direction, regularisers, first_dgates, bias_sums,
                               portion.again, bias_sums + sizes.bias_bytes);
  args.fragments = static_cast<const Bits128*>(workspace);
  args.units = sizes.units;
  args.tile_batch = sizes.tile_batch;
  args.num_tiles = sizes.num_tiles;
  args.num_chunks = sizes.num_chunks;
  args.pitch = sizes.pitch;
  args.num_clusters = static_cast<int>(sizes.num_clusters);
  return persistent::launch_in_precision(compute, call);
}

}  // namespace birnn::cuda
