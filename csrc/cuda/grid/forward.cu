// The grid forward kernel, the host side: what a call is made of, and in which precision.
#include <algorithm>

#include "cuda/grid/forward_launch.cuh"
#include "cuda/recurrence_cuda.h"

namespace birnn::cuda {

using namespace grid_gather;

int64_t grid_forward_workspace(const RecurrenceShape& shape, const GridForwardTiling& tiling,
                               int num_directions) {
  return Sizes(shape, tiling, num_directions).workspace_bytes;
}

int grid_forward(const RecurrenceShape& shape, const int64_t* lengths,
                 const ForwardDirection* directions, const Regularisers* regularisers,
                 int num_directions, bool save_reserve, GemmCompute compute,
                 const GridForwardTiling& tiling, void* workspace, void* stream,
                 const Portion& portion) {
  const Sizes sizes(shape, tiling, num_directions);
  if (sizes.instance < 0) return kNoInstance;
  char* const fragments = static_cast<char*>(workspace) + sizes.ring_bytes;
  Call call{shape, tiling, sizes, {}, fragments, stream, portion};
  Arguments& args = call.args;
  for (int d = 0; d < num_directions; ++d) {
    args.dirs[d] = directions[d];
    if (directions[d].resets)
      args.resets[d] =
          reinterpret_cast<uint32_t*>(fragments + sizes.fragment_bytes + d * reset_bytes(shape));
    if (regularisers) args.recurrent_masks[d] = regularisers[d].recurrent_mask;
    if (std::max(directions[d].gates_stride, directions[d].output_stride) > INT32_MAX)
      return kNoInstance;
  }
  args.lengths = lengths;
  args.ring = static_cast<WordPair*>(workspace);
  args.fragments = reinterpret_cast<const Bits128*>(fragments);
  args.seq_len = static_cast<int>(shape.seq_len);
  args.batch_size = static_cast<int>(shape.batch_size);
  args.hidden_size = static_cast<int>(shape.hidden_size);
  args.num_directions = num_directions;
  args.num_blocks = tiling.num_blocks;
  args.units = sizes.units;
  args.num_tiles = sizes.num_tiles;
  args.num_chunks = sizes.num_chunks;
  args.num_groups = static_cast<int>(sizes.num_groups);
  args.teams = static_cast<int>(sizes.teams_of(tiling));
  args.slot_pairs = static_cast<int>(sizes.slot_pairs);
  args.save_reserve = save_reserve;
  return persistent::launch_in_precision(compute, call);
}

}  // namespace birnn::cuda
