// The cluster forward kernel in fp16.
#include "cuda/cluster/forward_launch.cuh"

namespace birnn::cuda::all_gather {

int launch_fp16(const Call& call) { return launch_precision<Fp16>(call); }

Residency residency_fp16(const LaunchConfig& config) {
  constexpr Instance kInstance = kInstances[0];
  const auto kernel =
      cluster_forward_kernel<Cell::kTanh, Fp16, kInstance.chunks(Cell::kTanh, sizeof(Half)),
                             kInstance.batch_tiles, kInstance.shared_weights>;
  Residency residency{};
  residency.status = code_capability(kernel, &residency.built_for);
  if (residency.status == kSuccess)
    residency.status = max_resident_blocks(config, kernel, &residency.blocks);
  return residency;
}

}  // namespace birnn::cuda::all_gather
