// The recurrence of one direction of one layer, as plain data: what both backends (csrc/cpu,
// csrc/cuda) take. No torch header, no ownership; every size and stride counts elements.
//
// Symbols in shape comments: T steps, B sequences, H hidden units, S the size of the recurrent
// state (P if projected, else H), G gates of the cell (1, 3, 4), D directions, N rows.
#pragma once

#include <cstdint>

namespace birnn {

enum class Cell : int { kTanh, kRelu, kGru, kLstm, kGruResetBefore, kLstmPeepholes };

constexpr bool is_lstm(Cell cell) { return cell == Cell::kLstm || cell == Cell::kLstmPeepholes; }
constexpr bool is_gru(Cell cell) { return cell == Cell::kGru || cell == Cell::kGruResetBefore; }

constexpr int num_gates(Cell cell) { return is_lstm(cell) ? 4 : is_gru(cell) ? 3 : 1; }

// Columns of one row of `gates` in training: the activations, then LSTM's c or what a GRU's r meets
// in the new gate: the recurrent product, or where the gate comes before it r * h. The output is
// all that the backward pass of a vanilla RNN needs.
constexpr int reserve_blocks(Cell cell) { return is_lstm(cell) ? 5 : is_gru(cell) ? 4 : 0; }

// Columns of one row of `dgates`, in blocks of H. LSTM: i f g o. GRU: n r z, then n again for the
// recurrent side (scaled by r), so that blocks 0..2 belong to weight_ih and 1..3 to weight_hh.
// With the reset gate before the product: r z n, of both.
constexpr int dgates_blocks(Cell cell) { return cell == Cell::kGru ? 4 : num_gates(cell); }

// The sums that a cell's functions are applied to: its gates', and a GRU's n in two, first what
// comes of the input, then what comes of the state.
constexpr int num_sums(Cell cell) { return cell == Cell::kGru ? 4 : num_gates(cell); }

// Cells that the CPU computes in float32 or float64 alone, and a GPU stepwise alone.
constexpr bool runs_in_plain_numbers(Cell cell) {
  return cell == Cell::kGruResetBefore || cell == Cell::kLstmPeepholes;
}

// The same as variables, which device code may read: the functions are the host's.
template <Cell kCell>
constexpr bool kIsLstm = is_lstm(kCell);
template <Cell kCell>
constexpr bool kIsGru = is_gru(kCell);
template <Cell kCell>
constexpr int kNumGates = num_gates(kCell);
template <Cell kCell>
constexpr int kNumSums = num_sums(kCell);
template <Cell kCell>
constexpr int kDgatesBlocks = dgates_blocks(kCell);

enum class Element : int { kFloat64, kFloat32, kFloat16, kBFloat16 };

constexpr int64_t element_bytes(Element element) {
  return element == Element::kFloat64 ? 8 : element == Element::kFloat32 ? 4 : 2;
}

struct RecurrenceShape {
  Cell cell = Cell::kTanh;
  Element element = Element::kFloat32;
  int64_t seq_len = 0;      // T
  int64_t batch_size = 0;   // B
  int64_t hidden_size = 0;  // H
  int64_t proj_size = 0;    // P, 0 for none (LSTM only)
  // Whether there are sequences inside rows; Regularisers: a mask of h; shares of the states
  // before.
  bool resets = false, recurrent_dropout = false, zoneout = false;

  int64_t state_size() const { return proj_size > 0 ? proj_size : hidden_size; }
};

// With zoneout a step of a vanilla RNN keeps its h as it is without, and one of an LSTM its c, in
// a block behind the others.
constexpr int reserve_blocks(const RecurrenceShape& shape) {
  return reserve_blocks(shape.cell) + (shape.zoneout && !is_gru(shape.cell) ? 1 : 0);
}
// The block of the c that an LSTM's h is made of.
constexpr int output_c_block(const RecurrenceShape& shape) { return shape.zoneout ? 5 : 4; }

// Of one direction. Recurrent dropout (Gal & Ghahramani 2016): h enters its product with W_hh times
// a mask that is the same at each step, and everything else as it is. Zoneout (Krueger et al.
// 2017): a share of each unit's new state is its old one's, in training all of it or nothing. In
// the type of the biases on a CPU, of the elements on a GPU.
struct Regularisers {
  const void* recurrent_mask = nullptr;  // [B, S], null: none
  const void* zoneout_h = nullptr;       // [N, S] at zoneout_h_stride, null: zeros
  int64_t zoneout_h_stride = 0;          // 0: one row for all
  const void* zoneout_c = nullptr;       // [N, H] at zoneout_c_stride, null: zeros (LSTM only)
  int64_t zoneout_c_stride = 0;
};

// Where step t of sequence b lies: row_offsets[t] + b if there are offsets (rows of a packed
// batch, sequences longest first), else t * batch_size + b.
//
// A row can hold several sequences, one after the other: where one begins, the forward direction's
// step continues zeros instead of the state before it, and so does the reverse direction's step
// before it in time. Nothing crosses, in values or in gradients.
struct SequenceRows {
  const int64_t* lengths = nullptr;      // [B], null: all are T
  const int64_t* row_offsets = nullptr;  // [T + 1], null: padded rows
  const bool* resets = nullptr;          // [N], true where a sequence begins, null: nowhere
  const bool* step_resets = nullptr;     // [T], whether one does in any row, null with `resets`
};

// A direction of a layer-normalised GRU or LSTM (cells.h), of float or double: its input is
// projected and normalised already.
struct NormalisedDirection {
  bool reverse = false;
  double eps = 0;                 // added to variances
  const void* gates_x = nullptr;  // [N, G*H] at gates_x_stride, with bias_ih
  int64_t gates_x_stride = 0;
  const void* weight_hh = nullptr;  // [G*H, H]
  const void* norm_hh = nullptr;    // [G*H]: what the normalised W_hh h is multiplied by
  const void* bias_hh = nullptr;    // [G*H]
  const void* norm_c = nullptr;     // [H] (LSTM only), as are those of c
  const void* bias_c = nullptr;     // [H]
  const void* hx = nullptr;         // [B, H], null: zeros
  const void* cx = nullptr;         // [B, H], null: zeros
  void* output = nullptr;           // [N, H] at output_stride
  int64_t output_stride = 0;
  void* reserve = nullptr;  // [N, normalised_reserve_size], null: none is kept
  int64_t reserve_stride = 0;
  const bool* resets = nullptr;  // as of SequenceRows, which a CPU direction is given
  void* hy = nullptr;            // [B, H]
  void* cy = nullptr;            // [B, H]: the cell state while the recurrence runs
  // Backward.
  const void* dy = nullptr;  // [N, H] at dy_stride, null: zeros
  int64_t dy_stride = 0;
  const void* dc = nullptr;  // [N, H] at dc_stride, null: zeros
  int64_t dc_stride = 0;
  void* dgates = nullptr;   // [N, dgates_blocks * H]
  void* dsums = nullptr;    // [N, G*H]: the gradient of W_hh h
  void* dnorm_c = nullptr;  // [N, H]: the gradient of c, normalised, scaled and shifted
  void* dhx = nullptr;      // [B, H]: holds dhy on entry, the gradient of hx on return
  void* dcx = nullptr;      // [B, H]: holds dcy on entry, the gradient of cx on return
};

// A row of its reserve: r z n q or i f g o c, the normalised c, the normalised W_hh h by gate, and
// what the deviations of these two from their means were multiplied by, c's last.
template <Cell kCell>
constexpr int kNormalisedBlock = kCell == Cell::kLstm ? 6 : 4;
constexpr int64_t normalised_reserve_size(Cell cell, int64_t hidden_size) {
  return (cell == Cell::kLstm ? 10 : 7) * hidden_size + 2;
}

struct ForwardDirection {
  bool reverse = false;             // walks from each sequence's own end to its start
  const void* weight_hh = nullptr;  // [G*H, S], contiguous
  const void* weight_hr = nullptr;  // [P, H], contiguous, or null
  const void* weight_ch = nullptr;  // [3*H] of i, f, o, contiguous (peepholes only)
  const void* bias_ih = nullptr;    // [G*H], null: zeros
  const void* bias_hh = nullptr;    // [G*H], null where bias_ih is
  const void* hx = nullptr;         // [B, S], null: zeros
  const void* cx = nullptr;         // [B, H], null: zeros (LSTM only)
  // [N, G*H or more]: the reserve on return, if asked for (reserve_blocks). A GPU direction finds
  // W_ih x here on entry, and one of a vanilla RNN may pass its output: the two are updated in
  // place. A CPU direction projects its input itself, but for a GRU whose reset gate comes before
  // the product: that finds W_ih x here as well, and leaves the reserve if the stride has room.
  void* gates = nullptr;
  int64_t gates_stride = 0;
  void* output = nullptr;  // [N, S] at a stride of D*S
  int64_t output_stride = 0;
  const bool* resets = nullptr;  // as of SequenceRows, which a CPU direction is given
  void* hy = nullptr;            // [B, S]
  void* cy = nullptr;            // [B, H] (LSTM only): the cell state while the recurrence runs
};

struct BackwardDirection {
  bool reverse = false;
  const void* weight_hh = nullptr;  // [G*H, S]
  const void* weight_hr = nullptr;  // [P, H] or null
  const void* weight_ch = nullptr;  // [3*H] (peepholes only)
  const void* hx = nullptr;         // [B, S], null: zeros
  const void* cx = nullptr;         // [B, H], null: zeros
  const void* output = nullptr;     // [N, S] at output_stride
  int64_t output_stride = 0;
  const void* reserve = nullptr;  // [N, reserve_blocks * H], never written
  int64_t reserve_stride = 0;
  const void* dy = nullptr;  // [N, S] at dy_stride, null: zeros
  int64_t dy_stride = 0;
  // [N, H] at dc_stride: gradient of the cell state that each step leaves, null: zeros (LSTM only).
  const void* dc = nullptr;
  int64_t dc_stride = 0;
  void* dgates = nullptr;  // [N, dgates_blocks * H] at dgates_stride
  int64_t dgates_stride = 0;
  int64_t dgates_first_row = 0;  // the row that `dgates` points at
  const bool* resets = nullptr;  // as of a ForwardDirection
  void* dproj = nullptr;         // [N, P]: gradient of the projected state (projection only)
  void* dhx = nullptr;           // [B, S]: holds dhy on entry, the gradient of hx on return
  void* dcx = nullptr;  // [B, H]: holds dcy on entry, the gradient of cx on return (LSTM only)
  // [G*H] each: the gradients of the biases on return, null where nobody asks. The kernels that run
  // all steps on a GPU sum them up on the way; the CPU and stepwise leave them to sums of dgates.
  void* dbias_ih = nullptr;
  void* dbias_hh = nullptr;
};

}  // namespace birnn
