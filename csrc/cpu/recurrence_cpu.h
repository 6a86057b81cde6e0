// The CPU backend: the recurrences of a layer's directions, concurrently on disjoint groups of
// cores.
#pragma once

#include <cstdint>

#include "cpu/instruction_set.h"
#include "recurrence.h"

namespace birnn::cpu {

// With lengths, sequences must be sorted, longest first, in packed rows (SequenceRows).
struct Layer {
  RecurrenceShape shape;  // element: of the rows (KernelTable)
  SequenceRows sequences;
  int num_directions = 1;
  int64_t input_size = 0;
  const KernelTable* kernels = nullptr;
  const Regularisers* regularisers = nullptr;  // [num_directions], null: none
  bool meets = true;  // whether threads may share units, and meet at each step
};

// All weights packed as forward() packs them itself unless it is given them, aligned to 64. Of the
// shape only cell and sizes matter; of the directions only the weights.
int64_t packed_weights_bytes(const Layer& layer);
void pack_weights(const Layer& layer, const ForwardDirection* directions,
                  const void* const* weight_ih, void* packed);

// Bytes that a pass needs at `workspace`, aligned to 64.
int64_t forward_workspace_bytes(const Layer& layer, bool with_packed_weights);
int64_t backward_workspace_bytes(const Layer& layer);

// The input projection included: x [N, I] at x_stride; weight_ih of each direction [G*H, I], and
// the scales of its weights if they are int8. `packed_weights` may be null. The directions' `gates`
// receive the reserve, or are null; cy must hold cx.
void forward(const Layer& layer, const ForwardDirection* directions, const void* x,
             int64_t x_stride, const void* const* weight_ih, const WeightScales* scales,
             const void* packed_weights, void* workspace);

// Steps [step_begin, step_end) of every direction's forward walk, last to first. Calls walk from T
// down to 0 in turn; the carried gradients are in dhx and dcx, the packed weights in the workspace.
void backward(const Layer& layer, const BackwardDirection* directions, int64_t step_begin,
              int64_t step_end, void* workspace);

// The recurrence of a layer-normalised GRU or LSTM, all steps of it: cy must hold cx, dhx and dcx
// the gradients of hy and cy. `layer` has no input and no projection.
int64_t normalised_workspace_bytes(const Layer& layer);
void normalised_forward(const Layer& layer, const NormalisedDirection* directions, void* workspace);
void normalised_backward(const Layer& layer, const NormalisedDirection* directions,
                         void* workspace);

}  // namespace birnn::cpu
