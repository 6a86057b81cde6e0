// The cluster forward kernel, the host side: what a call is made of, and in which precision.
#include <algorithm>

#include "cuda/cluster/forward_launch.cuh"
#include "cuda/recurrence_cuda.h"

namespace birnn::cuda {

using namespace all_gather;

namespace {

// The largest of 16, 4 and one element's bytes at which every group's part of every row begins and
// ends: then copies of that many bytes stay within it.
int64_t access_bytes(const RecurrenceShape& shape, const void* array, int64_t stride,
                     int64_t bytes) {
  for (const int64_t access : {16, 4}) {
    const bool aligned = reinterpret_cast<uintptr_t>(array) % access == 0 &&
                         stride * bytes % access == 0 && shape.hidden_size * bytes % access == 0;
    if (aligned) return access;
  }
  return bytes;
}

}  // namespace

int64_t cluster_forward_workspace(const RecurrenceShape& shape,
                                  const ClusterForwardTiling& tiling) {
  return Sizes(shape, tiling).workspace_bytes;
}

Residency cluster_forward_residency(const RecurrenceShape& shape, GemmCompute compute,
                                    const ClusterForwardTiling& tiling) {
  return persistent::ask<Call, Sizes>(shape, compute, tiling);
}

int cluster_forward(const RecurrenceShape& shape, const int64_t* lengths,
                    const ForwardDirection& direction, const Regularisers& regularisers,
                    bool save_reserve, GemmCompute compute, const ClusterForwardTiling& tiling,
                    void* workspace, void* stream, const Portion& portion) {
  const int64_t bytes = element_bytes(shape.element);
  const int64_t gates_access = access_bytes(shape, direction.gates, direction.gates_stride, bytes);
  const int64_t output_access =
      access_bytes(shape, direction.output, direction.output_stride, bytes);
  const Sizes sizes(shape, tiling, gates_access == 16 && output_access == 16);
  const int64_t largest_stride = std::max(direction.gates_stride, direction.output_stride);
  if (sizes.instance < 0 || largest_stride > INT32_MAX) return kNoInstance;

  Call call{shape, tiling, sizes, {}, workspace, stream, portion};
  Arguments& args = call.args;
  args.dir = direction;
  args.lengths = lengths;
  args.fragments = static_cast<const Bits128*>(workspace);
  if (direction.resets)
    args.resets = reinterpret_cast<uint32_t*>(static_cast<char*>(workspace) + sizes.fragment_bytes);
  args.recurrent_mask = regularisers.recurrent_mask;
  args.seq_len = static_cast<int>(shape.seq_len);
  args.batch_size = static_cast<int>(shape.batch_size);
  args.hidden_size = static_cast<int>(shape.hidden_size);
  args.num_groups = sizes.num_groups;
  args.groups = sizes.groups;
  args.k_split = tiling.k_split;
  args.num_chunks = sizes.num_chunks;
  args.warp_chunks = sizes.warp_chunks;
  args.shared_chunks = sizes.shared_chunks;
  args.pitch = sizes.pitch;
  args.gates_stride = static_cast<int>(direction.gates_stride);
  args.output_stride = static_cast<int>(direction.output_stride);
  args.gates_access = static_cast<int>(gates_access);
  args.output_access = static_cast<int>(output_access);
  args.save_reserve = save_reserve;
  return persistent::launch_in_precision(compute, call);
}

}  // namespace birnn::cuda
