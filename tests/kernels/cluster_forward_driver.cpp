// The cluster forward kernel for ctypes, on the emulator: plain pointers and integers. With
// CLUSTER_FORWARD_IEEE_ALONE the other precisions are left out.
#if !defined(BIRNN_ALL_INSTANCES)
#define BIRNN_SMALL_INSTANCES
#endif
#include "cuda/cluster/forward.cu"
#include "cuda/instances/cluster_forward_ieee.cu"
#if defined(CLUSTER_FORWARD_IEEE_ALONE)
namespace birnn::cuda::all_gather {
int launch_fp16(const Call&) { return kNoInstance; }
int launch_bf16(const Call&) { return kNoInstance; }
int launch_tf32(const Call&) { return kNoInstance; }
}  // namespace birnn::cuda::all_gather
#else
#include "cuda/instances/cluster_forward_bf16.cu"
#include "cuda/instances/cluster_forward_fp16.cu"
#include "cuda/instances/cluster_forward_tf32.cu"
#endif

#include "driver_arguments.h"

// sizes, pointers, strides: as driver_arguments.h takes them. tiling: cluster size, batch tiles,
// split of K, 1 for products in tf32.
extern "C" int cluster_forward_driver(const int64_t* sizes, int reverse, int save_reserve,
                                      const int64_t* lengths, void* const* pointers,
                                      const int64_t* strides, const int64_t* tiling) {
  using namespace birnn;
  const Regularisers regularisers =
      test::regularisers(pointers + test::kForwardPointers, strides + test::kForwardStrides);
  const ForwardDirection direction = test::forward_direction(reverse != 0, pointers, strides);
  const RecurrenceShape shape = test::regularised_shape(sizes, regularisers, direction.resets);
  const cuda::ClusterForwardTiling given{static_cast<int>(tiling[0]), static_cast<int>(tiling[1]),
                                         static_cast<int>(tiling[2])};
  const GemmCompute compute = tiling[3] ? GemmCompute::kTf32 : GemmCompute::kIeee;
  return test::with_workspace(cuda::cluster_forward_workspace(shape, given), [&](void* workspace) {
    return cuda::cluster_forward(shape, lengths, direction, regularisers, save_reserve != 0,
                                 compute, given, workspace, nullptr);
  });
}

// Which instance takes a shape; -1: none.
extern "C" int cluster_forward_instance(const int64_t* sizes, const int64_t* tiling) {
  const birnn::cuda::ClusterForwardTiling given{
      static_cast<int>(tiling[0]), static_cast<int>(tiling[1]), static_cast<int>(tiling[2])};
  return birnn::cuda::all_gather::Sizes(birnn::test::shape_of(sizes), given).instance;
}
