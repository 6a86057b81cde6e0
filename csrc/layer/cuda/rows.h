// The rows that the GPU kernels walk: padded, step t of sequence b at row t * B + b. A packed batch
// is padded on the way in and packed on the way out.
#pragma once

#include "layer/layer.h"

namespace birnn {

struct Rows {
  Tensor lengths;  // int64 [B] on the device; undefined: all T
  Tensor
      padded_rows;  // int64 [N] on the device: the row of each row of a packed batch; or undefined

  const int64_t* length_pointer() const {
    return lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr;
  }
};

// Where sequences begin: true at their first rows, [T*B]; null: nowhere within a row.
inline const bool* reset_pointer(const Problem& p) {
  return p.resets ? p.resets->const_data_ptr<bool>() : nullptr;
}

// Lengths on the CPU are checked, and copied to the device without anyone waiting.
Rows rows_of(const Problem& p);

// A tensor [T, B, C] or packed [N, C] as padded rows [T*B, C] with unit stride in the last
// dimension: a view where the memory allows it. Padding that was not there before is zero.
Tensor take_rows(const Tensor& t, const Rows& rows, const Problem& p);

// The same with zeros past the ends: a product over all rows must not meet what lies there.
Tensor take_masked_rows(const Tensor& t, const Rows& rows, const Problem& p);

// The way back, to a padded tensor of these sizes or to a packed one.
Tensor give_rows(const Tensor& flat, const Rows& rows, at::IntArrayRef sizes);

// An output [T*B, D*S] with zeros where the step that would continue a row continues nothing.
Tensor continued_rows(const Tensor& output, const Problem& p);

// Of the states [T, B, C] that direction d's steps leave, zeros past the ends, those that each step
// continues: `initial` [D, B, C], undefined for zeros, where it is its sequence's first, and zeros
// where another one begins.
Tensor continued_states(const Tensor& states, const Tensor& initial, const Rows& rows,
                        const Problem& p, int d);

// [T, B, 1]: whether a step lies past its sequence's end.
Tensor padding_mask(const Rows& rows, const Problem& p);

}  // namespace birnn
