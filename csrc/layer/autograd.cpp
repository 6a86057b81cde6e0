#include "layer/autograd.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

namespace birnn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using ForwardOp = decltype(layer_forward);
using BackwardOp = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>(
    const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    const OptionalTensor& lengths, const OptionalTensor& batch_sizes, const Tensor& output,
    const Tensor& reserve, std::string cell, int64_t num_directions, std::string precision,
    c10::List<bool> needs_grad, const OptionalTensor& d_cell_states, const OptionalTensor& resets,
    const OptionalTensor& recurrent_mask, const OptionalTensor& zoneout_h,
    const OptionalTensor& zoneout_c);

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

struct PythonFunctions {
  pybind11::object differentiable_backward, cell_states;
};

// Lives as long as the process: the interpreter may be gone before this library is.
PythonFunctions& python_functions() {
  static auto* functions = new PythonFunctions;
  return *functions;
}

bool is_lstm(const std::string& cell) { return cell == "lstm" || cell == "lstm_peepholes"; }

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

// Where each tensor is among those that forward saves.
enum Saved {
  kInput,
  kHx,
  kCx,
  kLengths,
  kBatchSizes,
  kResets,
  kRecurrentMask,
  kZoneoutH,
  kZoneoutC,
  kOutput,
  kReserve,
  kOutputVersion,
  kWeights
};

// What a call is given beside the tensors that it can be differentiated by.
struct Options {
  OptionalTensor lengths, batch_sizes, resets;
  RegulariserTensors regularisers;
  std::string cell, precision;
  int64_t num_directions;
  bool with_cell_states, recompute_activations;
};

Tensor cell_states(const Tensor& input, const Tensor& c_n, const Tensor& reserve,
                   const OptionalTensor& lengths, const OptionalTensor& batch_sizes) {
  const pybind11::gil_scoped_acquire gil;
  return pybind11::cast<Tensor>(
      python_functions().cell_states(input, c_n, reserve, lengths, batch_sizes));
}

// The output may be changed in place before backward, as torch.nn allows: backward then computes it
// again. So what is saved of it shares its memory but not its version counter, which would refuse
// the change; beside it is saved, without elements, a tensor that does share the counter.
Tensor version_witness(const Tensor& t) {
  Tensor witness = at::detail::empty_cpu({0}, at::kFloat);
  witness.unsafeGetTensorImpl()->set_version_counter(t.unsafeGetTensorImpl()->version_counter());
  return witness;
}

// What was saved, and whether the witness's counter moved. While eager code unpacks, the witness
// has a counter that did not. Compiled autograd unpacks before it asks anybody, so that there the
// change is the error that it is for an operator of torch.
std::pair<variable_list, bool> unpack(AutogradContext* ctx) {
  const Tensor& witness = ctx->saved_data["witness"].toTensor();
  const auto saved_version = static_cast<uint32_t>(ctx->saved_data["version"].toInt());
  c10::TensorImpl* impl = witness.unsafeGetTensorImpl();
  const c10::VariableVersion counter = impl->version_counter();
  if (counter.current_version() == saved_version) return {ctx->get_saved_variables(), false};
  impl->set_version_counter(c10::VariableVersion(saved_version));
  try {
    variable_list saved = ctx->get_saved_variables();
    impl->set_version_counter(counter);
    return {std::move(saved), true};
  } catch (...) {
    impl->set_version_counter(counter);
    throw;
  }
}

}  // namespace

// Outside of the unnamed namespace: grad_fn and anomaly mode show its name.
struct RecurrentLayer : torch::autograd::Function<RecurrentLayer> {
  static constexpr bool is_traceable = true;  // by compiled autograd

  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& hx,
                               const OptionalTensor& cx, at::TensorList weights,
                               const Options& options) {
    const at::AutoDispatchBelowADInplaceOrView no_tracking;
    const auto& [recurrent_mask, zoneout_h, zoneout_c] = options.regularisers;
    const auto [output, h_n, c_n, reserve] = forward_op().call(
        input, hx, cx, weights, options.lengths, options.batch_sizes, options.cell,
        options.num_directions, options.with_cell_states || !options.recompute_activations,
        options.precision, options.resets, recurrent_mask, zoneout_h, zoneout_c);
    const Tensor witness = version_witness(output);
    variable_list saved(kWeights);
    saved[kInput] = input;
    if (hx) saved[kHx] = *hx;
    if (cx) saved[kCx] = *cx;
    if (options.lengths) saved[kLengths] = *options.lengths;
    if (options.batch_sizes) saved[kBatchSizes] = *options.batch_sizes;
    if (options.resets) saved[kResets] = *options.resets;
    if (recurrent_mask) saved[kRecurrentMask] = *recurrent_mask;
    if (zoneout_h) saved[kZoneoutH] = *zoneout_h;
    if (zoneout_c) saved[kZoneoutC] = *zoneout_c;
    saved[kOutput] = output.variable_data();
    if (!options.recompute_activations) saved[kReserve] = reserve;
    saved[kOutputVersion] = witness;
    saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["cell"] = options.cell;
    ctx->saved_data["num_directions"] = options.num_directions;
    ctx->saved_data["precision"] = options.precision;
    ctx->saved_data["witness"] = witness;
    ctx->saved_data["version"] = static_cast<int64_t>(witness._version());
    ctx->set_materialize_grads(false);
    if (!is_lstm(options.cell)) return {output, h_n};
    if (!options.with_cell_states) return {output, h_n, c_n};
    return {output, h_n, c_n,
            cell_states(input, c_n, reserve, options.lengths, options.batch_sizes)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    auto [saved, output_was_changed] = unpack(ctx);
    const std::vector<Tensor> weights(saved.begin() + kWeights, saved.end());
    const OptionalTensor hx = optional(saved[kHx]), cx = optional(saved[kCx]);
    const OptionalTensor lengths = optional(saved[kLengths]);
    const OptionalTensor batch_sizes = optional(saved[kBatchSizes]);
    const OptionalTensor resets = optional(saved[kResets]);
    const OptionalTensor recurrent_mask = optional(saved[kRecurrentMask]);
    const OptionalTensor zoneout_h = optional(saved[kZoneoutH]);
    const OptionalTensor zoneout_c = optional(saved[kZoneoutC]);
    const OptionalTensor d_output = optional(gradients[0]), d_h_n = optional(gradients[1]);
    const OptionalTensor d_c_n = gradients.size() > 2 ? optional(gradients[2]) : std::nullopt;
    const OptionalTensor d_cells = gradients.size() > 3 ? optional(gradients[3]) : std::nullopt;
    const std::string cell = ctx->saved_data["cell"].toStringRef();
    const int64_t num_directions = ctx->saved_data["num_directions"].toInt();
    const std::string precision = ctx->saved_data["precision"].toStringRef();
    if (output_was_changed || !saved[kReserve].defined()) {
      const at::AutoDispatchBelowADInplaceOrView no_tracking;
      std::tie(saved[kOutput], std::ignore, std::ignore, saved[kReserve]) = forward_op().call(
          saved[kInput], hx, cx, weights, lengths, batch_sizes, cell, num_directions, true,
          precision, resets, recurrent_mask, zoneout_h, zoneout_c);
    }

    // Only tensors that were given have an edge; a gradient has a place for each argument.
    c10::List<bool> needs_grad;
    needs_grad.reserve(3 + weights.size());
    size_t edge = 0;
    for (const bool given : {true, hx.has_value(), cx.has_value()})
      needs_grad.push_back(given && ctx->needs_input_grad(edge++));
    for (size_t i = 0; i < weights.size(); ++i) needs_grad.push_back(ctx->needs_input_grad(edge++));

    variable_list results;
    if (at::GradMode::is_enabled()) {
      results = differentiable_gradients({d_output, d_h_n, d_c_n, d_cells}, saved, weights, cell,
                                         num_directions, precision, needs_grad);
    } else {
      const at::AutoDispatchBelowADInplaceOrView no_tracking;
      auto [d_input, d_hx, d_cx, d_weights] = backward_op().call(
          d_output, d_h_n, d_c_n, saved[kInput], hx, cx, weights, lengths, batch_sizes,
          saved[kOutput], saved[kReserve], cell, num_directions, precision, needs_grad, d_cells,
          resets, recurrent_mask, zoneout_h, zoneout_c);
      results = {std::move(d_input), std::move(d_hx), std::move(d_cx)};
      for (Tensor& d_weight : d_weights) results.push_back(std::move(d_weight));
    }
    for (size_t i = 0; i < results.size(); ++i)
      if (!needs_grad[i]) results[i] = Tensor();
    results.emplace_back();  // Options
    return results;
  }

  static variable_list differentiable_gradients(const std::array<OptionalTensor, 4>& cotangents,
                                                const variable_list& saved,
                                                const std::vector<Tensor>& weights,
                                                const std::string& cell, int64_t num_directions,
                                                const std::string& precision,
                                                const c10::List<bool>& needs_grad) {
    const pybind11::gil_scoped_acquire gil;
    pybind11::list arguments;
    for (const OptionalTensor& cotangent : cotangents) arguments.append(pybind11::cast(cotangent));
    for (int i = kInput; i <= kReserve; ++i) arguments.append(pybind11::cast(optional(saved[i])));
    arguments.append(cell);
    arguments.append(num_directions);
    arguments.append(precision);
    arguments.append(
        pybind11::tuple(pybind11::cast(std::vector<bool>(needs_grad.begin(), needs_grad.end()))));
    for (const Tensor& weight : weights) arguments.append(pybind11::cast(weight));
    return pybind11::cast<variable_list>(
        python_functions().differentiable_backward(*pybind11::tuple(std::move(arguments))));
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> eager_layer(
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    const OptionalTensor& lengths, const OptionalTensor& batch_sizes, const std::string& cell,
    int64_t num_directions, const std::string& precision, bool with_cell_states,
    bool recompute_activations, const OptionalTensor& resets,
    const RegulariserTensors& regularisers) {
  TORCH_CHECK(!with_cell_states || is_lstm(cell), "birnn_cuda: cell states need cell 'lstm', got '",
              cell, "'");
  const auto requires_grad = [](const Tensor& t) { return t.requires_grad(); };
  const bool needs_grad =
      at::GradMode::is_enabled() &&
      (input.requires_grad() || (hx && hx->requires_grad()) || (cx && cx->requires_grad()) ||
       std::any_of(weights.begin(), weights.end(), requires_grad));
  if (!needs_grad) {
    const at::AutoDispatchBelowADInplaceOrView no_tracking;
    const auto& [recurrent_mask, zoneout_h, zoneout_c] = regularisers;
    auto [output, h_n, c_n, reserve] =
        forward_op().call(input, hx, cx, weights, lengths, batch_sizes, cell, num_directions,
                          with_cell_states,  // the reserve holds them
                          precision, resets, recurrent_mask, zoneout_h, zoneout_c);
    Tensor cells;
    if (with_cell_states) cells = cell_states(input, c_n, reserve, lengths, batch_sizes);
    return {std::move(output), std::move(h_n), std::move(c_n), std::move(cells)};
  }
  const Options options{lengths,   batch_sizes,    resets,           regularisers,         cell,
                        precision, num_directions, with_cell_states, recompute_activations};
  const variable_list outputs = RecurrentLayer::apply(input, hx, cx, weights, options);
  return {outputs[0], outputs[1], outputs.size() > 2 ? outputs[2] : at::empty({0}, input.options()),
          outputs.size() > 3 ? outputs[3] : Tensor()};
}

std::tuple<Tensor, Tensor> eager_cell(const Tensor& input, const OptionalTensor& hx,
                                      const OptionalTensor& cx, at::TensorList weights,
                                      const std::string& cell, const std::string& precision) {
  const bool is_batched = input.dim() == 2;
  const auto as_layer = [&](const Tensor& t) {
    return is_batched ? t.unsqueeze(0) : t.unsqueeze(0).unsqueeze(0);
  };
  const auto state = [&](const OptionalTensor& t) -> OptionalTensor {
    return t ? OptionalTensor(as_layer(*t)) : std::nullopt;
  };
  const auto [output, h_n, c_n, cells] =
      eager_layer(as_layer(input), state(hx), state(cx), weights, {}, {}, cell, 1, precision, false,
                  false, {}, {});
  const auto as_given = [&](const Tensor& t) {
    return is_batched ? t.select(0, 0) : t.select(0, 0).select(0, 0);
  };
  return {as_given(h_n), cell == "lstm" ? as_given(c_n) : c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_operator(
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    const OptionalTensor& lengths, const OptionalTensor& batch_sizes, std::string cell,
    int64_t num_directions, std::string precision, bool with_cell_states,
    bool recompute_activations, const OptionalTensor& resets, const OptionalTensor& recurrent_mask,
    const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c) {
  auto results = eager_layer(input, hx, cx, weights, lengths, batch_sizes, cell, num_directions,
                             precision, with_cell_states, recompute_activations, resets,
                             {recurrent_mask, zoneout_h, zoneout_c});
  if (!with_cell_states) std::get<3>(results) = at::empty({0}, input.options());
  return results;
}

void set_python_functions(pybind11::object differentiable_backward, pybind11::object cell_states) {
  python_functions() = {std::move(differentiable_backward), std::move(cell_states)};
}

}  // namespace birnn
