// The two functions of the GPU backend: the recurrence of a layer by the kernel that was chosen.
#pragma once

#include <vector>

#include "cuda/plan/plan.h"
#include "cuda/recurrence_cuda.h"

namespace birnn::cuda {

// Whether all directions run in one launch: then they are given together, else one by one, each on
// a stream of its own.
inline bool runs_directions_together(const Choice& choice) {
  return choice.kernel == Kernel::kGrid;
}

// Whether weight_hh is packed before the recurrence: then a portion can be just that.
inline bool packs_weights(const Choice& choice) { return choice.kernel != Kernel::kStepwise; }

// Whether the recurrence sums up the gradients of the biases on its way.
inline bool sums_biases(const Choice& choice) { return choice.kernel != Kernel::kStepwise; }

// The portions of a recurrence, to be enqueued in turn. Stepwise enqueues two launches a step: the
// directions take turns, or the first one's would keep the second waiting, and past some thousand
// a queue is full and the host waits too.
std::vector<Portion> portions(const Choice& choice, int64_t seq_len);

// Device memory, aligned to 256 bytes, for `num_directions` of a call.
int64_t forward_workspace(const Choice& choice, const RecurrenceShape& shape, int num_directions);
int64_t backward_workspace(const Choice& choice, const RecurrenceShape& shape, int num_directions);

// What the driver says of the launch of a block's or a cluster's recurrence: as AskDriver.
Residency residency(const PlanRequest& request, Pass pass, const Choice& choice);

// Operands as of stepwise_forward and stepwise_backward, arrays of `num_directions`; regularisers:
// null where there are none. first_dgates:
// an array of pointers. Return 0 or an error code.
int forward_recurrence(const Choice& choice, const RecurrenceShape& shape, const int64_t* lengths,
                       const ForwardDirection* directions, const Regularisers* regularisers,
                       int num_directions, bool save_reserve, const StepGemm& gemm, void* workspace,
                       void* stream, const Portion& portion);
int backward_recurrence(const Choice& choice, const RecurrenceShape& shape, const int64_t* lengths,
                        const BackwardDirection* directions, const Regularisers* regularisers,
                        void* const* first_dgates, int num_directions, const StepGemm& gemm,
                        void* workspace, void* stream, const Portion& portion);

}  // namespace birnn::cuda
