// Launches the cluster backward kernel in one precision; csrc/cuda/instances compiles one file
// each.
#pragma once

#include "cuda/cluster/backward.cuh"
#include "cuda/persistent/instances.h"

namespace birnn::cuda::reduce_scatter {

struct Call {
  const RecurrenceShape& shape;
  const Tiling& tiling;
  Arguments args;
  void* workspace;
  void* stream;
  const Portion& portion;
};

int launch_fp16(const Call& call);
int launch_bf16(const Call& call);
int launch_tf32(const Call& call);
int launch_ieee(const Call& call);

template <Cell kCell, class Precision>
int launch_cell(const Call& call, const Sizes& sizes) {
  const int cluster = call.tiling.cluster_size;
  LaunchConfig pack;
  pack.threads = kThreads;
  pack.grid.x = static_cast<uint32_t>(cluster) * sizes.num_tiles;
  pack.stream = call.stream;
  Status status = kSuccess;
  if (call.portion.packs)
    status = launch(pack, pack_weights_kernel<kCell, Precision>, call.args,
                    static_cast<Bits128*>(call.workspace), cluster);
  if (status != kSuccess || !call.portion.recurs) return static_cast<int>(status);

  LaunchConfig config;
  config.threads = kThreads;
  config.grid.x = static_cast<uint32_t>(sizes.num_clusters * cluster);
  config.cluster = static_cast<uint32_t>(cluster);
  config.shared_bytes = static_cast<size_t>(sizes.shared_bytes);
  config.stream = call.stream;
  int result = 0;
  const auto launch_if_chosen = [&](auto index) {
    constexpr Instance kInstance = kInstances[decltype(index)::value];
    if (sizes.instance != index) return;
    result = static_cast<int>(launch(config,
                                     cluster_backward_kernel<kCell, Precision, kInstance.row_tiles,
                                                             kInstance.chunks, kInstance.pairs>,
                                     call.args));
  };
  for_each_index<kNumInstances>(launch_if_chosen);
  return result;
}

// Sizes has found an instance.
template <class Precision>
int launch_precision(const Call& call) {
  const Sizes sizes(call.shape, call.tiling);
  return visit_cell(call.shape.cell, [&](auto cell) {
    return launch_cell<decltype(cell)::value, Precision>(call, sizes);
  });
}

}  // namespace birnn::cuda::reduce_scatter
