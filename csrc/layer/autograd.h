// The layer as a node of torch's autograd graph.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "layer/layer.h"

namespace birnn {

// output, h_n, c_n ([0] for a cell other than the LSTM) and, undefined unless asked for, the cell
// states of one layer in eager code, differentiable where an operand requires it. Arguments as
// those of layer_forward; with recompute_activations no reserve is kept, and backward runs forward
// once more.
std::tuple<Tensor, Tensor, Tensor, Tensor> eager_layer(
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    const OptionalTensor& lengths, const OptionalTensor& batch_sizes, const std::string& cell,
    int64_t num_directions, const std::string& precision, bool with_cell_states,
    bool recompute_activations, const OptionalTensor& resets,
    const RegulariserTensors& regularisers);

// One step of one direction: input [B, I] or [I], states [B, H] or [H]. The states after it, the
// second [0] for a cell other than the LSTM.
std::tuple<Tensor, Tensor> eager_cell(const Tensor& input, const OptionalTensor& hx,
                                      const OptionalTensor& cx, at::TensorList weights,
                                      const std::string& cell, const std::string& precision);

// eager_layer as an operator: cell states that were not asked for are [0].
std::tuple<Tensor, Tensor, Tensor, Tensor> layer_operator(
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    const OptionalTensor& lengths, const OptionalTensor& batch_sizes, std::string cell,
    int64_t num_directions, std::string precision, bool with_cell_states,
    bool recompute_activations, const OptionalTensor& resets, const OptionalTensor& recurrent_mask,
    const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c);

// What is called back: the gradients where they have to be differentiable in turn (create_graph),
// with the arguments of functional._LayerBackward.forward; and ops.cell_states.
void set_python_functions(pybind11::object differentiable_backward, pybind11::object cell_states);

}  // namespace birnn
