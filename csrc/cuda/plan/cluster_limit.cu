#include "cuda/plan/cluster_limit.h"

#include "cuda/device/device.h"

namespace birnn::cuda {
namespace {

using namespace device;

BIRNN_KERNEL void resident_kernel() {}

}  // namespace

int largest_cluster(int most, int64_t shared_bytes) {
  LaunchConfig config;
  config.threads = 256;
  config.shared_bytes = static_cast<size_t>(shared_bytes);
  for (int size = most; size > 1; --size) {
    config.grid.x = config.cluster = static_cast<uint32_t>(size);
    int blocks = 0;
    if (max_resident_blocks(config, resident_kernel, &blocks) == kSuccess && blocks >= size)
      return size;
  }
  return 1;
}

}  // namespace birnn::cuda
