// One bidirectional (or unidirectional) recurrent layer on tensors: the two functions that the
// Python package calls. Shapes and options are those of the dispatcher schema in bindings.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "recurrence.h"

namespace birnn {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The regularisers of a call: constants, of which backward gives no gradient.
struct RegulariserTensors {
  OptionalTensor recurrent_mask;  // [D, B, S]
  OptionalTensor zoneout_h;  // [T, B, D*S], packed [N, D*S], or of size 1 but for the last: for all
  OptionalTensor zoneout_c;  // the same with H for S
};

// What a call computes: filled from its arguments by check_problem, which raises for whatever does
// not fit. The tensors are as the caller gave them.
struct Problem {
  RecurrenceShape shape;
  int num_directions = 1;
  int64_t input_size = 0;
  int64_t num_rows = 0;  // T * B, or the rows of a packed batch
  Tensor input;          // [T, B, I] or packed [N, I]
  OptionalTensor hx;     // [D, B, S]
  OptionalTensor cx;     // [D, B, H]
  std::vector<Tensor> weights;
  // Of int8 matrices: for each direction those of weight_ih, weight_hh and, projected, weight_hr.
  std::vector<Tensor> scales;
  OptionalTensor packed_weights;  // uint8, of layer_pack_quantized
  int weights_per_direction = 0;
  bool has_bias = false;
  OptionalTensor lengths;      // [B], padded input only
  OptionalTensor batch_sizes;  // [T], packed input only
  OptionalTensor resets;       // bool [T, B], contiguous, padded input only
  RegulariserTensors regularisers;
  bool ieee = false;  // fp32 products on a GPU

  bool is_quantized() const { return !scales.empty(); }
  bool is_packed() const { return batch_sizes.has_value(); }
  const Tensor& weight_ih(int d) const { return weights[d * weights_per_direction]; }
  const Tensor& weight_hh(int d) const { return weights[d * weights_per_direction + 1]; }
  const Tensor& bias_ih(int d) const { return weights[d * weights_per_direction + 2]; }
  const Tensor& bias_hh(int d) const { return weights[d * weights_per_direction + 3]; }
  // The last of a direction's, where there is one.
  const Tensor& weight_hr(int d) const { return weights[(d + 1) * weights_per_direction - 1]; }
  const Tensor& weight_ch(int d) const { return weights[(d + 1) * weights_per_direction - 1]; }
  bool has_peepholes() const { return shape.cell == Cell::kLstmPeepholes; }
};

// The blocks of dgates that belong to weight_ih: `count` blocks of H columns from block `column`
// are the gradients of `count` blocks of rows from block `row`.
struct InputGateBlocks {
  int column, row, count;
};
std::vector<InputGateBlocks> input_gate_blocks(Cell cell);

// Raises for tensors on a device that this build has no kernels for.
void check_device_is_built(const at::Device& device);

// Whether the GPU backend computes on these tensors. The tests have it do so on a CPU, under the
// emulator.
bool uses_gpu(const Tensor& t);

// Raises a ValueError for the first value outside [0, seq_len] of a tensor on the CPU.
void check_length_values(const Tensor& lengths, int64_t seq_len);

// Raises a ValueError for the first reset past a sequence's end, of tensors on the CPU: resets
// contiguous [T, B], lengths int64 [B] within [0, T].
void check_reset_values(const Tensor& resets, const Tensor& lengths);

// The address of an element of a tensor whose rows have unit stride.
inline const char* row_pointer(const Tensor& t, int64_t row, int64_t column = 0) {
  return static_cast<const char*>(t.const_data_ptr()) +
         (row * t.stride(0) + column) * t.element_size();
}
inline char* mutable_row_pointer(const Tensor& t, int64_t row, int64_t column = 0) {
  return static_cast<char*>(t.data_ptr()) + (row * t.stride(0) + column) * t.element_size();
}
// A state [D, ...] of one direction, or null.
inline const char* state_pointer(const Tensor& t, int d) {
  return t.defined() ? row_pointer(t, d) : nullptr;
}
inline char* mutable_state_pointer(const Tensor& t, int d) {
  return t.defined() ? mutable_row_pointer(t, d) : nullptr;
}

struct ForwardResult {
  Tensor output, h_n, c_n, reserve;
};

struct BackwardInputs {
  OptionalTensor d_output, d_h_n, d_c_n;
  OptionalTensor d_cell_states;  // [T, B, D*H] or packed [N, D*H]: of c after each step, LSTM only
  Tensor output, reserve;        // the reserve contiguous
  std::vector<bool> needs_grad;  // input, hx, cx, weights...
};

struct BackwardResult {
  Tensor d_input, d_hx, d_cx;
  std::vector<Tensor> d_weights;
};

// What the recurrences of all directions read and write, in rows of both side by side or a matrix
// for each; undefined where there is none. Gates and dgates lie as each backend has them.
struct ForwardTensors {
  Tensor hx, cx, hy, cy;  // [D, B, S or H]
  Tensor output;          // [N, D * S], contiguous
};
struct BackwardTensors {
  Tensor hx, cx, dhx, dcx;  // [D, B, S or H]
  Tensor output, dy, dc;    // [N, D * S], dc [N, D * H]
  Tensor reserve, dproj;    // [D, N, reserve_blocks * H], [D, N, S], contiguous
};
// Direction d, but for its gates or dgates; backward from a row of all of these on.
ForwardDirection forward_direction(const Problem& p, const ForwardTensors& tensors, int d);
BackwardDirection backward_direction(const Problem& p, const BackwardTensors& tensors, int d,
                                     int64_t first_row = 0);

// The regularisers of each direction, as pointers into rows of both side by side or a matrix for
// each; none where there are none.
std::vector<Regularisers> regularisers_of(const Problem& p, const Tensor& recurrent_mask,
                                          const Tensor& zoneout_h, const Tensor& zoneout_c);

// Whether one row of zoneout's shares stands for all.
inline bool is_one_row(const Tensor& shares) { return shares.numel() == shares.size(-1); }

// The backends. `problem` is checked and not empty (T, B > 0).
ForwardResult forward_cpu(const Problem& problem, bool training);
BackwardResult backward_cpu(const Problem& problem, const BackwardInputs& inputs);
Tensor pack_weights_cpu(const Problem& problem);
ForwardResult forward_cuda(const Problem& problem, bool training);
BackwardResult backward_cuda(const Problem& problem, const BackwardInputs& inputs);

// Lists of tensors are a TensorList: of a std::vector the dispatcher would not see which kinds of
// tensors are in it.
std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    const OptionalTensor& lengths, const OptionalTensor& batch_sizes, std::string cell,
    int64_t num_directions, bool training, std::string precision, const OptionalTensor& resets,
    const OptionalTensor& recurrent_mask, const OptionalTensor& zoneout_h,
    const OptionalTensor& zoneout_c);

// int8 matrices with a float32 scale for each row; the reserve holds what one of float32 does.
std::tuple<Tensor, Tensor, Tensor, Tensor> layer_quantized_forward(
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    at::TensorList scales, const OptionalTensor& lengths, const OptionalTensor& batch_sizes,
    std::string cell, int64_t num_directions, bool with_reserve, const OptionalTensor& resets,
    const OptionalTensor& packed_weights);

// int8 matrices as the kernels of this processor read them, [bytes]: to hand to every call.
Tensor layer_pack_quantized(at::TensorList weights, at::TensorList scales, std::string cell,
                            int64_t num_directions);

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    const OptionalTensor& lengths, const OptionalTensor& batch_sizes, const Tensor& output,
    const Tensor& reserve, std::string cell, int64_t num_directions, std::string precision,
    std::vector<bool> needs_grad, const OptionalTensor& d_cell_states, const OptionalTensor& resets,
    const OptionalTensor& recurrent_mask, const OptionalTensor& zoneout_h,
    const OptionalTensor& zoneout_c);

}  // namespace birnn
