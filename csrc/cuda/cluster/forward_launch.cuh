// Launches the cluster forward kernel in one precision; csrc/cuda/instances compiles one file each.
#pragma once

#include "cuda/cluster/forward.cuh"
#include "cuda/persistent/instances.h"

namespace birnn::cuda::all_gather {

struct Call {
  const RecurrenceShape& shape;
  const Tiling& tiling;
  const Sizes& sizes;
  Arguments args;
  void* workspace;
  void* stream;
  const Portion& portion;
};

int launch_fp16(const Call& call);
int launch_bf16(const Call& call);
int launch_tf32(const Call& call);
int launch_ieee(const Call& call);

// What the driver says of one instance of the kernel, launched so.
struct Residency {
  Status status;
  int blocks;     // that the current device holds at once
  int built_for;  // compute capability of the code that would run, 90 for 9.0
};
Residency residency_fp16(const LaunchConfig& config);

template <Cell kCell, class Precision>
int launch_cell(const Call& call) {
  const Sizes& sizes = call.sizes;
  LaunchConfig pack;
  pack.threads = kThreads;
  pack.grid.x = static_cast<uint32_t>(sizes.num_groups) * kRowTiles<kCell>;
  pack.stream = call.stream;
  Status status = kSuccess;
  if (call.portion.packs)
    status = launch(pack, pack_weights_kernel<kCell, Precision>, call.args,
                    static_cast<Bits128*>(call.workspace));
  if (status != kSuccess || !call.portion.recurs) return static_cast<int>(status);

  LaunchConfig config;
  config.threads = static_cast<uint32_t>(sizes.threads);
  config.grid.x = static_cast<uint32_t>(sizes.num_clusters * call.tiling.cluster_size);
  config.cluster = static_cast<uint32_t>(call.tiling.cluster_size);
  config.shared_bytes = static_cast<size_t>(sizes.shared_bytes);
  config.stream = call.stream;
  int result = 0;
  const auto launch_if_chosen = [&](auto index) {
    constexpr Instance kInstance = kInstances[decltype(index)::value];
    constexpr int kBytes = sizeof(typename Precision::Element);
    if (sizes.instance != index) return;
    result = static_cast<int>(
        launch(config,
               cluster_forward_kernel<kCell, Precision, kInstance.chunks(kCell, kBytes),
                                      kInstance.batch_tiles, kInstance.shared_weights>,
               call.args));
  };
  for_each_index<kNumInstances>(launch_if_chosen);
  return result;
}

// Sizes has found an instance.
template <class Precision>
int launch_precision(const Call& call) {
  return visit_cell(call.shape.cell,
                    [&](auto cell) { return launch_cell<decltype(cell)::value, Precision>(call); });
}

}  // namespace birnn::cuda::all_gather
