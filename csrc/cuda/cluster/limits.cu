#include "cuda/cluster/limits.h"

#include "cuda/cluster/forward_launch.cuh"

namespace birnn::cuda {

std::vector<int> resident_clusters(int most, int64_t shared_bytes) {
  constexpr int kClusterCapability = 90;
  LaunchConfig config;
  config.threads = all_gather::kThreads;
  config.shared_bytes = static_cast<size_t>(shared_bytes);
  std::vector<int> fit;
  for (int size = 1; size <= most; ++size) {
    config.grid.x = config.cluster = static_cast<uint32_t>(size);
    const all_gather::Residency found = all_gather::residency_fp16(config);
    const bool usable =
        found.status == kSuccess && (size == 1 || found.built_for >= kClusterCapability);
    fit.push_back(usable ? found.blocks / size : 0);
  }
  while (fit.size() > 1 && fit.back() == 0) fit.pop_back();
  return fit;
}

}  // namespace birnn::cuda
