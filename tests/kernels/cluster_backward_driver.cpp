// The cluster backward kernel for ctypes, on the emulator: plain pointers and integers. With
// CLUSTER_BACKWARD_IEEE_ALONE the other precisions are left out.
#define BIRNN_SMALL_INSTANCES
#include <cstring>
#include <new>

#include "cluster_backward.cu"
#include "instances/cluster_backward_ieee.cu"
#if defined(CLUSTER_BACKWARD_IEEE_ALONE)
namespace birnn::cuda::reduce_scatter {
int launch_fp16(const Call&) { return kNoInstance; }
int launch_bf16(const Call&) { return kNoInstance; }
int launch_tf32(const Call&) { return kNoInstance; }
}  // namespace birnn::cuda::reduce_scatter
#else
#include "instances/cluster_backward_bf16.cu"
#include "instances/cluster_backward_fp16.cu"
#include "instances/cluster_backward_tf32.cu"
#endif

namespace {

// A workspace of exactly the bytes asked for, every byte 0xff: NaN in the float formats.
struct WorkspaceMemory {
  explicit WorkspaceMemory(int64_t bytes) : data(operator new(bytes, std::align_val_t(256))) {
    std::memset(data, 0xff, bytes);
  }
  ~WorkspaceMemory() { operator delete(data, std::align_val_t(256)); }
  WorkspaceMemory(const WorkspaceMemory&) = delete;
  WorkspaceMemory& operator=(const WorkspaceMemory&) = delete;
  void* data;
};

}  // namespace

// sizes: cell, element, T, B, H, P. pointers, in the order of BackwardDirection: weight_hh,
// weight_hr, hx, cx, output, reserve, dy, dgates, dproj, dhx, dcx, then first_dgates. strides: of
// output, reserve, dy, dgates. tiling: cluster size, batch tiles, 1 for products in tf32.
extern "C" int cluster_backward_driver(const int64_t* sizes, int reverse, const int64_t* lengths,
                                       void* const* pointers, const int64_t* strides,
                                       const int64_t* tiling) {
  using namespace birnn;
  RecurrenceShape shape;
  shape.cell = static_cast<Cell>(sizes[0]);
  shape.element = static_cast<Element>(sizes[1]);
  shape.seq_len = sizes[2];
  shape.batch_size = sizes[3];
  shape.hidden_size = sizes[4];
  shape.proj_size = sizes[5];
  BackwardDirection direction;
  direction.reverse = reverse != 0;
  direction.weight_hh = pointers[0];
  direction.hx = pointers[2];
  direction.cx = pointers[3];
  direction.output = pointers[4];
  direction.output_stride = strides[0];
  direction.reserve = pointers[5];
  direction.reserve_stride = strides[1];
  direction.dy = pointers[6];
  direction.dy_stride = strides[2];
  direction.dgates = pointers[7];
  direction.dgates_stride = strides[3];
  direction.dhx = pointers[9];
  direction.dcx = pointers[10];
  const cuda::ClusterBackwardTiling given{static_cast<int>(tiling[0]), static_cast<int>(tiling[1])};
  const GemmCompute compute = tiling[2] ? GemmCompute::kTf32 : GemmCompute::kIeee;
  const WorkspaceMemory workspace(cuda::cluster_backward_workspace(shape, given));
  return cuda::cluster_backward(shape, lengths, direction, pointers[11], compute, given,
                                workspace.data, nullptr);
}
