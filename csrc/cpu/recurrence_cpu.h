// The CPU backend: the recurrences of a layer's directions, concurrently on disjoint groups of
// cores. Element types: float and double.
#pragma once

#include <cstdint>

#include "../recurrence.h"

namespace birnn::cpu {

// With lengths, sequences must be sorted, longest first, in packed rows (SequenceRows).
struct Layer {
  RecurrenceShape shape;
  SequenceRows sequences;
  int num_directions = 1;
};

// The instruction set that runs: the best that processor and operating system have.
const char* instruction_set_name();

// Bytes that a pass needs at `workspace`, aligned to 64.
int64_t workspace_bytes(const Layer& layer);

// Packs the weights into the workspace: once before the first call of a pass.
void prepare_forward(const Layer& layer, const ForwardDirection* directions, void* workspace);

// Steps [step_begin, step_end) of every direction's own walk; the last one also writes hy. cy must
// hold cx on entry of the first.
void forward(const Layer& layer, const ForwardDirection* directions, bool save_reserve,
             int64_t step_begin, int64_t step_end, void* workspace);

void backward(const Layer& layer, const BackwardDirection* directions, void* workspace);

}  // namespace birnn::cpu
