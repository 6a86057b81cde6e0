// Launches the cluster backward kernel in one precision; csrc/cuda/instances compiles one file
// each.
#pragma once

#include "cuda/cluster/backward.cuh"
#include "cuda/cluster/residency.cuh"
#include "cuda/persistent/launch.h"

namespace birnn::cuda::reduce_scatter {

using Call = persistent::CallOf<Tiling, Sizes, Arguments>;

int launch_fp16(const Call& call);
int launch_bf16(const Call& call);
int launch_tf32(const Call& call);
int launch_ieee(const Call& call);

template <Cell kCell, class Precision>
int launch_cell(std::integral_constant<Cell, kCell>, Precision, const Call& call) {
  const Sizes& sizes = call.sizes;
  const int cluster = call.tiling.cluster_size;
  const auto pack = [&] {
    const LaunchConfig config =
        persistent::blocks_of(call, int64_t{cluster} * sizes.num_tiles, kThreads);
    return launch(config, pack_weights_kernel<kCell, Precision>, call.args,
                  static_cast<Bits128*>(call.fragments), cluster);
  };
  const auto recur = [&](auto index) {
    constexpr Instance kInstance = kInstances[decltype(index)::value];
    if constexpr (!kInstance.is_compiled(kCell, sizeof(typename Precision::Element))) {
      return kNoInstance;  // Sizes does not choose it
    } else {
      LaunchConfig config =
          persistent::blocks_of(call, sizes.num_clusters * cluster, kThreads, sizes.shared_bytes);
      config.cluster = static_cast<uint32_t>(cluster);
      return persistent::launch_or_ask(
          call, config,
          cluster_backward_kernel<kCell, Precision, kInstance.row_tiles, kInstance.chunks,
                                  kInstance.pairs>);
    }
  };
  const int error = persistent::launch_packed<kNumInstances>(call, call.portion.packs, pack, recur);
  const BackwardDirection& dir = call.args.of.dir;
  const bool sums_biases = sizes.num_clusters > 1 && (dir.dbias_ih || dir.dbias_hh);
  if (error != 0 || !call.portion.recurs || !sums_biases) return error;

  const int64_t columns = dgates_blocks(kCell) * call.shape.hidden_size;
  const LaunchConfig sum = persistent::blocks_of(call, ceil_div(columns, kThreads), kThreads);
  return static_cast<int>(
      launch(sum, sum_biases_kernel<kCell, typename Precision::Element>, call.args));
}

}  // namespace birnn::cuda::reduce_scatter
