// Sequences of unequal length in packed rows, longest first, and the way there and back.
#pragma once

#include <ATen/core/Tensor.h>

#include "layer/layer.h"
#include "recurrence.h"

namespace birnn::cpu {

// t.to(type) without its price where there is nothing to do. A layer of one sequence and 64 units
// is done in 40 us, so that every call of the dispatcher counts.
inline Tensor as_type(const Tensor& t, at::ScalarType type) {
  return t.scalar_type() == type ? t : t.to(type);
}

// Sequences longest first, their steps in packed rows.
struct Rows {
  int64_t num_rows = 0;
  Tensor lengths;      // [B] sorted, or undefined: all T
  Tensor row_offsets;  // [T + 1]
  Tensor order;        // [B] the caller's index of a sorted sequence; undefined: unchanged
  Tensor padded_rows;  // [N] the caller's row of a packed row; undefined: unchanged
  Tensor resets;       // bool [N], or undefined: nowhere
  Tensor step_resets;  // bool [T]

  SequenceRows pointers() const {
    SequenceRows at;
    if (lengths.defined()) {
      at.lengths = lengths.const_data_ptr<int64_t>();
      at.row_offsets = row_offsets.const_data_ptr<int64_t>();
    }
    if (resets.defined()) {
      at.resets = resets.const_data_ptr<bool>();
      at.step_resets = step_resets.const_data_ptr<bool>();
    }
    return at;
  }
};

Rows rows_of(const Problem& p);

// A tensor [T, B, C] or [N, C] as the rows that the recurrence walks, [N, C] with unit stride in
// the last dimension: a view where the memory allows it.
Tensor take_rows(const Tensor& t, const Rows& rows, at::ScalarType type);

// The way back: rows past a sequence's end are zero.
Tensor give_rows(const Tensor& flat, const Rows& rows, at::IntArrayRef sizes, at::ScalarType type);

// A state [D, B, C] in the order of the rows, contiguous, the caller's memory where it is so.
Tensor read_state(const Tensor& state, const Rows& rows, at::ScalarType type);
// The same, always memory of its own; zeros without one.
Tensor take_state(const OptionalTensor& state, const Rows& rows, at::IntArrayRef sizes,
                  const at::TensorOptions& options);
Tensor give_state(const Tensor& state, const Rows& rows, at::ScalarType type);

// Direction d's row of a contiguous tensor [D, rows, columns].
inline const char* direction_row_pointer(const Tensor& t, int d, int64_t row, int64_t column = 0) {
  return row_pointer(t, d) + (row * t.stride(1) + column) * t.element_size();
}

// The states that the rows of steps [t_begin, t_end) continue, [rows, S], of direction d's states
// [N, S] after each: of packed rows, where they lie at no fixed distance, of those where several
// sequences lie, and of masked ones. initial [D, B, S] and mask [D, B, S] may be undefined.
Tensor previous_states(const Problem& p, const Rows& rows, const Tensor& states,
                       const Tensor& initial, const Tensor& mask, int d, int64_t t_begin,
                       int64_t t_end);

}  // namespace birnn::cpu
