// The two functions of the GPU backend: the recurrence of a layer by the kernel that was chosen.
#pragma once

#include "cuda/plan/plan.h"
#include "cuda/recurrence_cuda.h"

namespace birnn::cuda {

// Whether all directions run in one launch: then they are given together, else one by one, each on
// a stream of its own.
inline bool runs_directions_together(const Choice& choice) {
  return choice.kernel == Kernel::kGrid;
}

// Device memory, aligned to 256 bytes, for `num_directions` of a call.
int64_t forward_workspace(const Choice& choice, const RecurrenceShape& shape, int num_directions);
int64_t backward_workspace(const Choice& choice, const RecurrenceShape& shape, int num_directions);

// Operands as of stepwise_forward and stepwise_backward, arrays of `num_directions`. first_dgates:
// an array of pointers. Return 0 or an error code.
int forward_recurrence(const Choice& choice, const RecurrenceShape& shape, const int64_t* lengths,
                       const ForwardDirection* directions, int num_directions, bool save_reserve,
                       const StepGemm& gemm, void* workspace, void* stream);
int backward_recurrence(const Choice& choice, const RecurrenceShape& shape, const int64_t* lengths,
                        const BackwardDirection* directions, void* const* first_dgates,
                        int num_directions, const StepGemm& gemm, void* workspace, void* stream);

}  // namespace birnn::cuda
