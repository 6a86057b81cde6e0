// A layer-normalised GRU or LSTM on a CPU.
#include "layer/normalised.h"

#include <ATen/ATen.h>

#include "cpu/kept_memory.h"
#include "layer/cpu/operands.h"

namespace birnn {

using namespace cpu;

namespace {

cpu::Layer layer_of(const Problem& p, const Rows& rows) {
  const bool is_float = p.shape.element == Element::kFloat32;
  const ChosenKernels& chosen =
      kernels_for(is_float ? WeightFormat::kFloat32 : WeightFormat::kFloat64);
  return {p.shape, rows.pointers(), p.num_directions, 0, chosen.table, nullptr, false};
}

Tensor workspace_of(const cpu::Layer& layer, const at::TensorOptions& options) {
  return cpu::empty_large({cpu::normalised_workspace_bytes(layer)}, options.dtype(at::kByte));
}

}  // namespace

ForwardResult normalised_forward_cpu(const Problem& p, double eps, const Tensor& reserve) {
  const auto options = p.input.options();
  const at::ScalarType type = p.input.scalar_type();
  const int64_t D = p.num_directions, T = p.shape.seq_len, B = p.shape.batch_size;
  const int64_t H = p.shape.hidden_size;
  const bool lstm = p.shape.cell == Cell::kLstm;
  const Rows rows = rows_of(p);
  const cpu::Layer layer = layer_of(p, rows);
  const Tensor x = take_rows(p.input, rows, type);
  const Tensor output = cpu::empty_large({rows.num_rows, D * H}, options);
  const Tensor first_h = p.hx ? read_state(*p.hx, rows, type) : Tensor();
  const Tensor hy = at::empty({D, B, H}, options);
  const Tensor cy = lstm ? take_state(p.cx, rows, {D, B, H}, options) : Tensor();
  std::vector<NormalisedDirection> directions;
  for (int d = 0; d < D; ++d) {
    NormalisedDirection& dir =
        directions.emplace_back(normalised_direction(p, d, eps, first_h, output, reserve));
    dir.gates_x = row_pointer(x, 0, d * x.size(1) / D);
    dir.gates_x_stride = x.stride(0);
    dir.hy = mutable_row_pointer(hy, d);
    dir.cy = mutable_state_pointer(cy, d);
  }
  const Tensor workspace = workspace_of(layer, options);
  cpu::normalised_forward(layer, directions.data(), workspace.data_ptr());
  return {give_rows(output, rows, {T, B, D * H}, type), give_state(hy, rows, type),
          lstm ? give_state(cy, rows, type) : Tensor(), reserve};
}

BackwardResult normalised_backward_cpu(const Problem& p, double eps, const BackwardInputs& in) {
  const auto options = p.input.options();
  const at::ScalarType type = p.input.scalar_type();
  const int64_t D = p.num_directions, T = p.shape.seq_len, B = p.shape.batch_size;
  const int64_t H = p.shape.hidden_size;
  const bool lstm = p.shape.cell == Cell::kLstm;
  const Rows rows = rows_of(p);
  const cpu::Layer layer = layer_of(p, rows);
  const Tensor y = take_rows(in.output, rows, type);
  const Tensor dy = in.d_output ? take_rows(*in.d_output, rows, type) : Tensor();
  const Tensor dc = in.d_cell_states ? take_rows(*in.d_cell_states, rows, type) : Tensor();
  const Tensor first_h = p.hx ? read_state(*p.hx, rows, type) : Tensor();
  const Tensor first_c = p.cx ? read_state(*p.cx, rows, type) : Tensor();
  const Tensor dhx = take_state(in.d_h_n, rows, {D, B, H}, options);
  const Tensor dcx = lstm ? take_state(in.d_c_n, rows, {D, B, H}, options) : Tensor();
  const NormalisedGradients gradients(p, in.needs_grad, rows.num_rows);
  std::vector<NormalisedDirection> directions;
  for (int d = 0; d < D; ++d) {
    NormalisedDirection& dir =
        directions.emplace_back(normalised_direction(p, d, eps, first_h, y, in.reserve));
    dir.cx = state_pointer(first_c, d);
    dir.dy = dy.defined() ? row_pointer(dy, 0, d * H) : nullptr;
    dir.dy_stride = dy.defined() ? dy.stride(0) : 0;
    dir.dc = dc.defined() ? row_pointer(dc, 0, d * H) : nullptr;
    dir.dc_stride = dc.defined() ? dc.stride(0) : 0;
    dir.dhx = mutable_row_pointer(dhx, d);
    dir.dcx = mutable_state_pointer(dcx, d);
    gradients.give(dir, d);
  }
  const Tensor workspace = workspace_of(layer, options);
  cpu::normalised_backward(layer, directions.data(), workspace.data_ptr());
  for (int d = 0; d < D; ++d) {
    if (Tensor d_weight_hh = gradients.of_weight(d, 0); d_weight_hh.defined()) {
      const Tensor before =
          previous_states(p, rows, y.narrow(1, d * H, H), first_h, Tensor(), d, 0, T);
      at::mm_out(d_weight_hh, gradients.dsums[d].t(), before);
    }
    gradients.sum_up(d, in.reserve);
  }
  BackwardResult out;
  if (in.needs_grad[0])
    out.d_input = give_rows(gradients.of_gates_x(), rows, p.input.sizes(), type);
  out.d_hx = give_state(dhx, rows, type);
  if (lstm) out.d_cx = give_state(dcx, rows, type);
  out.d_weights = gradients.d_weights;
  return out;
}

}  // namespace birnn
