// The grid backward kernel, the host side: what a call is made of, and in which precision.
#include "cuda/grid/backward_launch.cuh"
#include "cuda/recurrence_cuda.h"

namespace birnn::cuda {

using namespace gather_reduce;

int64_t grid_backward_workspace(const RecurrenceShape& shape, const GridBackwardTiling& tiling,
                                int num_directions) {
  return Sizes(shape, tiling, num_directions).workspace_bytes;
}

int grid_backward(const RecurrenceShape& shape, const int64_t* lengths,
                  const BackwardDirection* directions, const Regularisers* regularisers,
                  void* const* first_dgates, int num_directions, GemmCompute compute,
                  const GridBackwardTiling& tiling, void* workspace, void* stream,
                  const Portion& portion) {
  const Sizes sizes(shape, tiling, num_directions);
  if (sizes.instance < 0) return kNoInstance;
  Call call{shape, tiling, sizes, {}, workspace, stream, portion};
  Arguments& args = call.args;
  char* const bytes = static_cast<char*>(workspace);
  char* const bias_sums =
      bytes + num_directions * (sizes.fragment_bytes + sizes.gates_bytes + sizes.sums_bytes);
  char* const reset_words = bias_sums + num_directions * sizes.bias_sums_bytes;
  for (int d = 0; d < num_directions; ++d) {
    if (!fits_32_bits(directions[d])) return kNoInstance;
    args.directions[d] = backward_arguments(
        shape, lengths, directions[d], regularisers ? regularisers[d] : Regularisers{},
        first_dgates ? first_dgates[d] : nullptr, bias_sums + d * sizes.bias_sums_bytes,
        portion.again, reset_words + d * reset_bytes(shape));
  }
  args.fragments = reinterpret_cast<Bits128*>(bytes);
  args.gates_ring = reinterpret_cast<WordPair*>(bytes + num_directions * sizes.fragment_bytes);
  args.sums_ring = reinterpret_cast<WordPair*>(
      bytes + num_directions * (sizes.fragment_bytes + sizes.gates_bytes));
  args.num_directions = num_directions;
  args.row_teams = sizes.row_teams;
  args.column_teams = sizes.column_teams;
  args.units = sizes.units;
  args.tile_batch = sizes.tile_batch;
  args.num_tiles = sizes.num_tiles;
  args.num_chunks = sizes.num_chunks;
  args.warp_chunks = sizes.warp_chunks;
  return persistent::launch_in_precision(compute, call);
}

}  // namespace birnn::cuda
