// Launches the grid forward kernel in one precision; csrc/cuda/instances compiles one file each.
#pragma once

#include "cuda/grid/forward.cuh"
#include "cuda/persistent/instances.h"

namespace birnn::cuda::grid_gather {

struct Call {
  Cell cell;
  const Sizes& sizes;
  int batch_tiles;
  Arguments args;
  void* fragments;  // that the packing kernel writes
  void* stream;
  const Portion& portion;
};

int launch_fp16(const Call& call);
int launch_bf16(const Call& call);
int launch_tf32(const Call& call);
int launch_ieee(const Call& call);

template <Cell kCell, class Precision>
int launch_cell(const Call& call) {
  const Sizes& sizes = call.sizes;
  LaunchConfig pack;
  pack.threads = kThreads;
  pack.grid.x = static_cast<uint32_t>(sizes.num_blocks * sizes.num_tiles);
  pack.stream = call.stream;
  Status status = kSuccess;
  if (call.portion.packs)
    status = launch(pack, pack_kernel<kCell, Precision>, call.args,
                    static_cast<Bits128*>(call.fragments), sizes.ring_pairs, call.batch_tiles);
  if (status != kSuccess || !call.portion.recurs) return static_cast<int>(status);

  LaunchConfig config;
  config.threads = kThreads;
  config.grid.x = static_cast<uint32_t>(sizes.num_blocks);
  config.cooperative = true;
  config.shared_bytes = static_cast<size_t>(sizes.shared_bytes);
  config.stream = call.stream;
  int result = 0;
  const auto launch_if_chosen = [&](auto index) {
    constexpr Instance kInstance = kInstances[decltype(index)::value];
    constexpr int kBytes = sizeof(typename Precision::Element);
    if constexpr (shared_bytes_of(kInstance, kBytes) <= kMaxSharedBytes) {
      if (sizes.instance != index) return;
      result = static_cast<int>(
          launch(config,
                 grid_forward_kernel<kCell, Precision, kInstance.row_tiles, kInstance.chunks,
                                     kInstance.held(kBytes), kInstance.asked, kInstance.batch_tiles,
                                     kInstance.cells>,
                 call.args));
    }
  };
  for_each_index<kNumInstances>(launch_if_chosen);
  return result;
}

// Sizes has found an instance.
template <class Precision>
int launch_precision(const Call& call) {
  return visit_cell(call.cell,
                    [&](auto cell) { return launch_cell<decltype(cell)::value, Precision>(call); });
}

}  // namespace birnn::cuda::grid_gather
