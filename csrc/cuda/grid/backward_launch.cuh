// Launches the grid backward kernel in one precision; csrc/cuda/instances compiles one file each.
#pragma once

#include "cuda/grid/backward.cuh"
#include "cuda/persistent/instances.h"

namespace birnn::cuda::gather_reduce {

struct Call {
  Cell cell;
  const Sizes& sizes;
  Arguments args;
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
  if (call.portion.packs || call.portion.again)
    status = launch(pack, pack_kernel<kCell, Precision>, call.args, call.portion.packs);
  if (status != kSuccess || !call.portion.recurs) return static_cast<int>(status);

  LaunchConfig config;
  config.threads = kThreads;
  config.grid.x = static_cast<uint32_t>(sizes.num_blocks);
  config.shared_bytes = static_cast<size_t>(sizes.shared_bytes);
  config.cooperative = true;
  config.stream = call.stream;
  int result = 0;
  for_each_index<kNumInstances>([&](auto index) {
    constexpr Instance kInstance = kInstances[decltype(index)::value];
    if constexpr (sizeof(typename Precision::Element) <= kInstance.element_bytes) {
      if (sizes.instance != index) return;
      result = static_cast<int>(
          launch(config,
                 grid_backward_kernel<kCell, Precision, kInstance.row_tiles, kInstance.chunks,
                                      kInstance.rest, kInstance.pairs>,
                 call.args));
    }
  });
  return result;
}

template <class Precision>
int launch_precision(const Call& call) {
  return visit_cell(call.cell,
                    [&](auto cell) { return launch_cell<decltype(cell)::value, Precision>(call); });
}

}  // namespace birnn::cuda::gather_reduce
