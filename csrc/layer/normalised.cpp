#include "layer/normalised.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "cpu/kept_memory.h"
#include "layer/cpu/operands.h"

namespace birnn {

using namespace cpu;

namespace {

int weights_of(Cell cell) { return cell == Cell::kLstm ? 5 : 3; }

Problem check_normalised(const Tensor& gates_x, const OptionalTensor& hx, const OptionalTensor& cx,
                         at::TensorList weights, const OptionalTensor& lengths,
                         const std::string& cell, int64_t num_directions,
                         const OptionalTensor& resets) {
  Problem p;
  TORCH_CHECK(cell == "gru" || cell == "lstm",
              "birnn_cuda: a normalised cell must be 'gru' or 'lstm', got '", cell, "'");
  p.shape.cell = cell == "gru" ? Cell::kGru : Cell::kLstm;
  const at::ScalarType type = gates_x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble,
              "birnn_cuda: gates_x must be float32 or float64, got ", type);
  TORCH_CHECK(num_directions == 1 || num_directions == 2,
              "birnn_cuda: num_directions must be 1 or 2, got ", num_directions);
  p.shape.element = type == at::kFloat ? Element::kFloat32 : Element::kFloat64;
  p.num_directions = static_cast<int>(num_directions);
  p.weights_per_direction = weights_of(p.shape.cell);
  TORCH_CHECK(weights.size() == static_cast<size_t>(num_directions * p.weights_per_direction),
              "birnn_cuda: expected ", p.weights_per_direction, " weights for each of ",
              num_directions, " directions of cell '", cell, "', got ", weights.size(), " in all");
  TORCH_CHECK(gates_x.dim() == 3, "birnn_cuda: gates_x must have 3 dimensions, got ",
              gates_x.dim());
  const auto check = [&](const Tensor& t, const char* name, at::IntArrayRef sizes) {
    TORCH_CHECK(t.sizes() == sizes && t.scalar_type() == type && t.device().is_cpu(),
                "birnn_cuda: expected ", name, " of size ", sizes, ", ", type, " on cpu, got ",
                t.sizes(), ", ", t.scalar_type(), " on ", t.device());
  };
  const int64_t G = num_gates(p.shape.cell), T = gates_x.size(0), B = gates_x.size(1);
  const int64_t D = num_directions, H = gates_x.size(2) / (D * G);
  check(gates_x, "gates_x", {T, B, D * G * H});
  for (int d = 0; d < D; ++d) {
    const auto own = weights.slice(d * p.weights_per_direction, p.weights_per_direction);
    check(own[0], "weight_hh", {G * H, H});
    check(own[1], "norm_hh", {G * H});
    check(own[2], "bias_hh", {G * H});
    for (int i = 3; i < p.weights_per_direction; ++i)
      check(own[i], i == 3 ? "norm_c" : "bias_c", {H});
  }
  if (hx) check(*hx, "hx", {D, B, H});
  if (cx && p.shape.cell == Cell::kLstm) check(*cx, "cx", {D, B, H});
  p.shape.seq_len = T, p.shape.batch_size = B, p.shape.hidden_size = H;
  p.num_rows = T * B;
  p.input = gates_x;
  p.hx = hx;
  p.cx = p.shape.cell == Cell::kLstm ? cx : std::nullopt;
  for (const Tensor& weight : weights) p.weights.push_back(weight.contiguous());
  p.lengths = lengths;
  if (lengths)
    TORCH_CHECK(lengths->dim() == 1 && lengths->size(0) == B &&
                    (lengths->scalar_type() == at::kLong || lengths->scalar_type() == at::kInt),
                "birnn_cuda: expected lengths of size [", B, "], int64 or int32, got ",
                lengths->sizes(), ", ", lengths->scalar_type());
  if (resets) {
    TORCH_CHECK(resets->sizes() == at::IntArrayRef({T, B}) && resets->scalar_type() == at::kBool &&
                    resets->device().is_cpu(),
                "birnn_cuda: expected resets of size [", T, ", ", B, "], Bool on cpu, got ",
                resets->sizes(), ", ", resets->scalar_type(), " on ", resets->device());
    p.resets = resets->contiguous();
  }
  return p;
}

cpu::Layer layer_of(const Problem& p, const Rows& rows) {
  const bool is_float = p.shape.element == Element::kFloat32;
  const ChosenKernels& chosen =
      kernels_for(is_float ? WeightFormat::kFloat32 : WeightFormat::kFloat64);
  return {p.shape, rows.pointers(), p.num_directions, 0, chosen.table, nullptr, false};
}

// Direction d, but for what a pass alone has.
NormalisedDirection direction_of(const Problem& p, int d, double eps, const Tensor& hx,
                                 const Tensor& output, const Tensor& reserve) {
  const int64_t H = p.shape.hidden_size;
  const Tensor* own = &p.weights[d * p.weights_per_direction];
  NormalisedDirection dir;
  dir.reverse = d == 1;
  dir.eps = eps;
  dir.weight_hh = own[0].const_data_ptr();
  dir.norm_hh = own[1].const_data_ptr();
  dir.bias_hh = own[2].const_data_ptr();
  if (p.shape.cell == Cell::kLstm) {
    dir.norm_c = own[3].const_data_ptr();
    dir.bias_c = own[4].const_data_ptr();
  }
  dir.hx = state_pointer(hx, d);
  dir.output = mutable_row_pointer(output, 0, d * H);
  dir.output_stride = output.stride(0);
  if (reserve.dim() == 3) dir.reserve = mutable_row_pointer(reserve, d);
  dir.reserve_stride = normalised_reserve_size(p.shape.cell, H);
  return dir;
}

Tensor workspace_of(const cpu::Layer& layer, const at::TensorOptions& options) {
  return cpu::empty_large({cpu::normalised_workspace_bytes(layer)}, options.dtype(at::kByte));
}

bool is_empty(const Problem& p) { return p.num_rows == 0; }

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> normalised_forward(
    const Tensor& gates_x, const OptionalTensor& hx, const OptionalTensor& cx,
    at::TensorList weights, const OptionalTensor& lengths, std::string cell, int64_t num_directions,
    double eps, bool training, const OptionalTensor& resets) {
  const at::AutoDispatchBelowADInplaceOrView no_tracking;
  const Problem p =
      check_normalised(gates_x, hx, cx, weights, lengths, cell, num_directions, resets);
  const auto options = gates_x.options();
  const int64_t D = num_directions, T = p.shape.seq_len, B = p.shape.batch_size;
  const int64_t H = p.shape.hidden_size;
  const bool lstm = p.shape.cell == Cell::kLstm;
  const Tensor reserve =
      training ? cpu::empty_large({D, T * B, normalised_reserve_size(p.shape.cell, H)}, options)
               : at::empty({0}, options);
  if (is_empty(p)) {
    const auto initial = [&](const OptionalTensor& state) {
      return state ? state->contiguous().clone() : at::zeros({D, B, H}, options);
    };
    return {at::empty({T, B, D * H}, options), initial(p.hx),
            lstm ? initial(p.cx) : at::empty({0}, options), reserve};
  }
  const at::ScalarType type = gates_x.scalar_type();
  const Rows rows = rows_of(p);
  const cpu::Layer layer = layer_of(p, rows);
  const Tensor x = take_rows(gates_x, rows, type);
  const Tensor output = cpu::empty_large({rows.num_rows, D * H}, options);
  const Tensor first_h = p.hx ? read_state(*p.hx, rows, type) : Tensor();
  const Tensor hy = at::empty({D, B, H}, options);
  const Tensor cy = lstm ? take_state(p.cx, rows, {D, B, H}, options) : Tensor();
  std::vector<NormalisedDirection> directions;
  for (int d = 0; d < D; ++d) {
    NormalisedDirection& dir =
        directions.emplace_back(direction_of(p, d, eps, first_h, output, reserve));
    dir.gates_x = row_pointer(x, 0, d * x.size(1) / D);
    dir.gates_x_stride = x.stride(0);
    dir.hy = mutable_row_pointer(hy, d);
    dir.cy = mutable_state_pointer(cy, d);
  }
  const Tensor workspace = workspace_of(layer, options);
  cpu::normalised_forward(layer, directions.data(), workspace.data_ptr());
  return {give_rows(output, rows, {T, B, D * H}, type), give_state(hy, rows, type),
          lstm ? give_state(cy, rows, type) : at::empty({0}, options), reserve};
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> normalised_backward(
    const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
    const OptionalTensor& d_cell_states, const Tensor& gates_x, const OptionalTensor& hx,
    const OptionalTensor& cx, at::TensorList weights, const OptionalTensor& lengths,
    const Tensor& output, const Tensor& reserve, std::string cell, int64_t num_directions,
    double eps, c10::List<bool> needs_grad, const OptionalTensor& resets) {
  const at::AutoDispatchBelowADInplaceOrView no_tracking;
  const Problem p =
      check_normalised(gates_x, hx, cx, weights, lengths, cell, num_directions, resets);
  const auto options = gates_x.options();
  const int64_t D = num_directions, T = p.shape.seq_len, B = p.shape.batch_size;
  const int64_t H = p.shape.hidden_size, G = num_gates(p.shape.cell);
  const int64_t width = dgates_blocks(p.shape.cell) * H;
  const bool lstm = p.shape.cell == Cell::kLstm;
  TORCH_CHECK(needs_grad.size() == 3 + p.weights.size(), "birnn_cuda: expected needs_grad of ",
              3 + p.weights.size(), " values, got ", needs_grad.size());
  const std::vector<int64_t> kept{D, T * B, normalised_reserve_size(p.shape.cell, H)};
  TORCH_CHECK(reserve.sizes() == kept, "birnn_cuda: expected a reserve of size ", kept, ", got ",
              reserve.sizes(), ": backward needs the reserve of a forward with training=True");
  const auto none = [&] { return at::empty({0}, options); };
  std::vector<Tensor> d_weights;
  if (is_empty(p)) {
    const auto passed_on = [&](int i, const OptionalTensor& state, const OptionalTensor& d) {
      if (!needs_grad[i] || !state) return none();
      return d ? d->contiguous().clone() : at::zeros(state->sizes(), options);
    };
    for (size_t i = 0; i < p.weights.size(); ++i)
      d_weights.push_back(needs_grad[3 + i] ? at::zeros_like(p.weights[i]) : none());
    return {needs_grad[0] ? at::zeros(gates_x.sizes(), options) : none(), passed_on(1, p.hx, d_h_n),
            passed_on(2, p.cx, d_c_n), d_weights};
  }
  const at::ScalarType type = gates_x.scalar_type();
  const Rows rows = rows_of(p);
  const cpu::Layer layer = layer_of(p, rows);
  const int64_t N = rows.num_rows;
  const Tensor y = take_rows(output, rows, type), saved = reserve.contiguous();
  const Tensor dy = d_output ? take_rows(*d_output, rows, type) : Tensor();
  const Tensor dc = d_cell_states && lstm ? take_rows(*d_cell_states, rows, type) : Tensor();
  const Tensor first_h = p.hx ? read_state(*p.hx, rows, type) : Tensor();
  const Tensor first_c = p.cx ? read_state(*p.cx, rows, type) : Tensor();
  const Tensor dhx = take_state(d_h_n, rows, {D, B, H}, options);
  const Tensor dcx = lstm ? take_state(d_c_n, rows, {D, B, H}, options) : Tensor();
  const Tensor dgates = cpu::empty_large({D, N, width}, options);
  const Tensor dsums = cpu::empty_large({D, N, G * H}, options);
  const Tensor dnorm_c = lstm ? cpu::empty_large({D, N, H}, options) : Tensor();
  std::vector<NormalisedDirection> directions;
  for (int d = 0; d < D; ++d) {
    NormalisedDirection& dir = directions.emplace_back(direction_of(p, d, eps, first_h, y, saved));
    dir.cx = state_pointer(first_c, d);
    dir.dy = dy.defined() ? row_pointer(dy, 0, d * H) : nullptr;
    dir.dy_stride = dy.defined() ? dy.stride(0) : 0;
    dir.dc = dc.defined() ? row_pointer(dc, 0, d * H) : nullptr;
    dir.dc_stride = dc.defined() ? dc.stride(0) : 0;
    dir.dgates = mutable_row_pointer(dgates, d);
    dir.dsums = mutable_row_pointer(dsums, d);
    dir.dnorm_c = mutable_state_pointer(dnorm_c, d);
    dir.dhx = mutable_row_pointer(dhx, d);
    dir.dcx = mutable_state_pointer(dcx, d);
  }
  const Tensor workspace = workspace_of(layer, options);
  cpu::normalised_backward(layer, directions.data(), workspace.data_ptr());

  // What is a sum over all rows, of the gates in the order of the weights' rows.
  std::vector<Tensor> of_x;
  for (int d = 0; d < D; ++d) {
    const Tensor own = dgates[d];
    if (lstm)
      of_x.push_back(own);
    else  // n r z and the recurrent n
      of_x.insert(of_x.end(), {own.narrow(1, H, 2 * H), own.narrow(1, 0, H)});
    const Tensor recurrent = own.narrow(1, width - G * H, G * H);
    const Tensor rows_of_reserve = saved[d].narrow(0, 0, N);
    const auto block = [&](int64_t first, int64_t count) {
      return rows_of_reserve.narrow(1, first * H, count * H);
    };
    const auto needs = [&](int i) { return needs_grad[3 + d * p.weights_per_direction + i]; };
    Tensor d_weight_hh;
    if (needs(0)) {
      const Tensor before =
          previous_states(p, rows, y.narrow(1, d * H, H), first_h, Tensor(), d, 0, T);
      d_weight_hh = dsums[d].t().mm(before);
    }
    d_weights.push_back(needs(0) ? d_weight_hh : none());
    d_weights.push_back(needs(1) ? recurrent.mul(block(lstm ? 6 : 4, G)).sum(0) : none());
    d_weights.push_back(needs(2) ? recurrent.sum(0) : none());
    if (!lstm) continue;
    d_weights.push_back(needs(3) ? dnorm_c[d].mul(block(5, 1)).sum(0) : none());
    d_weights.push_back(needs(4) ? dnorm_c[d].sum(0) : none());
  }
  return {needs_grad[0] ? give_rows(at::cat(of_x, 1), rows, gates_x.sizes(), type) : none(),
          needs_grad[1] && p.hx ? give_state(dhx, rows, type) : none(),
          needs_grad[2] && p.cx ? give_state(dcx, rows, type) : none(), d_weights};
}

}  // namespace birnn
