// The module birnn_cuda._C, and the same functions as dispatcher ops: torch.ops.birnn_cuda.forward
// and torch.ops.birnn_cuda.backward. No logic here.
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include <map>
#include <optional>

#include "cpu/instruction_set.h"
#include "cuda/plan/plan.h"
#include "cuda/plan/residency.h"
#include "layer/autograd.h"
#include "layer/layer.h"
#include "layer/normalised.h"
#if defined(BIRNN_WITH_CUDA)
#include "layer/cuda/runtime.h"
#endif

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch_version"] = TORCH_VERSION;
  info["compiler"] =
#if defined(__clang__)
      "Clang " __clang_version__;
#elif defined(__GNUC__)
      "GCC " __VERSION__;
#else
      "unknown";
#endif
  info["cpu_instruction_set"] = birnn::cpu::instruction_set_name();
  info["cpu_products"] = birnn::cpu::product_kernel() ? "own" : "blas";
  using birnn::cpu::WeightFormat;
  for (const auto& [name, format] :
       {std::pair{"float32", WeightFormat::kFloat32},
        std::pair{"bfloat16", WeightFormat::kBFloat16},
        std::pair{"float16", WeightFormat::kFloat16}, std::pair{"int8", WeightFormat::kInt8}})
    info[(std::string("cpu_") + name).c_str()] = birnn::cpu::kernels_for(format).instruction_set;
#if defined(BIRNN_WITH_CUDA)
  info["cuda_version"] = BIRNN_CUDA_VERSION;
  info["cuda_architectures"] = BIRNN_CUDA_ARCHITECTURES;
#else
  info["cuda_version"] = pybind11::none();
  info["cuda_architectures"] = "";
#endif
  return info;
}

template <class Value>
Value value_of(const std::vector<std::pair<std::string, Value>>& values, const std::string& name,
               const char* what) {
  std::string names;
  for (const auto& [known, value] : values) {
    if (known == name) return value;
    names += (names.empty() ? "" : ", ") + known;
  }
  throw pybind11::value_error(std::string(what) + " must be one of " + names + ", got \"" + name +
                              "\"");
}

pybind11::dict device_dict(const birnn::cuda::DeviceLimits& device) {
  pybind11::dict limits;
  limits["name"] = device.name;
  limits["compute_capability"] = device.compute_capability;
  limits["num_multiprocessors"] = device.num_multiprocessors;
  limits["shared_bytes_per_block"] = device.shared_bytes_per_block;
  limits["max_cluster_size"] = device.max_cluster_size;
  limits["memory_bytes"] = device.memory_bytes;
  // Of a device of this process, whose driver plan asks.
  limits["index"] =
      device.index < 0 ? pybind11::object(pybind11::none()) : pybind11::int_(device.index);
  return limits;
}

pybind11::list known_devices() {
  pybind11::list devices;
  for (const birnn::cuda::DeviceLimits& device : birnn::cuda::known_devices())
    devices.append(device_dict(device));
  return devices;
}

pybind11::dict division_dict(const birnn::cuda::Choice& choice) {
  pybind11::dict division;
  division["kernel"] = birnn::cuda::name_of(choice.kernel);
  division["blocks"] = choice.blocks;
  division["batch_tiles"] = choice.batch_tiles;
  division["k_split"] = choice.k_split;
  division["groups_at_once"] = choice.groups_at_once;
  division["microseconds_per_step"] = choice.microseconds_per_step;
  division["resident_clusters"] = choice.resident_clusters;
  division["clusters_apart"] = choice.clusters_apart;
  return division;
}

std::optional<birnn::cuda::Choice> choice_of(const std::optional<pybind11::dict>& division) {
  if (!division) return {};
  birnn::cuda::Choice choice;
  const std::string name = (*division)["kernel"].cast<std::string>();
  const std::optional<birnn::cuda::Kernel> kernel = birnn::cuda::kernel_of(name);
  if (!kernel) throw pybind11::value_error(birnn::cuda::no_such_kernel(name));
  choice.kernel = *kernel;
  choice.blocks = (*division)["blocks"].cast<int>();
  choice.batch_tiles = (*division)["batch_tiles"].cast<int>();
  choice.k_split = (*division)["k_split"].cast<int>();
  choice.groups_at_once = (*division)["groups_at_once"].cast<int>();
  return choice;
}

pybind11::dict pass_dict(const birnn::cuda::PassPlan& plan) {
  pybind11::dict result = division_dict(plan.choice);
  result["reason"] = plan.reason;
  result["parts"] = plan.parts;
  result["ctas"] = plan.ctas;
  result["threads"] = plan.threads;
  result["launches"] = plan.launches;
  result["workspace_bytes"] = plan.workspace_bytes;
  return result;
}

birnn::cuda::PlanRequest plan_request(const pybind11::dict& device, const std::string& cell,
                                      const std::string& dtype, int64_t seq_len, int64_t batch_size,
                                      int64_t input_size, int64_t hidden_size, int64_t proj_size,
                                      int num_directions, const std::string& precision) {
  using birnn::Cell;
  using birnn::Element;
  birnn::cuda::PlanRequest request;
  request.shape.cell = value_of<Cell>({{"tanh", Cell::kTanh},
                                       {"relu", Cell::kRelu},
                                       {"gru", Cell::kGru},
                                       {"lstm", Cell::kLstm},
                                       {"gru_reset_before", Cell::kGruResetBefore},
                                       {"lstm_peepholes", Cell::kLstmPeepholes}},
                                      cell, "cell");
  request.shape.element = value_of<Element>({{"float64", Element::kFloat64},
                                             {"float32", Element::kFloat32},
                                             {"float16", Element::kFloat16},
                                             {"bfloat16", Element::kBFloat16}},
                                            dtype, "dtype");
  request.shape.seq_len = seq_len;
  request.shape.batch_size = batch_size;
  request.shape.hidden_size = hidden_size;
  request.shape.proj_size = proj_size;
  request.input_size = input_size;
  request.num_directions = num_directions;
  request.ieee = value_of<bool>({{"ieee", true}, {"tf32", false}}, precision, "precision");
  request.device.name = device["name"].cast<std::string>();
  request.device.compute_capability = device["compute_capability"].cast<int>();
  request.device.num_multiprocessors = device["num_multiprocessors"].cast<int>();
  request.device.shared_bytes_per_block = device["shared_bytes_per_block"].cast<int64_t>();
  request.device.max_cluster_size = device["max_cluster_size"].cast<int>();
  request.device.memory_bytes = device["memory_bytes"].cast<int64_t>();
#if defined(BIRNN_WITH_CUDA)
  if (const pybind11::object index = device["index"]; !index.is_none()) {
    const birnn::cuda::DeviceLimits& here = birnn::gpu::limits_of(
        at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index.cast<int>())));
    request.device.index = here.index;
    request.device.ask_driver = here.ask_driver;
  }
#endif
  return request;
}

pybind11::dict plan(const pybind11::dict& device, const std::string& cell, const std::string& dtype,
                    int64_t seq_len, int64_t batch_size, int64_t input_size, int64_t hidden_size,
                    int64_t proj_size, int num_directions, const std::string& precision,
                    bool training, bool lengths, bool resets, bool recurrent_dropout, bool zoneout,
                    bool captured, const std::string& kernel,
                    const std::optional<pybind11::dict>& forward,
                    const std::optional<pybind11::dict>& backward) {
  birnn::cuda::PlanRequest request =
      plan_request(device, cell, dtype, seq_len, batch_size, input_size, hidden_size, proj_size,
                   num_directions, precision);
  request.training = training;
  request.has_lengths = lengths;
  request.shape.resets = resets;
  request.shape.recurrent_dropout = recurrent_dropout;
  request.shape.zoneout = zoneout;
  request.captured = captured;
  request.kernel = kernel;
  request.forward = choice_of(forward);
  request.backward = choice_of(backward);
  const birnn::cuda::Plan plan = birnn::cuda::plan(request);
  if (!plan.error.empty()) throw pybind11::value_error(plan.error);
  pybind11::dict result;
  result["forward"] = pass_dict(plan.forward);
  if (training)
    result["backward"] = pass_dict(plan.backward);
  else
    result["backward"] = pybind11::none();
  result["reserve_bytes"] = plan.reserve_bytes;
  result["residency"] = birnn::cuda::residency_source(request);
  return result;
}

pybind11::dict cost_constants() {
  const birnn::cuda::cost::Constants constants;
  pybind11::dict values;
  for (const auto& [name, value] : birnn::cuda::cost::kNamedConstants)
    values[name] = constants.*value;
  return values;
}

birnn::cuda::cost::Constants constants_of(const std::map<std::string, double>& values) {
  birnn::cuda::cost::Constants constants;
  for (const auto& [name, value] : values) {
    std::vector<std::pair<std::string, double birnn::cuda::cost::Constants::*>> known;
    for (const auto& constant : birnn::cuda::cost::kNamedConstants)
      known.emplace_back(constant.name, constant.value);
    constants.*value_of(known, name, "a constant") = value;
  }
  return constants;
}

// blocks, batch_tiles, k_split, resident_clusters, clusters_apart
using AnswerRows = std::vector<std::tuple<int, int, int, int64_t, int64_t>>;

std::tuple<pybind11::list, int> divisions(const pybind11::dict& device, const std::string& pass,
                                          const std::string& cell, const std::string& dtype,
                                          int64_t seq_len, int64_t batch_size, int64_t input_size,
                                          int64_t hidden_size, int num_directions,
                                          const std::string& precision, bool captured,
                                          const std::map<std::string, double>& constants,
                                          const std::optional<AnswerRows>& resident_clusters) {
  using birnn::cuda::Pass;
  const Pass side =
      value_of<Pass>({{"forward", Pass::kForward}, {"backward", Pass::kBackward}}, pass, "pass");
  birnn::cuda::PlanRequest request =
      plan_request(device, cell, dtype, seq_len, batch_size, input_size, hidden_size, 0,
                   num_directions, precision);
  request.captured = captured;
  if (resident_clusters) {
    request.answers.emplace();
    for (const auto& [blocks, batch_tiles, k_split, clusters, apart] : *resident_clusters)
      request.answers->emplace(std::tuple(blocks, batch_tiles, k_split),
                               std::pair(clusters, apart));
  }
  const birnn::cuda::Divisions all = birnn::cuda::divisions(request, side, constants_of(constants));
  if (!all.error.empty()) throw pybind11::value_error(all.error);
  pybind11::list choices;
  for (const birnn::cuda::Choice& choice : all.choices) choices.append(division_dict(choice));
  return {choices, all.chosen};
}

// The dispatcher passes a list of booleans as a List.
std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>> backward_op(
    const birnn::OptionalTensor& d_output, const birnn::OptionalTensor& d_h_n,
    const birnn::OptionalTensor& d_c_n, const at::Tensor& input, const birnn::OptionalTensor& hx,
    const birnn::OptionalTensor& cx, at::TensorList weights, const birnn::OptionalTensor& lengths,
    const birnn::OptionalTensor& batch_sizes, const at::Tensor& output, const at::Tensor& reserve,
    std::string cell, int64_t num_directions, std::string precision, c10::List<bool> needs_grad,
    const birnn::OptionalTensor& d_cell_states, const birnn::OptionalTensor& resets,
    const birnn::OptionalTensor& recurrent_mask, const birnn::OptionalTensor& zoneout_h,
    const birnn::OptionalTensor& zoneout_c) {
  return birnn::layer_backward(d_output, d_h_n, d_c_n, input, hx, cx, weights, lengths, batch_sizes,
                               output, reserve, std::move(cell), num_directions,
                               std::move(precision), {needs_grad.begin(), needs_grad.end()},
                               d_cell_states, resets, recurrent_mask, zoneout_h, zoneout_c);
}

}  // namespace

TORCH_LIBRARY(birnn_cuda, m) {
  m.def(
      "forward(Tensor input, Tensor? hx, Tensor? cx, Tensor[] weights, Tensor? lengths, "
      "Tensor? batch_sizes, str cell, int num_directions, bool training, str precision, "
      "Tensor? resets=None, Tensor? recurrent_mask=None, Tensor? zoneout_h=None, "
      "Tensor? zoneout_c=None) -> "
      "(Tensor output, Tensor h_n, Tensor c_n, Tensor reserve)");
  m.def(
      "quantized_forward(Tensor input, Tensor? hx, Tensor? cx, Tensor[] weights, Tensor[] scales, "
      "Tensor? lengths, Tensor? batch_sizes, str cell, int num_directions, bool with_reserve, "
      "Tensor? resets=None, Tensor? packed_weights=None) -> "
      "(Tensor output, Tensor h_n, Tensor c_n, Tensor reserve)");
  m.def(
      "pack_quantized(Tensor[] weights, Tensor[] scales, str cell, int num_directions) -> Tensor");
  m.def(
      "backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor input, Tensor? hx, "
      "Tensor? cx, Tensor[] weights, Tensor? lengths, Tensor? batch_sizes, Tensor output, "
      "Tensor reserve, str cell, int num_directions, str precision, bool[] needs_grad, "
      "Tensor? d_cell_states=None, Tensor? resets=None, Tensor? recurrent_mask=None, "
      "Tensor? zoneout_h=None, Tensor? zoneout_c=None) -> "
      "(Tensor d_input, Tensor d_hx, Tensor d_cx, Tensor[] d_weights)");
  m.def(
      "normalised_forward(Tensor gates_x, Tensor? hx, Tensor? cx, Tensor[] weights, "
      "Tensor? lengths, str cell, int num_directions, float eps, bool training, "
      "Tensor? resets=None, str precision=\"ieee\") -> "
      "(Tensor output, Tensor h_n, Tensor c_n, Tensor reserve)");
  m.def(
      "normalised_backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, "
      "Tensor? d_cell_states, Tensor gates_x, Tensor? hx, Tensor? cx, Tensor[] weights, "
      "Tensor? lengths, Tensor output, Tensor reserve, str cell, int num_directions, float eps, "
      "bool[] needs_grad, Tensor? resets=None, str precision=\"ieee\") -> "
      "(Tensor d_gates_x, Tensor d_hx, Tensor d_cx, Tensor[] d_weights)");
  // For what records operators and runs them later, as torch.jit.trace does.
  m.def(
      "layer(Tensor input, Tensor? hx, Tensor? cx, Tensor[] weights, Tensor? lengths, "
      "Tensor? batch_sizes, str cell, int num_directions, str precision, bool with_cell_states, "
      "bool recompute_activations, Tensor? resets=None, Tensor? recurrent_mask=None, "
      "Tensor? zoneout_h=None, Tensor? zoneout_c=None) -> "
      "(Tensor output, Tensor h_n, Tensor c_n, Tensor cell_states)",
      birnn::layer_operator);
}

TORCH_LIBRARY_IMPL(birnn_cuda, CPU, m) {
  m.impl("forward", birnn::layer_forward);
  m.impl("quantized_forward", birnn::layer_quantized_forward);
  m.impl("pack_quantized", birnn::layer_pack_quantized);
  m.impl("normalised_forward", birnn::normalised_forward);
  m.impl("normalised_backward", birnn::normalised_backward);
  m.impl("backward", backward_op);
}

TORCH_LIBRARY_IMPL(birnn_cuda, CUDA, m) {
  m.impl("forward", birnn::layer_forward);
  m.impl("normalised_forward", birnn::normalised_forward);
  m.impl("normalised_backward", birnn::normalised_backward);
  m.impl("backward", backward_op);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of birnn_cuda; see birnn_cuda.ops for the operators they register.";
  m.def(
      "eager_layer",
      [](const at::Tensor& input, const birnn::OptionalTensor& hx, const birnn::OptionalTensor& cx,
         const std::vector<at::Tensor>& weights, const birnn::OptionalTensor& lengths,
         const birnn::OptionalTensor& batch_sizes, const std::string& cell, int64_t num_directions,
         const std::string& precision, bool with_cell_states, bool recompute_activations,
         const birnn::OptionalTensor& resets, const birnn::OptionalTensor& recurrent_mask,
         const birnn::OptionalTensor& zoneout_h, const birnn::OptionalTensor& zoneout_c) {
        return birnn::eager_layer(input, hx, cx, weights, lengths, batch_sizes, cell,
                                  num_directions, precision, with_cell_states,
                                  recompute_activations, resets,
                                  {recurrent_mask, zoneout_h, zoneout_c});
      },
      pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def(
      "eager_cell",
      [](const at::Tensor& input, const birnn::OptionalTensor& hx, const birnn::OptionalTensor& cx,
         const std::vector<at::Tensor>& weights, const std::string& cell,
         const std::string& precision) {
        return birnn::eager_cell(input, hx, cx, weights, cell, precision);
      },
      pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("set_python_functions", &birnn::set_python_functions);
  m.def("build_info", &build_info,
        "Compiler, torch version, instruction set and CUDA architectures of this build.");
  m.def("known_devices", &known_devices, "GPUs that plan knows, as the dicts that it takes.");
#if defined(BIRNN_WITH_CUDA)
  m.def(
      "device_limits",
      [](int index) {
        return device_dict(
            birnn::gpu::limits_of(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index))));
      },
      "A GPU of this machine, by its index, as the dict that plan takes.");
#endif
  using pybind11::arg;
  m.def("plan", &plan, "Which kernel a shape runs on a GPU, its launches and memory, and why.",
        arg("device"), pybind11::kw_only(), arg("cell"), arg("dtype"), arg("seq_len"),
        arg("batch_size"), arg("input_size"), arg("hidden_size"), arg("proj_size") = 0,
        arg("num_directions") = 2, arg("precision") = "ieee", arg("training") = true,
        arg("lengths") = false, arg("resets") = false, arg("recurrent_dropout") = false,
        arg("zoneout") = false, arg("captured") = false, arg("kernel") = "",
        arg("forward") = pybind11::none(), arg("backward") = pybind11::none());
  m.def("divisions", &divisions,
        "Every way to run a pass of a shape, estimated by these constants, and the plan's index.",
        arg("device"), arg("pass_"), pybind11::kw_only(), arg("cell"), arg("dtype"), arg("seq_len"),
        arg("batch_size"), arg("input_size"), arg("hidden_size"), arg("num_directions") = 2,
        arg("precision") = "ieee", arg("captured") = false,
        arg("constants") = std::map<std::string, double>(),
        arg("resident_clusters") = pybind11::none());
  m.def("cost_constants", &cost_constants, "The cost model's constants, as divisions takes them.");
  m.def(
      "force",
      [](const std::string& kernel, int backward_parts,
         const std::optional<pybind11::dict>& forward,
         const std::optional<pybind11::dict>& backward) {
        const std::string error =
            birnn::cuda::force({kernel, backward_parts, choice_of(forward), choice_of(backward)});
        if (!error.empty()) throw pybind11::value_error(error);
      },
      "What every call on a GPU must do from now on: run this kernel (\"\": the best), divide its "
      "backward pass into as many parts (0: as the plan says), and run a pass by this division of "
      "divisions, if one is given.",
      arg("kernel") = "", arg("backward_parts") = 0, arg("forward") = pybind11::none(),
      arg("backward") = pybind11::none());
  m.def(
      "forced",
      [] {
        const birnn::cuda::Forced forced = birnn::cuda::forced();
        const auto dict = [](const std::optional<birnn::cuda::Choice>& choice) {
          return choice ? std::optional(division_dict(*choice)) : std::nullopt;
        };
        return std::make_tuple(forced.kernel, forced.backward_parts, dict(forced.forward),
                               dict(forced.backward));
      },
      "The arguments of the latest call of force.");
}
