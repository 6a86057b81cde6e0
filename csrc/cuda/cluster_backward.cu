// The cluster backward kernel, the host side: what a call is made of, and in which precision.
#include <algorithm>

#include "cluster_backward_launch.cuh"
#include "recurrence_cuda.h"

namespace birnn::cuda {

using namespace reduce_scatter;

namespace {

// Whether every pair of units is one aligned word, in every array of `bytes` an element.
bool is_paired(const RecurrenceShape& shape, const BackwardDirection& dir, const void* first_dgates,
               int64_t bytes) {
  if (shape.hidden_size % 2 != 0) return false;
  for (const void* const array : {dir.hx, dir.cx, dir.output, dir.reserve, dir.dy,
                                  static_cast<const void*>(dir.dgates), first_dgates})
    if (reinterpret_cast<uintptr_t>(array) % (2 * bytes) != 0) return false;
  for (const int64_t stride :
       {dir.output_stride, dir.reserve_stride, dir.dy_stride, dir.dgates_stride})
    if (stride % 2 != 0) return false;
  return true;
}

}  // namespace

int64_t cluster_backward_workspace(const RecurrenceShape& shape,
                                   const ClusterBackwardTiling& tiling) {
  return Sizes(shape, tiling).workspace_bytes;
}

int cluster_backward(const RecurrenceShape& shape, const int64_t* lengths,
                     const BackwardDirection& direction, void* first_dgates, GemmCompute compute,
                     const ClusterBackwardTiling& tiling, void* workspace, void* stream) {
  const Sizes sizes(shape, tiling);
  const int64_t largest_stride = std::max({direction.output_stride, direction.reserve_stride,
                                           direction.dy_stride, direction.dgates_stride});
  if (sizes.instance < 0 || largest_stride > INT32_MAX) return kNoInstance;

  Call call{shape, tiling, {}, workspace, stream};
  Arguments& args = call.args;
  args.dir = direction;
  args.lengths = lengths;
  args.first_dgates = first_dgates;
  args.fragments = static_cast<const Bits128*>(workspace);
  args.seq_len = static_cast<int>(shape.seq_len);
  args.batch_size = static_cast<int>(shape.batch_size);
  args.hidden_size = static_cast<int>(shape.hidden_size);
  args.units = sizes.units;
  args.tile_batch = sizes.tile_batch;
  args.num_tiles = sizes.num_tiles;
  args.num_chunks = sizes.num_chunks;
  args.pitch = sizes.pitch;
  args.output_stride = static_cast<int>(direction.output_stride);
  args.reserve_stride = static_cast<int>(direction.reserve_stride);
  args.dy_stride = static_cast<int>(direction.dy_stride);
  args.dgates_stride = static_cast<int>(direction.dgates_stride);
  switch (shape.element) {
    case Element::kFloat16:
      args.paired = is_paired(shape, direction, first_dgates, 2);
      return launch_fp16(call);
    case Element::kBFloat16:
      args.paired = is_paired(shape, direction, first_dgates, 2);
      return launch_bf16(call);
    default:
      args.paired = is_paired(shape, direction, first_dgates, 4);
      return compute == GemmCompute::kTf32 ? launch_tf32(call) : launch_ieee(call);
  }
}

}  // namespace birnn::cuda
