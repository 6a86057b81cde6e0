// The cluster backward kernel for ctypes, on the emulator: plain pointers and integers. With
// CLUSTER_BACKWARD_IEEE_ALONE the other precisions are left out.
#if !defined(BIRNN_ALL_INSTANCES)
#define BIRNN_SMALL_INSTANCES
#endif
#include "cuda/cluster/backward.cu"
#include "cuda/instances/cluster_backward_ieee.cu"
#if defined(CLUSTER_BACKWARD_IEEE_ALONE)
namespace birnn::cuda::reduce_scatter {
int launch_fp16(const Call&) { return kNoInstance; }
int launch_bf16(const Call&) { return kNoInstance; }
int launch_tf32(const Call&) { return kNoInstance; }
}  // namespace birnn::cuda::reduce_scatter
#else
#include "cuda/instances/cluster_backward_bf16.cu"
#include "cuda/instances/cluster_backward_fp16.cu"
#include "cuda/instances/cluster_backward_tf32.cu"
#endif

#include "driver_arguments.h"

// sizes, pointers, strides: as driver_arguments.h takes them. tiling: cluster size, batch tiles, 1
// for products in tf32.
extern "C" int cluster_backward_driver(const int64_t* sizes, int reverse, const int64_t* lengths,
                                       void* const* pointers, const int64_t* strides,
                                       const int64_t* tiling) {
  using namespace birnn;
  const Regularisers regularisers =
      test::regularisers(pointers + test::kBackwardPointers, strides + test::kBackwardStrides);
  const BackwardDirection direction = test::backward_direction(reverse != 0, pointers, strides);
  const RecurrenceShape shape = test::regularised_shape(sizes, regularisers, direction.resets);
  const cuda::ClusterBackwardTiling given{static_cast<int>(tiling[0]), static_cast<int>(tiling[1])};
  const GemmCompute compute = tiling[2] ? GemmCompute::kTf32 : GemmCompute::kIeee;
  return test::with_workspace(cuda::cluster_backward_workspace(shape, given), [&](void* workspace) {
    return cuda::cluster_backward(shape, lengths, direction, regularisers,
                                  pointers[test::kFirstDgates], compute, given, workspace, nullptr);
  });
}

// Which instance takes a shape; -1: none.
extern "C" int cluster_backward_instance(const int64_t* sizes, const int64_t* tiling) {
  const birnn::cuda::ClusterBackwardTiling given{static_cast<int>(tiling[0]),
                                                 static_cast<int>(tiling[1])};
  return birnn::cuda::reduce_scatter::Sizes(birnn::test::shape_of(sizes), given).instance;
}
