// The recurrence of a layer-normalised GRU or LSTM (Ba et al. 2016) on tensors: its input is
// projected and normalised already, by operators of torch.
#pragma once

#include "layer/layer.h"

namespace birnn {

// gates_x: [T, B, D*G*H], float32 or float64, with bias_ih. weights: for each direction weight_hh
// [G*H, H], norm_hh [G*H], bias_hh [G*H] and, of an LSTM, norm_c [H], bias_c [H]. Returns output
// [T, B, D*H], h_n and c_n [D, B, H] ([0] but for the LSTM), and in training the reserve.
std::tuple<Tensor, Tensor, Tensor, Tensor> normalised_forward(
    const Tensor& gates_x, const OptionalTensor& hx, const OptionalTensor& cx,
    at::TensorList weights, const OptionalTensor& lengths, std::string cell, int64_t num_directions,
    double eps, bool training, const OptionalTensor& resets, std::string precision);

// The gradients of gates_x, hx, cx and the weights; [0] of those that needs_grad does not ask for.
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> normalised_backward(
    const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
    const OptionalTensor& d_cell_states, const Tensor& gates_x, const OptionalTensor& hx,
    const OptionalTensor& cx, at::TensorList weights, const OptionalTensor& lengths,
    const Tensor& output, const Tensor& reserve, std::string cell, int64_t num_directions,
    double eps, c10::List<bool> needs_grad, const OptionalTensor& resets, std::string precision);

// The backends. `p` is checked and not empty, its input gates_x, its weights contiguous. `reserve`
// [D, T*B, normalised_reserve_size], or [0] where none is kept.
ForwardResult normalised_forward_cpu(const Problem& p, double eps, const Tensor& reserve);
ForwardResult normalised_forward_cuda(const Problem& p, double eps, const Tensor& reserve);
BackwardResult normalised_backward_cpu(const Problem& p, double eps, const BackwardInputs& in);
BackwardResult normalised_backward_cuda(const Problem& p, double eps, const BackwardInputs& in);

// ---- what the backends share

// Direction d, but for what a pass alone has. output: rows of both directions.
NormalisedDirection normalised_direction(const Problem& p, int d, double eps, const Tensor& hx,
                                         const Tensor& output, const Tensor& reserve);

// What a backward pass writes of each step, and the gradients of the weights, which are sums of it
// over all rows: [0] where none is asked for.
struct NormalisedGradients {
  Tensor dgates;   // [D, N, dgates_blocks * H]
  Tensor dsums;    // [D, N, G*H]
  Tensor dnorm_c;  // [D, N, H] (LSTM only)
  std::vector<Tensor> d_weights;

  NormalisedGradients(const Problem& p, const std::vector<bool>& needs_grad, int64_t num_rows);

  // Lets the recurrence of direction d write the rows.
  void give(NormalisedDirection& direction, int d) const;
  // The gradient of weight i of direction d, undefined where none is asked for.
  Tensor of_weight(int d, int i) const;
  // Those of the norms and biases of direction d. reserve: [D, N or more, ...].
  void sum_up(int d, const Tensor& reserve) const;
  // [N, D*G*H], the gates in the order of the weights' rows.
  Tensor of_gates_x() const;

 private:
  const Problem& p_;
};

}  // namespace birnn
