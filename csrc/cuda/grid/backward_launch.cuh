// Launches the grid backward kernel in one precision; csrc/cuda/instances compiles one file each.
#pragma once

#include "cuda/grid/backward.cuh"
#include "cuda/persistent/launch.h"

namespace birnn::cuda::gather_reduce {

using Call = persistent::CallOf<GridBackwardTiling, Sizes, Arguments>;

int launch_fp16(const Call& call);
int launch_bf16(const Call& call);
int launch_tf32(const Call& call);
int launch_ieee(const Call& call);

template <Cell kCell, class Precision>
int launch_cell(std::integral_constant<Cell, kCell>, Precision, const Call& call) {
  const Sizes& sizes = call.sizes;
  const auto pack = [&] {
    const LaunchConfig config =
        persistent::blocks_of(call, sizes.num_blocks * sizes.num_tiles, kThreads);
    return launch(config, pack_kernel<kCell, Precision>, call.args, call.portion.packs);
  };
  const auto recur = [&](auto index) {
    constexpr Instance kInstance = kInstances[decltype(index)::value];
    if constexpr (!kInstance.is_compiled(kCell, sizeof(typename Precision::Element))) {
      return kNoInstance;  // Sizes does not choose it
    } else {
      LaunchConfig config =
          persistent::blocks_of(call, sizes.num_blocks, kThreads, sizes.shared_bytes);
      config.cooperative = true;
      return launch(config,
                    grid_backward_kernel<kCell, Precision, kInstance.row_tiles, kInstance.chunks,
                                         kInstance.rest, kInstance.pairs>,
                    call.args);
    }
  };
  // Packing also empties the rings of a portion before.
  const bool packs = call.portion.packs || call.portion.again;
  return persistent::launch_packed<kNumInstances>(call, packs, pack, recur);
}

}  // namespace birnn::cuda::gather_reduce
