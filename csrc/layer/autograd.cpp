#include "layer/autograd.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

namespace birnn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using ForwardOp = decltype(layer_forward);
using BackwardOp = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>(
    const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
    std::vector<Tensor> weights, const OptionalTensor& lengths, const OptionalTensor& batch_sizes,
    const Tensor& output, const Tensor& reserve, std::string cell, int64_t num_directions,
    std::string precision, c10::List<bool> needs_grad, const OptionalTensor& d_cell_states);

// The registered ops, rather than the functions behind them: fake tensors, and whatever else
// watches the dispatcher, see them.
const c10::TypedOperatorHandle<ForwardOp>& forward_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("birnn_cuda::forward", "").typed<ForwardOp>();
  return op;
}

const c10::TypedOperatorHandle<BackwardOp>& backward_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("birnn_cuda::backward", "")
                             .typed<BackwardOp>();
  return op;
}

// Lives as long as the process: the interpreter may be gone before this library is.
pybind11::object& differentiable_backward() {
  static auto* function = new pybind11::object;
  return *function;
}

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

// Where each tensor is among those that forward saves.
enum Saved { kInput, kHx, kCx, kLengths, kBatchSizes, kOutput, kReserve, kWeights };

// What a call is given beside the tensors that it can be differentiated by.
struct Options {
  OptionalTensor lengths, batch_sizes;
  std::string cell, precision;
  int64_t num_directions;
  bool recompute_activations;
};

}  // namespace

// Outside of the unnamed namespace: grad_fn and anomaly mode show its name.
struct RecurrentLayer : torch::autograd::Function<RecurrentLayer> {
  static constexpr bool is_traceable = true;  // by compiled autograd

  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& hx,
                               const OptionalTensor& cx, at::TensorList weights,
                               const Options& options) {
    const at::AutoDispatchBelowADInplaceOrView no_tracking;
    const auto [output, h_n, c_n, reserve] = forward_op().call(
        input, hx, cx, weights.vec(), options.lengths, options.batch_sizes, options.cell,
        options.num_directions, !options.recompute_activations, options.precision);
    variable_list saved(kWeights);
    saved[kInput] = input;
    if (hx) saved[kHx] = *hx;
    if (cx) saved[kCx] = *cx;
    if (options.lengths) saved[kLengths] = *options.lengths;
    if (options.batch_sizes) saved[kBatchSizes] = *options.batch_sizes;
    saved[kOutput] = output;
    if (!options.recompute_activations) saved[kReserve] = reserve;
    saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["cell"] = options.cell;
    ctx->saved_data["num_directions"] = options.num_directions;
    ctx->saved_data["precision"] = options.precision;
    ctx->set_materialize_grads(false);
    if (options.cell == "lstm") return {output, h_n, c_n};
    return {output, h_n};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<Tensor> weights(saved.begin() + kWeights, saved.end());
    const OptionalTensor hx = optional(saved[kHx]), cx = optional(saved[kCx]);
    const OptionalTensor lengths = optional(saved[kLengths]);
    const OptionalTensor batch_sizes = optional(saved[kBatchSizes]);
    const OptionalTensor d_output = optional(gradients[0]), d_h_n = optional(gradients[1]);
    const OptionalTensor d_c_n = gradients.size() > 2 ? optional(gradients[2]) : std::nullopt;
    const std::string cell = ctx->saved_data["cell"].toStringRef();
    const int64_t num_directions = ctx->saved_data["num_directions"].toInt();
    const std::string precision = ctx->saved_data["precision"].toStringRef();

    // Only tensors that were given have an edge; a gradient has a place for each argument.
    c10::List<bool> needs_grad;
    needs_grad.reserve(3 + weights.size());
    size_t edge = 0;
    for (const bool given : {true, hx.has_value(), cx.has_value()})
      needs_grad.push_back(given && ctx->needs_input_grad(edge++));
    for (size_t i = 0; i < weights.size(); ++i) needs_grad.push_back(ctx->needs_input_grad(edge++));

    variable_list results;
    if (at::GradMode::is_enabled()) {
      results = differentiable_gradients(d_output, d_h_n, d_c_n, saved, weights, cell,
                                         num_directions, precision, needs_grad);
    } else {
      const at::AutoDispatchBelowADInplaceOrView no_tracking;
      Tensor reserve = saved[kReserve];
      if (!reserve.defined())
        reserve =
            std::get<3>(forward_op().call(saved[kInput], hx, cx, weights, lengths, batch_sizes,
                                          cell, num_directions, true, precision));
      auto [d_input, d_hx, d_cx, d_weights] = backward_op().call(
          d_output, d_h_n, d_c_n, saved[kInput], hx, cx, weights, lengths, batch_sizes,
          saved[kOutput], reserve, cell, num_directions, precision, needs_grad, std::nullopt);
      results = {std::move(d_input), std::move(d_hx), std::move(d_cx)};
      for (Tensor& d_weight : d_weights) results.push_back(std::move(d_weight));
    }
    for (size_t i = 0; i < results.size(); ++i)
      if (!needs_grad[i]) results[i] = Tensor();
    results.emplace_back();  // Options
    return results;
  }

  static variable_list differentiable_gradients(
      const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
      const variable_list& saved, const std::vector<Tensor>& weights, const std::string& cell,
      int64_t num_directions, const std::string& precision, const c10::List<bool>& needs_grad) {
    const pybind11::gil_scoped_acquire gil;
    pybind11::list arguments;
    for (const OptionalTensor& gradient : {d_output, d_h_n, d_c_n})
      arguments.append(pybind11::cast(gradient));
    arguments.append(pybind11::none());  // of the cell states
    for (int i = kInput; i < kWeights; ++i) arguments.append(pybind11::cast(optional(saved[i])));
    arguments.append(cell);
    arguments.append(num_directions);
    arguments.append(precision);
    arguments.append(
        pybind11::tuple(pybind11::cast(std::vector<bool>(needs_grad.begin(), needs_grad.end()))));
    for (const Tensor& weight : weights) arguments.append(pybind11::cast(weight));
    return pybind11::cast<variable_list>(
        differentiable_backward()(*pybind11::tuple(std::move(arguments))));
  }
};

std::tuple<Tensor, Tensor, Tensor> eager_layer(
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
    const std::vector<Tensor>& weights, const OptionalTensor& lengths,
    const OptionalTensor& batch_sizes, const std::string& cell, int64_t num_directions,
    const std::string& precision, bool recompute_activations) {
  const auto requires_grad = [](const Tensor& t) { return t.requires_grad(); };
  const bool needs_grad =
      at::GradMode::is_enabled() &&
      (input.requires_grad() || (hx && hx->requires_grad()) || (cx && cx->requires_grad()) ||
       std::any_of(weights.begin(), weights.end(), requires_grad));
  if (!needs_grad) {
    const at::AutoDispatchBelowADInplaceOrView no_tracking;
    auto [output, h_n, c_n, reserve] = forward_op().call(
        input, hx, cx, weights, lengths, batch_sizes, cell, num_directions, false, precision);
    return {std::move(output), std::move(h_n), std::move(c_n)};
  }
  const Options options{lengths,   batch_sizes,    cell,
                        precision, num_directions, recompute_activations};
  const variable_list outputs =
      RecurrentLayer::apply(input, hx, cx, at::TensorList(weights), options);
  return {outputs[0], outputs[1],
          outputs.size() > 2 ? outputs[2] : at::empty({0}, input.options())};
}

void set_differentiable_backward(pybind11::object function) {
  differentiable_backward() = std::move(function);
}

}  // namespace birnn
