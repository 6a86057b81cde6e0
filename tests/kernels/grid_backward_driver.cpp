// The grid backward kernel for ctypes, on the emulator: plain pointers and integers. With
// GRID_BACKWARD_IEEE_ALONE the other precisions are left out.
#if !defined(BIRNN_ALL_INSTANCES)
#define BIRNN_SMALL_INSTANCES
#endif
#include "cuda/grid/backward.cu"
#include "cuda/instances/grid_backward_ieee.cu"
#include "driver_arguments.h"
#if defined(GRID_BACKWARD_IEEE_ALONE)
namespace birnn::cuda::gather_reduce {
int launch_fp16(const Call&) { return kNoInstance; }
int launch_bf16(const Call&) { return kNoInstance; }
int launch_tf32(const Call&) { return kNoInstance; }
}  // namespace birnn::cuda::gather_reduce
#else
#include "cuda/instances/grid_backward_bf16.cu"
#include "cuda/instances/grid_backward_fp16.cu"
#include "cuda/instances/grid_backward_tf32.cu"
#endif

namespace {

birnn::cuda::GridBackwardTiling tiling_of(const int64_t* tiling) {
  return {static_cast<int>(tiling[0]), static_cast<int>(tiling[1]), static_cast<int>(tiling[2])};
}

}  // namespace

// sizes, and for each direction pointers and strides, as driver_arguments.h takes them; with
// `reverse` the last direction walks backwards. tiling: blocks, batch tiles, column teams, 1 for
// products in tf32.
extern "C" int grid_backward_driver(const int64_t* sizes, int num_directions, int reverse,
                                    const int64_t* lengths, void* const* pointers,
                                    const int64_t* strides, const int64_t* tiling) {
  using namespace birnn;
  BackwardDirection directions[2];
  Regularisers regularisers[2];
  void* first_dgates[2] = {};
  for (int d = 0; d < num_directions; ++d) {
    const bool last = d + 1 == num_directions;
    directions[d] = test::backward_direction(reverse != 0 && last, pointers, strides);
    first_dgates[d] = pointers[test::kFirstDgates];
    pointers += test::kBackwardPointers;
    strides += test::kBackwardStrides;
    regularisers[d] = test::regularisers(pointers, strides);
    pointers += test::kRegulariserPointers;
    strides += test::kRegulariserStrides;
  }
  const RecurrenceShape shape =
      test::regularised_shape(sizes, regularisers[0], directions[0].resets);
  const cuda::GridBackwardTiling given = tiling_of(tiling);
  const GemmCompute compute = tiling[3] ? GemmCompute::kTf32 : GemmCompute::kIeee;
  return test::with_workspace(
      cuda::grid_backward_workspace(shape, given, num_directions), [&](void* workspace) {
        return cuda::grid_backward(shape, lengths, directions, regularisers, first_dgates,
                                   num_directions, compute, given, workspace, nullptr);
      });
}

// Which instance takes a shape, one direction of it; -1: none.
extern "C" int grid_backward_instance(const int64_t* sizes, const int64_t* tiling) {
  return birnn::cuda::gather_reduce::Sizes(birnn::test::shape_of(sizes), tiling_of(tiling), 1)
      .instance;
}
