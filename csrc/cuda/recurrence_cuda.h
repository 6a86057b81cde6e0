// The GPU backend: the recurrence of one direction as kernels on one stream. Like everything in
// this folder it includes no torch header, allocates nothing and never synchronises; the emulator
// runs the same source. Functions return 0 or a CUDA error code (cudaError_t), stream is a
// cudaStream_t.
//
// Rows are padded: step t of sequence b is row t * batch_size + b. With lengths (device memory,
// clamped to [0, T], any order), a direction ends or starts at each sequence's own end; outputs and
// dgates past it are written as zeros, and the state is frozen there.
#pragma once

#include <cstdint>
#include <string>

#include "gemm.h"
#include "recurrence.h"

namespace birnn::cuda {

// The library product that stepwise kernels call once a step.
struct StepGemm {
  GemmFunction function = nullptr;
  void* handle = nullptr;
  GemmCompute compute = GemmCompute::kIeee;
};

// What of a pass a call enqueues, for a caller that has other work to put between. Everything, by
// default.
struct Portion {
  bool packs = true;   // persistent kernels: weight_hh as fragments into the workspace
  bool recurs = true;  // the recurrence, on what was packed
  // Backward: not for the first time since it was packed, but of an earlier part of the steps,
  // which goes on with the sums of the biases.
  bool again = false;
  // stepwise: of the steps that it walks, in the order of the walk.
  int64_t first = 0, last = INT64_MAX;
};
constexpr Portion kPacking{true, false};

// stepwise: any shape, any element type; a library GEMM and one fused kernel a step.
//
// `regularisers` are of the shape's flags; no other kernel takes zoneout. The workspace is device
// memory, aligned to 256 bytes. ForwardDirection::cy is fp32 for 16-bit elements (fp64 for fp64)
// and need not be initialised; hx, cx and the biases have the element type. BackwardDirection::dhx
// and dcx are fp32 for 16-bit elements and hold dhy and dcy on entry.
int64_t stepwise_forward_workspace(const RecurrenceShape& shape);
int stepwise_forward(const RecurrenceShape& shape, const int64_t* lengths,
                     const ForwardDirection& direction, const Regularisers& regularisers,
                     bool save_reserve, const StepGemm& gemm, void* workspace, void* stream,
                     const Portion& portion = {});

int64_t stepwise_backward_workspace(const RecurrenceShape& shape);
// first_dgates [B, dgates_blocks * H]: the rows of dgates at each sequence's first step in the
// direction's own order (zeros for an empty sequence), for the gradient of weight_hh through hx;
// may be null.
int stepwise_backward(const RecurrenceShape& shape, const int64_t* lengths,
                      const BackwardDirection& direction, const Regularisers& regularisers,
                      void* first_dgates, const StepGemm& gemm, void* workspace, void* stream,
                      const Portion& portion = {});

// The same of a layer-normalised GRU or LSTM, in fp32 or fp64 (other elements: kNoInstance), whose
// directions have what `cells.h` says; no projection, no regularisers. cy need not be initialised.
// With a reserve, what lies past the ends is zero in it, and in dgates, dsums and dnorm_c.
int64_t normalised_forward_workspace(const RecurrenceShape& shape);
int normalised_forward(const RecurrenceShape& shape, const int64_t* lengths,
                       const NormalisedDirection& direction, const StepGemm& gemm, void* workspace,
                       void* stream, const Portion& portion = {});

int64_t normalised_backward_workspace(const RecurrenceShape& shape);
int normalised_backward(const RecurrenceShape& shape, const int64_t* lengths,
                        const NormalisedDirection& direction, const StepGemm& gemm, void* workspace,
                        void* stream, const Portion& portion = {});

// cluster_forward, cluster_backward: the whole recurrence of a direction in one kernel, by one
// block or, on compute capability 9.0 and up, one cluster of blocks to each tile of the batch. Any
// cell in fp16, bf16 and fp32 without projection, as far as W_hh fits into the registers of a
// cluster (forward: and its shared memory). Arguments as of stepwise_forward and stepwise_backward;
// `compute` says how fp32 products are formed.
//
// A residency is what the driver says of such a launch, of operands that are aligned, on the
// current device. What it refuses stays behind as the runtime's last error.
struct Residency {
  int clusters = 0;                  // that run at once
  int blocks_of_multiprocessor = 0;  // that one of them holds
  std::string error;                 // why the driver says nothing
};
constexpr int kNoInstance = 1;  // cudaErrorInvalidValue: no instance holds this shape and tiling
struct ClusterForwardTiling {
  int cluster_size = 1;  // blocks that share a direction's hidden units, 1 to 16; 1: no cluster
  int batch_tiles = 1;   // of 8 sequences, to a cluster; 1, 2 or 4
  int k_split = 1;       // warps that share the columns of W_hh of one group of units
};
int64_t cluster_forward_workspace(const RecurrenceShape& shape, const ClusterForwardTiling& tiling);
Residency cluster_forward_residency(const RecurrenceShape& shape, GemmCompute compute,
                                    const ClusterForwardTiling& tiling);
int cluster_forward(const RecurrenceShape& shape, const int64_t* lengths,
                    const ForwardDirection& direction, const Regularisers& regularisers,
                    bool save_reserve, GemmCompute compute, const ClusterForwardTiling& tiling,
                    void* workspace, void* stream, const Portion& portion = {});

struct ClusterBackwardTiling {
  int cluster_size = 1;  // blocks that share a direction's hidden units, 1 to 16; 1: no cluster
  int batch_tiles = 1;   // of 8 sequences, to a cluster; 1 to 16
};
int64_t cluster_backward_workspace(const RecurrenceShape& shape,
                                   const ClusterBackwardTiling& tiling);
Residency cluster_backward_residency(const RecurrenceShape& shape, GemmCompute compute,
                                     const ClusterBackwardTiling& tiling);
int cluster_backward(const RecurrenceShape& shape, const int64_t* lengths,
                     const BackwardDirection& direction, const Regularisers& regularisers,
                     void* first_dgates, GemmCompute compute, const ClusterBackwardTiling& tiling,
                     void* workspace, void* stream, const Portion& portion = {});

// grid_forward: the whole recurrence of one or two directions in one cooperative launch (behind one
// of a kernel that packs the weights and clears what blocks exchange). Blocks share a direction's
// hidden units and hand each other h through L2. Any cell in fp16, bf16 and fp32 without
// projection, as far as W_hh fits into the registers and shared memory of num_blocks blocks.
// Arguments as of stepwise_forward; directions [num_directions], `compute` says how fp32 products
// are formed. All num_directions * num_blocks * groups_at_once blocks must fit the device at once:
// else the launch fails.
struct GridForwardTiling {
  int num_blocks = 1;      // that share a direction's hidden units
  int batch_tiles = 1;     // of 8 sequences, a group that num_blocks blocks run together
  int groups_at_once = 1;  // groups of the batch that run side by side, on blocks of their own
};
int64_t grid_forward_workspace(const RecurrenceShape& shape, const GridForwardTiling& tiling,
                               int num_directions);
int grid_forward(const RecurrenceShape& shape, const int64_t* lengths,
                 const ForwardDirection* directions, const Regularisers* regularisers,
                 int num_directions, bool save_reserve, GemmCompute compute,
                 const GridForwardTiling& tiling, void* workspace, void* stream,
                 const Portion& portion = {});

// grid_backward: the recurrence of one or two directions in one cooperative launch, each divided
// among num_blocks blocks that exchange through L2. Any cell in fp16, bf16 and fp32 without
// projection, as far as W_hh fits into the registers and the shared memory of the blocks, which
// must all be resident at once. Groups of batch_tiles follow each other. Arguments as of
// stepwise_backward, of one or two directions; first_dgates may be null, and so may each of it.
struct GridBackwardTiling {
  int num_blocks = 1;   // blocks that share a direction's hidden units
  int batch_tiles = 1;  // of 8 sequences, to a group of num_blocks blocks; 1 to 16
  // Into how many parts the columns of W_hh^T are divided, a divisor of num_blocks; its rows into
  // num_blocks / column_teams. 0: as many as cost least by a count of bytes.
  int column_teams = 0;
};
int64_t grid_backward_workspace(const RecurrenceShape& shape, const GridBackwardTiling& tiling,
                                int num_directions);
int grid_backward(const RecurrenceShape& shape, const int64_t* lengths,
                  const BackwardDirection* directions, const Regularisers* regularisers,
                  void* const* first_dgates, int num_directions, GemmCompute compute,
                  const GridBackwardTiling& tiling, void* workspace, void* stream,
                  const Portion& portion = {});

}  // namespace birnn::cuda
