// A layer-normalised GRU or LSTM on a GPU: stepwise, each direction on a stream of its own.
//
// The rows of the forward pass are the caller's own, gates_x read where it lies. The gradient of
// weight_hh is one product of all rows, by the states that they continue, put together beforehand.
#include "layer/normalised.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "layer/cuda/layer.h"

namespace birnn {

using namespace gpu;

namespace {

// Raises where another kernel is asked for. The only one that has the cells.
cuda::Choice stepwise_for(cuda::Pass pass) {
  const cuda::Forced forced = cuda::forced();
  const auto& division = pass == cuda::Pass::kForward ? forced.forward : forced.backward;
  const std::string kernel = division ? cuda::name_of(division->kernel) : forced.kernel;
  TORCH_CHECK(kernel.empty() || kernel == "stepwise", "birnn_cuda: kernel \"", kernel,
              "\" does not take a layer-normalised cell: stepwise does");
  cuda::Choice choice;
  choice.kernel = cuda::Kernel::kStepwise;
  return choice;
}

// Bytes of each direction's own.
Tensor workspaces(const Problem& p, int64_t bytes) {
  return at::empty({p.num_directions, bytes}, p.input.options().dtype(at::kByte));
}

Tensor copy_or_zeros(const OptionalTensor& t, at::IntArrayRef sizes,
                     const at::TensorOptions& options) {
  return t ? at::empty(sizes, options).copy_(*t) : at::zeros(sizes, options);
}

// run(d, queue, portion) for both directions in turn.
template <class Run>
void walk(const Problem& p, const cuda::Choice& choice, Directions& streams, const Run& run) {
  for (const cuda::Portion& portion : cuda::portions(choice, p.shape.seq_len))
    streams.each([&](int d) {
      const Queue queue = streams.queue(d);
      check(run(d, step_gemm(p, queue), queue.stream, portion), "stepwise", p);
    });
}

}  // namespace

ForwardResult normalised_forward_cuda(const Problem& p, double eps, const Tensor& reserve) {
  const OnDevice on_device(p.input.device());
  const at::NoGradGuard no_grad;
  const cuda::Choice choice = stepwise_for(cuda::Pass::kForward);
  const RecurrenceShape& s = p.shape;
  const int64_t D = p.num_directions, T = s.seq_len, B = s.batch_size, H = s.hidden_size;
  const auto options = p.input.options();
  const Rows rows = rows_of(p);
  const Tensor x = take_rows(p.input, rows, p);
  const Tensor hx = contiguous(p.hx), cx = contiguous(p.cx);
  const Tensor output = at::empty({T * B, D * H}, options), hy = at::empty({D, B, H}, options);
  const Tensor cy = s.cell == Cell::kLstm ? at::empty({D, B, H}, options) : Tensor();
  const Tensor workspace = workspaces(p, cuda::normalised_forward_workspace(s));
  std::vector<NormalisedDirection> directions;
  for (int d = 0; d < D; ++d) {
    NormalisedDirection& dir =
        directions.emplace_back(normalised_direction(p, d, eps, hx, output, reserve));
    dir.gates_x = row_pointer(x, 0, d * p.input_size);
    dir.gates_x_stride = x.stride(0);
    dir.cx = state_pointer(cx, d);
    dir.resets = reset_pointer(p);
    dir.hy = mutable_row_pointer(hy, d);
    dir.cy = mutable_state_pointer(cy, d);
  }
  Directions streams(p);
  streams.fork();
  walk(p, choice, streams, [&](int d, const auto& gemm, void* stream, const auto& portion) {
    return cuda::normalised_forward(s, rows.length_pointer(), directions[d], gemm,
                                    workspace[d].data_ptr(), stream, portion);
  });
  streams.join();
  return {output.view({T, B, D * H}), hy, cy, reserve};
}

BackwardResult normalised_backward_cuda(const Problem& p, double eps, const BackwardInputs& in) {
  const OnDevice on_device(p.input.device());
  const at::NoGradGuard no_grad;
  const cuda::Choice choice = stepwise_for(cuda::Pass::kBackward);
  const RecurrenceShape& s = p.shape;
  const int64_t D = p.num_directions, T = s.seq_len, B = s.batch_size, H = s.hidden_size;
  const int64_t columns = p.input_size, N = T * B;
  const auto options = p.input.options();
  const Rows rows = rows_of(p);
  const Tensor y = take_rows(in.output, rows, p);
  const Tensor dy = in.d_output ? take_rows(*in.d_output, rows, p) : Tensor();
  const Tensor dc = in.d_cell_states ? take_rows(*in.d_cell_states, rows, p) : Tensor();
  const Tensor hx = contiguous(p.hx), cx = contiguous(p.cx);
  const Tensor dhx = copy_or_zeros(in.d_h_n, {D, B, H}, options);
  const Tensor dcx = s.cell == Cell::kLstm ? copy_or_zeros(in.d_c_n, {D, B, H}, options) : Tensor();
  const NormalisedGradients gradients(p, in.needs_grad, N);
  const Tensor workspace = workspaces(p, cuda::normalised_backward_workspace(s));
  std::vector<NormalisedDirection> directions;
  for (int d = 0; d < D; ++d) {
    NormalisedDirection& dir =
        directions.emplace_back(normalised_direction(p, d, eps, hx, y, in.reserve));
    dir.cx = state_pointer(cx, d);
    dir.resets = reset_pointer(p);
    dir.dy = dy.defined() ? row_pointer(dy, 0, d * H) : nullptr;
    dir.dy_stride = dy.defined() ? dy.stride(0) : 0;
    dir.dc = dc.defined() ? row_pointer(dc, 0, d * H) : nullptr;
    dir.dc_stride = dc.defined() ? dc.stride(0) : 0;
    dir.dhx = mutable_row_pointer(dhx, d);
    dir.dcx = mutable_state_pointer(dcx, d);
    gradients.give(dir, d);
  }
  Directions streams(p);
  streams.fork();
  walk(p, choice, streams, [&](int d, const auto& gemm, void* stream, const auto& portion) {
    return cuda::normalised_backward(s, rows.length_pointer(), directions[d], gemm,
                                     workspace[d].data_ptr(), stream, portion);
  });
  streams.each([&](int d) {
    if (const Tensor d_weight_hh = gradients.of_weight(d, 0); d_weight_hh.defined()) {
      const Tensor before =
          continued_states(y.view({T, B, D * H}).narrow(2, d * H, H), hx, rows, p, d);
      GemmShape product;  // dW_hh = dsums^T (the states that the rows continue)
      product.transpose_a = true;
      product.m = columns, product.n = H, product.k = N;
      product.lda = columns, product.ldb = H, product.ldc = H;
      multiply(p, streams.queue(d), product, row_pointer(gradients.dsums, d),
               before.const_data_ptr(), d_weight_hh.data_ptr());
    }
    gradients.sum_up(d, in.reserve);
  });
  streams.join();

  BackwardResult out;
  if (in.needs_grad[0]) out.d_input = gradients.of_gates_x().view(p.input.sizes());
  out.d_hx = dhx;
  out.d_cx = dcx;
  out.d_weights = gradients.d_weights;
  return out;
}

}  // namespace birnn
