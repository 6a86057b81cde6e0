// The GPU layer as a Python module on CPU tensors: csrc's own layer, plan and kernels, with the
// emulator below them. Its functions are those of birnn_cuda._C.
//
// One translation unit, because torch's headers take nearly all of the time of a build.
#include <torch/csrc/utils/pybind.h>

#include "cpu/kept_memory.cpp"
#include "layer/cuda/backward.cpp"
#include "layer/cuda/forward.cpp"
#include "layer/cuda/layer.cpp"
#include "layer/cuda/normalised.cpp"
#include "layer/cuda/rows.cpp"
#include "layer/cuda/weight_gradients.cpp"
#include "layer/layer.cpp"
#include "layer/normalised.cpp"
#include "recording.cpp"
#include "runtime_emulated.cpp"

namespace birnn {

// The CPU backend is not part of this module.
ForwardResult forward_cpu(const Problem&, bool) {
  TORCH_CHECK(false, "the CPU backend was called");
}
BackwardResult backward_cpu(const Problem&, const BackwardInputs&) {
  TORCH_CHECK(false, "the CPU backend was called");
}
ForwardResult normalised_forward_cpu(const Problem&, double, const Tensor&) {
  TORCH_CHECK(false, "the CPU backend was called");
}
BackwardResult normalised_backward_cpu(const Problem&, double, const BackwardInputs&) {
  TORCH_CHECK(false, "the CPU backend was called");
}
Tensor pack_weights_cpu(const Problem&) { TORCH_CHECK(false, "the CPU backend was called"); }

}  // namespace birnn

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using birnn::OptionalTensor, birnn::Tensor, std::string, std::vector;
  m.def("forward", [](const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                      const vector<Tensor>& weights, const OptionalTensor& lengths,
                      const OptionalTensor& batch_sizes, const string& cell, int64_t num_directions,
                      bool training, const string& precision, const OptionalTensor& resets,
                      const OptionalTensor& recurrent_mask, const OptionalTensor& zoneout_h,
                      const OptionalTensor& zoneout_c) {
    return birnn::layer_forward(input, hx, cx, weights, lengths, batch_sizes, cell, num_directions,
                                training, precision, resets, recurrent_mask, zoneout_h, zoneout_c);
  });
  m.def("backward",
        [](const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
           const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
           const vector<Tensor>& weights, const OptionalTensor& lengths,
           const OptionalTensor& batch_sizes, const Tensor& output, const Tensor& reserve,
           const string& cell, int64_t num_directions, const string& precision,
           const vector<bool>& needs_grad, const OptionalTensor& d_cell_states,
           const OptionalTensor& resets, const OptionalTensor& recurrent_mask,
           const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c) {
          return birnn::layer_backward(d_output, d_h_n, d_c_n, input, hx, cx, weights, lengths,
                                       batch_sizes, output, reserve, cell, num_directions,
                                       precision, needs_grad, d_cell_states, resets, recurrent_mask,
                                       zoneout_h, zoneout_c);
        });
  m.def("normalised_forward",
        [](const Tensor& gates_x, const OptionalTensor& hx, const OptionalTensor& cx,
           const vector<Tensor>& weights, const OptionalTensor& lengths, const string& cell,
           int64_t num_directions, double eps, bool training, const OptionalTensor& resets,
           const string& precision) {
          return birnn::normalised_forward(gates_x, hx, cx, weights, lengths, cell, num_directions,
                                           eps, training, resets, precision);
        });
  m.def("normalised_backward",
        [](const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
           const OptionalTensor& d_cell_states, const Tensor& gates_x, const OptionalTensor& hx,
           const OptionalTensor& cx, const vector<Tensor>& weights, const OptionalTensor& lengths,
           const Tensor& output, const Tensor& reserve, const string& cell, int64_t num_directions,
           double eps, const vector<bool>& needs_grad, const OptionalTensor& resets,
           const string& precision) {
          c10::List<bool> needs;
          for (const bool need : needs_grad) needs.push_back(need);
          return birnn::normalised_backward(d_output, d_h_n, d_c_n, d_cell_states, gates_x, hx, cx,
                                            weights, lengths, output, reserve, cell, num_directions,
                                            eps, needs, resets, precision);
        });
  m.def("force", [](const std::string& kernel, int backward_parts) {
    const std::string error = birnn::cuda::force({kernel, backward_parts, {}, {}});
    if (!error.empty()) throw pybind11::value_error(error);
  });
  using Sizes = std::array<int64_t, 4>;
  static const auto request_of = [](int cell, int element, const Sizes& sizes,
                                    const std::string& kernel) {
    birnn::cuda::PlanRequest request;
    request.shape.cell = static_cast<birnn::Cell>(cell);
    request.shape.element = static_cast<birnn::Element>(element);
    request.shape.seq_len = sizes[0];
    request.shape.batch_size = sizes[1];
    request.input_size = sizes[2];
    request.shape.hidden_size = sizes[3];
    request.device = birnn::gpu::limits_of(at::Device(at::kCPU));
    request.kernel = kernel;
    return request;
  };
  // Of a training step by a kernel: bytes of the reserve, and of the workspaces of both passes.
  m.def("planned_bytes", [](int cell, int element, const Sizes& sizes, const std::string& kernel) {
    const birnn::cuda::Plan plan = birnn::cuda::plan(request_of(cell, element, sizes, kernel));
    TORCH_CHECK(plan.error.empty(), plan.error);
    return std::make_tuple(plan.reserve_bytes, plan.forward.workspace_bytes,
                           plan.backward.workspace_bytes);
  });
  // kernel, blocks, batch_tiles, k_split, clusters at once, of them apart, microseconds a step
  using Chosen = std::tuple<std::string, int, int, int, int64_t, int64_t, double>;
  static const auto chosen_of = [](const birnn::cuda::Choice& choice) {
    return Chosen(birnn::cuda::name_of(choice.kernel), choice.blocks, choice.batch_tiles,
                  choice.k_split, choice.resident_clusters, choice.clusters_apart,
                  choice.microseconds_per_step);
  };
  // Of both passes of a training step: what is chosen, and why.
  m.def("planned", [](int cell, int element, const Sizes& sizes, const std::string& kernel) {
    const birnn::cuda::Plan plan = birnn::cuda::plan(request_of(cell, element, sizes, kernel));
    TORCH_CHECK(plan.error.empty(), plan.error);
    const auto of_pass = [](const birnn::cuda::PassPlan& pass) {
      return std::make_tuple(chosen_of(pass.choice), pass.reason);
    };
    return std::make_tuple(of_pass(plan.forward), of_pass(plan.backward));
  });
  m.def("divisions", [](int cell, int element, const Sizes& sizes, bool forward) {
    const birnn::cuda::Divisions all = birnn::cuda::divisions(
        request_of(cell, element, sizes, ""),
        forward ? birnn::cuda::Pass::kForward : birnn::cuda::Pass::kBackward);
    TORCH_CHECK(all.error.empty(), all.error);
    std::vector<Chosen> choices;
    for (const birnn::cuda::Choice& choice : all.choices) choices.push_back(chosen_of(choice));
    return choices;
  });
  m.def("change_driver", &birnn::gpu::change_driver, pybind11::arg("present") = true,
        pybind11::arg("resident_clusters") = std::map<uint32_t, int>(),
        pybind11::arg("blocks_of_multiprocessor") = 1, pybind11::arg("code_capability") = 90);
  m.def("see_kernels", &birnn::gpu::see_kernels);
  m.def("seen_kernels", [] { return birnn::gpu::seen_kernels; });
  m.def("begin_recording", &birnn::gpu::begin_recording);
  m.def("end_recording", &birnn::gpu::end_recording);
  m.def("num_side_streams", [] { return birnn::cuda::num_side_streams(0); });
  // kernel, blocks, batch_tiles, k_split, groups_at_once of each pass.
  using Division = std::tuple<std::string, int, int, int, int>;
  m.def("force_divisions", [](const Division& forward, const Division& backward) {
    const auto choice_of = [](const Division& division) {
      const auto& [kernel, blocks, batch_tiles, k_split, groups_at_once] = division;
      return birnn::cuda::Choice{birnn::cuda::kernel_of(kernel).value(), blocks, batch_tiles,
                                 k_split, groups_at_once};
    };
    birnn::cuda::force({"", 0, choice_of(forward), choice_of(backward)});
  });
}
