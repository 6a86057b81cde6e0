// The module birnn_cuda._C, and the same functions as dispatcher ops: torch.ops.birnn_cuda.forward
// and torch.ops.birnn_cuda.backward. No logic here.
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include "cpu/recurrence_cpu.h"
#include "layer.h"

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
#if defined(BIRNN_WITH_CUDA)
  info["cuda_version"] = BIRNN_CUDA_VERSION;
  info["cuda_architectures"] = BIRNN_CUDA_ARCHITECTURES;
#else
  info["cuda_version"] = pybind11::none();
  info["cuda_architectures"] = "";
#endif
  return info;
}

// The dispatcher passes a list of booleans as a List, pybind11 as a vector.
std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>> backward_op(
    const birnn::OptionalTensor& d_output, const birnn::OptionalTensor& d_h_n,
    const birnn::OptionalTensor& d_c_n, const at::Tensor& input, const birnn::OptionalTensor& hx,
    const birnn::OptionalTensor& cx, std::vector<at::Tensor> weights,
    const birnn::OptionalTensor& lengths, const birnn::OptionalTensor& batch_sizes,
    const at::Tensor& output, const at::Tensor& reserve, std::string cell, int64_t num_directions,
    std::string precision, c10::List<bool> needs_grad) {
  return birnn::layer_backward(d_output, d_h_n, d_c_n, input, hx, cx, std::move(weights), lengths,
                               batch_sizes, output, reserve, std::move(cell), num_directions,
                               std::move(precision), {needs_grad.begin(), needs_grad.end()});
}

}  // namespace

TORCH_LIBRARY(birnn_cuda, m) {
  m.def(
      "forward(Tensor input, Tensor? hx, Tensor? cx, Tensor[] weights, Tensor? lengths, "
      "Tensor? batch_sizes, str cell, int num_directions, bool training, str precision) -> "
      "(Tensor output, Tensor h_n, Tensor c_n, Tensor reserve)");
  m.def(
      "backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor input, Tensor? hx, "
      "Tensor? cx, Tensor[] weights, Tensor? lengths, Tensor? batch_sizes, Tensor output, "
      "Tensor reserve, str cell, int num_directions, str precision, bool[] needs_grad) -> "
      "(Tensor d_input, Tensor d_hx, Tensor d_cx, Tensor[] d_weights)");
}

TORCH_LIBRARY_IMPL(birnn_cuda, CPU, m) {
  m.impl("forward", birnn::layer_forward);
  m.impl("backward", backward_op);
}

TORCH_LIBRARY_IMPL(birnn_cuda, CUDA, m) {
  m.impl("forward", birnn::layer_forward);
  m.impl("backward", backward_op);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of birnn_cuda; see birnn_cuda.ops for the operators they register.";
  m.def("forward", &birnn::layer_forward, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("backward", &birnn::layer_backward, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("build_info", &build_info,
        "Compiler, torch version, instruction set and CUDA architectures of this build.");
}
