// Launches the cluster forward kernel in one precision; csrc/cuda/instances compiles one file each.
#pragma once

#include "cuda/cluster/forward.cuh"
#include "cuda/cluster/residency.cuh"
#include "cuda/persistent/launch.h"

namespace birnn::cuda::all_gather {

using Call = persistent::CallOf<Tiling, Sizes, Arguments>;

int launch_fp16(const Call& call);
int launch_bf16(const Call& call);
int launch_tf32(const Call& call);
int launch_ieee(const Call& call);

template <Cell kCell, class Precision>
int launch_cell(std::integral_constant<Cell, kCell>, Precision, const Call& call) {
  const Sizes& sizes = call.sizes;
  const auto pack = [&] {
    const LaunchConfig config =
        persistent::blocks_of(call, int64_t{sizes.num_groups} * kRowTiles<kCell>, kThreads);
    return launch(config, pack_weights_kernel<kCell, Precision>, call.args,
                  static_cast<Bits128*>(call.fragments));
  };
  const auto recur = [&](auto index) {
    constexpr Instance kInstance = kInstances[decltype(index)::value];
    constexpr int kBytes = sizeof(typename Precision::Element);
    const int cluster = call.tiling.cluster_size;
    LaunchConfig config = persistent::blocks_of(call, sizes.num_clusters * cluster, sizes.threads,
                                                sizes.shared_bytes);
    config.cluster = static_cast<uint32_t>(cluster);
    return persistent::launch_or_ask(
        call, config,
        cluster_forward_kernel<kCell, Precision, kInstance.chunks(kCell, kBytes),
                               kInstance.batch_tiles, kInstance.shared_weights>);
  };
  return persistent::launch_packed<kNumInstances>(call, call.portion.packs, pack, recur);
}

}  // namespace birnn::cuda::all_gather
