// Launches the grid forward kernel in one precision; csrc/cuda/instances compiles one file each.
#pragma once

#include "cuda/grid/forward.cuh"
#include "cuda/persistent/launch.h"

namespace birnn::cuda::grid_gather {

using Call = persistent::CallOf<GridForwardTiling, Sizes, Arguments>;

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
    return launch(config, pack_kernel<kCell, Precision>, call.args,
                  static_cast<Bits128*>(call.fragments), sizes.ring_pairs, call.tiling.batch_tiles);
  };
  const auto recur = [&](auto index) {
    constexpr Instance kInstance = kInstances[decltype(index)::value];
    constexpr int kBytes = sizeof(typename Precision::Element);
    if constexpr (!kInstance.is_compiled(kCell, kBytes)) {
      return kNoInstance;  // Sizes does not choose it
    } else {
      LaunchConfig config =
          persistent::blocks_of(call, sizes.num_blocks, kThreads, sizes.shared_bytes);
      config.cooperative = true;
      return launch(config,
                    grid_forward_kernel<kCell, Precision, kInstance.row_tiles, kInstance.chunks,
                                        kInstance.held(kBytes), kInstance.asked,
                                        kInstance.batch_tiles, kInstance.cells>,
                    call.args);
    }
  };
  return persistent::launch_packed<kNumInstances>(call, call.portion.packs, pack, recur);
}

}  // namespace birnn::cuda::grid_gather
