// The grid forward kernel for ctypes, on the emulator: plain pointers and integers. With
// GRID_FORWARD_IEEE_ALONE the other precisions are left out.
#if !defined(BIRNN_ALL_INSTANCES)
#define BIRNN_SMALL_INSTANCES
#endif
#include "cuda/grid/forward.cu"
#include "cuda/instances/grid_forward_ieee.cu"
#if defined(GRID_FORWARD_IEEE_ALONE)
namespace birnn::cuda::grid_gather {
int launch_fp16(const Call&) { return kNoInstance; }
int launch_bf16(const Call&) { return kNoInstance; }
int launch_tf32(const Call&) { return kNoInstance; }
}  // namespace birnn::cuda::grid_gather
#else
#include "cuda/instances/grid_forward_bf16.cu"
#include "cuda/instances/grid_forward_fp16.cu"
#include "cuda/instances/grid_forward_tf32.cu"
#endif

#include "driver_arguments.h"

// sizes, strides, and for each direction pointers: as driver_arguments.h takes them; with `reverse`
// the last direction walks backwards. tiling: blocks, batch tiles, groups at once, 1 for products
// in tf32.
extern "C" int grid_forward_driver(const int64_t* sizes, int num_directions, int reverse,
                                   int save_reserve, const int64_t* lengths, void* const* pointers,
                                   const int64_t* strides, const int64_t* tiling) {
  using namespace birnn;
  ForwardDirection directions[2];
  Regularisers regularisers[2];
  for (int d = 0; d < num_directions; ++d) {
    const bool last = d + 1 == num_directions;
    directions[d] = test::forward_direction(reverse != 0 && last, pointers, strides);
    pointers += test::kForwardPointers;
    regularisers[d] = test::regularisers(pointers, strides + test::kForwardStrides);
    pointers += test::kRegulariserPointers;
  }
  const RecurrenceShape shape =
      test::regularised_shape(sizes, regularisers[0], directions[0].resets);
  const cuda::GridForwardTiling given{static_cast<int>(tiling[0]), static_cast<int>(tiling[1]),
                                      static_cast<int>(tiling[2])};
  const GemmCompute compute = tiling[3] ? GemmCompute::kTf32 : GemmCompute::kIeee;
  return test::with_workspace(
      cuda::grid_forward_workspace(shape, given, num_directions), [&](void* workspace) {
        return cuda::grid_forward(shape, lengths, directions, regularisers, num_directions,
                                  save_reserve != 0, compute, given, workspace, nullptr);
      });
}

// Which instance takes a shape, one direction of it; -1: none.
extern "C" int grid_forward_instance(const int64_t* sizes, const int64_t* tiling) {
  const birnn::cuda::GridForwardTiling given{
      static_cast<int>(tiling[0]), static_cast<int>(tiling[1]), static_cast<int>(tiling[2])};
  return birnn::cuda::grid_gather::Sizes(birnn::test::shape_of(sizes), given, 1).instance;
}
