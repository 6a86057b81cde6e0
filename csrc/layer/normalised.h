// The recurrence of a layer-normalised GRU or LSTM (Ba et al. 2016) on tensors of a CPU: its input
// is projected and normalised already, by operators of torch.
#pragma once

#include "layer/layer.h"

namespace birnn {

// gates_x: [T, B, D*G*H], float32 or float64, with bias_ih. weights: for each direction weight_hh
// [G*H, H], norm_hh [G*H], bias_hh [G*H] and, of an LSTM, norm_c [H], bias_c [H]. Returns output
// [T, B, D*H], h_n and c_n [D, B, H] ([0] but for the LSTM), and in training the reserve.
std::tuple<Tensor, Tensor, Tensor, Tensor> normalised_forward(
    const Tensor& gates_x, const OptionalTensor& hx, const OptionalTensor& cx,
    at::TensorList weights, const OptionalTensor& lengths, std::string cell, int64_t num_directions,
    double eps, bool training, const OptionalTensor& resets);

// The gradients of gates_x, hx, cx and the weights; [0] of those that needs_grad does not ask for.
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> normalised_backward(
    const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
    const OptionalTensor& d_cell_states, const Tensor& gates_x, const OptionalTensor& hx,
    const OptionalTensor& cx, at::TensorList weights, const OptionalTensor& lengths,
    const Tensor& output, const Tensor& reserve, std::string cell, int64_t num_directions,
    double eps, c10::List<bool> needs_grad, const OptionalTensor& resets);

}  // namespace birnn
