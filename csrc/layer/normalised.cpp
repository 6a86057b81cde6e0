#include "layer/normalised.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "cpu/kept_memory.h"

namespace birnn {

namespace {

int weights_of(Cell cell) { return cell == Cell::kLstm ? 5 : 3; }

Problem check_normalised(const Tensor& gates_x, const OptionalTensor& hx, const OptionalTensor& cx,
                         at::TensorList weights, const OptionalTensor& lengths,
                         const std::string& cell, int64_t num_directions,
                         const OptionalTensor& resets, const std::string& precision) {
  Problem p;
  TORCH_CHECK(cell == "gru" || cell == "lstm",
              "birnn_cuda: a normalised cell must be 'gru' or 'lstm', got '", cell, "'");
  p.shape.cell = cell == "gru" ? Cell::kGru : Cell::kLstm;
  const at::ScalarType type = gates_x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble,
              "birnn_cuda: gates_x must be float32 or float64, got ", type);
  TORCH_CHECK(precision == "ieee" || precision == "tf32",
              "birnn_cuda: precision must be 'ieee' or 'tf32', got '", precision, "'");
  p.ieee = precision == "ieee";
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
    TORCH_CHECK(t.sizes() == sizes && t.scalar_type() == type && t.device() == gates_x.device(),
                "birnn_cuda: expected ", name, " of size ", sizes, ", ", type, " on ",
                gates_x.device(), ", got ", t.sizes(), ", ", t.scalar_type(), " on ", t.device());
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
  p.num_rows = T * B, p.input_size = G * H;  // what a direction is given
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
                    resets->device() == gates_x.device(),
                "birnn_cuda: expected resets of size [", T, ", ", B, "], Bool on ",
                gates_x.device(), ", got ", resets->sizes(), ", ", resets->scalar_type(), " on ",
                resets->device());
    p.resets = resets->contiguous();
  }
  check_device_is_built(gates_x.device());
  return p;
}

bool has_no_rows(const Problem& p) { return p.num_rows == 0; }

// Not zeroed. On a CPU memory that is kept, as all large tensors of a pass are there.
Tensor empty_like_input(const Problem& p, at::IntArrayRef sizes) {
  return uses_gpu(p.input) ? at::empty(sizes, p.input.options())
                           : cpu::empty_large(sizes, p.input.options());
}

std::vector<int64_t> normalised_reserve_sizes(const Problem& p) {
  return {p.num_directions, p.num_rows, normalised_reserve_size(p.shape.cell, p.shape.hidden_size)};
}

ForwardResult forward_on_device(const Problem& p, double eps, const Tensor& reserve) {
#if defined(BIRNN_WITH_CUDA)
  if (uses_gpu(p.input)) return normalised_forward_cuda(p, eps, reserve);
#endif
  return normalised_forward_cpu(p, eps, reserve);
}

BackwardResult backward_on_device(const Problem& p, double eps, const BackwardInputs& in) {
#if defined(BIRNN_WITH_CUDA)
  if (uses_gpu(p.input)) return normalised_backward_cuda(p, eps, in);
#endif
  return normalised_backward_cpu(p, eps, in);
}

}  // namespace

NormalisedDirection normalised_direction(const Problem& p, int d, double eps, const Tensor& hx,
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

NormalisedGradients::NormalisedGradients(const Problem& p, const std::vector<bool>& needs_grad,
                                         int64_t num_rows)
    : p_(p) {
  const int64_t D = p.num_directions, H = p.shape.hidden_size;
  dgates = empty_like_input(p, {D, num_rows, dgates_blocks(p.shape.cell) * H});
  dsums = empty_like_input(p, {D, num_rows, num_gates(p.shape.cell) * H});
  if (p.shape.cell == Cell::kLstm) dnorm_c = empty_like_input(p, {D, num_rows, H});
  for (size_t i = 0; i < p.weights.size(); ++i)
    d_weights.push_back(at::empty(needs_grad[3 + i] ? p.weights[i].sizes() : at::IntArrayRef({0}),
                                  p.input.options()));
}

void NormalisedGradients::give(NormalisedDirection& direction, int d) const {
  direction.dgates = mutable_row_pointer(dgates, d);
  direction.dsums = mutable_row_pointer(dsums, d);
  direction.dnorm_c = mutable_state_pointer(dnorm_c, d);
}

Tensor NormalisedGradients::of_weight(int d, int i) const {
  const int64_t at = d * p_.weights_per_direction + i;
  return d_weights[at].sizes() == p_.weights[at].sizes() ? d_weights[at] : Tensor();
}

void NormalisedGradients::sum_up(int d, const Tensor& reserve) const {
  const int64_t H = p_.shape.hidden_size, G = num_gates(p_.shape.cell), N = dgates.size(1);
  const bool lstm = p_.shape.cell == Cell::kLstm;
  const Tensor recurrent = dgates[d].narrow(1, dgates.size(2) - G * H, G * H);
  const auto block = [&](int64_t first, int64_t count) {
    return reserve[d].narrow(0, 0, N).narrow(1, first * H, count * H);
  };
  const auto sum_into = [&](int weight, const auto& rows) {
    Tensor sum = of_weight(d, weight);
    if (sum.defined()) at::sum_out(sum, rows(), {0});
  };
  sum_into(1, [&] { return recurrent.mul(block(lstm ? 6 : 4, G)); });
  sum_into(2, [&] { return recurrent; });
  if (!lstm) return;
  sum_into(3, [&] { return dnorm_c[d].mul(block(5, 1)); });
  sum_into(4, [&] { return dnorm_c[d]; });
}

Tensor NormalisedGradients::of_gates_x() const {
  const int64_t H = p_.shape.hidden_size;
  std::vector<Tensor> parts;
  for (const Tensor& own : dgates.unbind(0)) {
    if (p_.shape.cell == Cell::kLstm)
      parts.push_back(own);
    else  // n r z and the recurrent n
      parts.insert(parts.end(), {own.narrow(1, H, 2 * H), own.narrow(1, 0, H)});
  }
  return at::cat(parts, 1);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> normalised_forward(
    const Tensor& gates_x, const OptionalTensor& hx, const OptionalTensor& cx,
    at::TensorList weights, const OptionalTensor& lengths, std::string cell, int64_t num_directions,
    double eps, bool training, const OptionalTensor& resets, std::string precision) {
  const at::AutoDispatchBelowADInplaceOrView no_tracking;
  const Problem p =
      check_normalised(gates_x, hx, cx, weights, lengths, cell, num_directions, resets, precision);
  const auto options = gates_x.options();
  const bool lstm = p.shape.cell == Cell::kLstm;
  const Tensor reserve =
      training ? empty_like_input(p, normalised_reserve_sizes(p)) : at::empty({0}, options);
  if (has_no_rows(p)) {
    const int64_t D = num_directions, T = p.shape.seq_len, B = p.shape.batch_size;
    const int64_t H = p.shape.hidden_size;
    const auto initial = [&](const OptionalTensor& state) {
      return state ? state->contiguous().clone() : at::zeros({D, B, H}, options);
    };
    return {at::empty({T, B, D * H}, options), initial(p.hx),
            lstm ? initial(p.cx) : at::empty({0}, options), reserve};
  }
  const ForwardResult r = forward_on_device(p, eps, reserve);
  return {r.output, r.h_n, lstm ? r.c_n : at::empty({0}, options), reserve};
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> normalised_backward(
    const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
    const OptionalTensor& d_cell_states, const Tensor& gates_x, const OptionalTensor& hx,
    const OptionalTensor& cx, at::TensorList weights, const OptionalTensor& lengths,
    const Tensor& output, const Tensor& reserve, std::string cell, int64_t num_directions,
    double eps, c10::List<bool> needs_grad, const OptionalTensor& resets, std::string precision) {
  const at::AutoDispatchBelowADInplaceOrView no_tracking;
  const Problem p =
      check_normalised(gates_x, hx, cx, weights, lengths, cell, num_directions, resets, precision);
  const auto options = gates_x.options();
  const bool lstm = p.shape.cell == Cell::kLstm;
  TORCH_CHECK(needs_grad.size() == 3 + p.weights.size(), "birnn_cuda: expected needs_grad of ",
              3 + p.weights.size(), " values, got ", needs_grad.size());
  TORCH_CHECK(reserve.sizes() == normalised_reserve_sizes(p),
              "birnn_cuda: expected a reserve of size ", normalised_reserve_sizes(p), ", got ",
              reserve.sizes(), ": backward needs the reserve of a forward with training=True");
  const std::vector<bool> needs(needs_grad.begin(), needs_grad.end());
  const auto none = [&] { return at::empty({0}, options); };
  if (has_no_rows(p)) {
    const auto passed_on = [&](int i, const OptionalTensor& state, const OptionalTensor& d) {
      if (!needs[i] || !state) return none();
      return d ? d->contiguous().clone() : at::zeros(state->sizes(), options);
    };
    std::vector<Tensor> d_weights;
    for (size_t i = 0; i < p.weights.size(); ++i)
      d_weights.push_back(needs[3 + i] ? at::zeros_like(p.weights[i]) : none());
    return {needs[0] ? at::zeros(gates_x.sizes(), options) : none(), passed_on(1, p.hx, d_h_n),
            passed_on(2, p.cx, d_c_n), d_weights};
  }
  const BackwardResult r = backward_on_device(
      p, eps,
      {d_output, d_h_n, lstm ? d_c_n : std::nullopt, lstm ? d_cell_states : std::nullopt, output,
       reserve.contiguous(), needs});
  return {needs[0] ? r.d_input : none(), needs[1] && p.hx ? r.d_hx : none(),
          needs[2] && p.cx ? r.d_cx : none(), r.d_weights};
}

}  // namespace birnn
