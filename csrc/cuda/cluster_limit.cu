#include "cluster_limit.h"

#include "device.h"

namespace birnn::cuda {
namespace {

using namespace device;

BIRNN_KERNEL void resident_kernel() {}

}  // namespace

int largest_cluster(int most) {
  int device = 0, shared_bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
      cudaSuccess)
    return 1;
  LaunchConfig config;
  config.threads = 256;
  config.shared_bytes = static_cast<size_t>(shared_bytes);  // so that none shares a multiprocessor
  for (int size = most; size > 1; --size) {
    config.grid.x = config.cluster = static_cast<uint32_t>(size);
    int blocks = 0;
    if (max_resident_blocks(config, resident_kernel, &blocks) == cudaSuccess && blocks >= size)
      return size;
  }
  cudaGetLastError();  // of sizes that it refused
  return 1;
}

}  // namespace birnn::cuda
