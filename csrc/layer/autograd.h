// The layer as a node of torch's autograd graph.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "layer/layer.h"

namespace birnn {

// output, h_n and c_n ([0] for a cell other than the LSTM) of one layer in eager code,
// differentiable where an operand requires it. Arguments as those of layer_forward; with
// recompute_activations no reserve is kept, and backward runs forward once more.
std::tuple<Tensor, Tensor, Tensor> eager_layer(
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
    const std::vector<Tensor>& weights, const OptionalTensor& lengths,
    const OptionalTensor& batch_sizes, const std::string& cell, int64_t num_directions,
    const std::string& precision, bool recompute_activations);

// What computes the gradients where they have to be differentiable in turn (create_graph): called
// with the arguments of functional._LayerBackward.forward.
void set_differentiable_backward(pybind11::object function);

}  // namespace birnn
