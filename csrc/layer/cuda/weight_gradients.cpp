#include "layer/cuda/weight_gradients.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace birnn::gpu {

bool WeightGradients::needs(int d, int weight) const {
  constexpr int kBefore = 3;  // input, hx, cx
  return needs_grad_[kBefore + d * p_.weights_per_direction + weight];
}

bool WeightGradients::any(int weight) const {
  for (int d = 0; d < p_.num_directions; ++d)
    if (needs(d, weight)) return true;
  return false;
}

WeightGradients::WeightGradients(const Problem& p, const std::vector<bool>& needs_grad, int parts,
                                 bool biases_given)
    : p_(p), needs_grad_(needs_grad), biases_given_(biases_given), directions_(p.num_directions) {
  const auto options = p.input.options();
  const at::ScalarType wide = carried_type(p.input);
  const bool rounds = wide != p.input.scalar_type();
  for (int d = 0; d < p.num_directions; ++d) {
    Direction& direction = directions_[d];
    for (int i = 0; i < p.weights_per_direction; ++i)
      direction.weights.push_back(
          needs(d, i) ? at::empty(p.weights[d * p.weights_per_direction + i].sizes(), options)
                      : Tensor());
    const auto sum_of = [&](const Tensor& result, int products) {
      if (!result.defined() || !rounds || products < 2) return result;
      return at::empty(result.sizes(), options.dtype(wide));
    };
    direction.sum_weight_ih = sum_of(direction.weights[0], parts);
    direction.sum_weight_hh = sum_of(direction.weights[1], parts + (p.hx ? 1 : 0));
  }
}

void WeightGradients::add(int d, const Steps& steps, const WeightOperands& in, const Queue& queue) {
  const RecurrenceShape& s = p_.shape;
  const int64_t T = s.seq_len, B = s.batch_size, H = s.hidden_size, S = s.state_size();
  const int64_t G = num_gates(s.cell), width = dgates_blocks(s.cell) * H;
  const bool reverse = d == 1, resets_before = s.cell == Cell::kGruResetBefore;
  Direction& direction = directions_[d];
  GemmShape product;
  product.transpose_a = true;
  product.lda = in.dgates.stride(0);

  if (direction.sum_weight_ih.defined()) {  // dW_ih += dgates^T x
    const Tensor& sum = direction.sum_weight_ih;
    const int64_t row = first_time(steps, T, reverse) * B;
    product.n = p_.input_size, product.k = steps.count() * B;
    product.ldb = in.x.stride(0), product.ldc = p_.input_size;
    product.beta = direction.started ? 1.0f : 0.0f;
    product.float_output = sum.scalar_type() != p_.input.scalar_type();
    for (const InputGateBlocks& block : input_gate_blocks(s.cell)) {
      product.m = block.count * H;
      multiply(p_, queue, product, row_pointer(in.dgates, row, d * width + block.column * H),
               row_pointer(in.x, row), mutable_row_pointer(sum, block.row * H));
    }
  }

  if (direction.sum_weight_hh.defined()) {  // dW_hh += dgates^T (the states that the rows continue)
    const Tensor& sum = direction.sum_weight_hh;
    // The blocks that belong to weight_hh: the last G * H columns.
    const int64_t recurrent = (d + 1) * width - G * H;
    const int64_t state_rows = (resets_before ? 2 : G) * H;
    // A row continues the row one step, B rows, away: where a sequence starts inside the batch (the
    // reverse direction, shorter lengths) that is a zero past its end. The first rows of all
    // continue hx.
    const Steps later{std::max<int64_t>(steps.first, 1), std::max<int64_t>(steps.last, 1)};
    const int64_t row = first_time(later, T, reverse) * B;
    product.m = state_rows, product.n = S, product.k = later.count() * B;
    product.ldb = in.output.stride(0), product.ldc = S;
    product.beta = direction.started ? 1.0f : 0.0f;
    product.float_output = sum.scalar_type() != p_.input.scalar_type();
    multiply(p_, queue, product, row_pointer(in.dgates, row, recurrent),
             row_pointer(in.output, reverse ? row + B : row - B, d * S), sum.data_ptr());
    if (in.hx.defined() && steps.first == 0) {
      product.k = B, product.ldb = S, product.beta = 1.0f;
      if (in.first_dgates.defined()) {
        product.lda = width;
        multiply(p_, queue, product, row_pointer(in.first_dgates[d], 0, width - G * H),
                 row_pointer(in.started_hx, d), sum.data_ptr());
      } else {
        multiply(p_, queue, product, row_pointer(in.dgates, reverse ? (T - 1) * B : 0, recurrent),
                 row_pointer(in.hx, d), sum.data_ptr());
      }
    }
  }
  if (direction.sum_weight_hh.defined() && resets_before) {  // of r * h, in the same rows
    const Tensor& sum = direction.sum_weight_hh;
    const int64_t row = first_time(steps, T, reverse) * B;
    product.m = H, product.n = H, product.k = steps.count() * B, product.ldc = H;
    product.lda = in.dgates.stride(0), product.ldb = in.reserve.stride(1);
    product.beta = direction.started ? 1.0f : 0.0f;
    product.float_output = sum.scalar_type() != p_.input.scalar_type();
    multiply(p_, queue, product, row_pointer(in.dgates, row, d * width + 2 * H),
             row_pointer(in.reserve[d], row, 3 * H), mutable_row_pointer(sum, 2 * H));
  }
  direction.started = true;
}

// Of i and f: their gradients times the c that a step continues; of o: times its own.
void WeightGradients::add_peepholes(int d, const WeightOperands& in) {
  const RecurrenceShape& s = p_.shape;
  const int64_t T = s.seq_len, B = s.batch_size, H = s.hidden_size;
  const auto kept = [&](int64_t block) {
    const Tensor rows = in.reserve[d].narrow(1, block * H, H);
    return (in.padding.defined() ? rows.masked_fill(in.padding, 0) : rows).view({T, B, H});
  };
  const auto gate = [&](int64_t g) {
    return in.dgates.narrow(1, (4 * d + g) * H, H).view({T, B, H});
  };
  const Tensor before = continued_states(kept(4), in.cx, in.rows, p_, d);
  const auto sum = [&](const Tensor& d_gate, const Tensor& c) {
    return d_gate.mul(c).sum({0, 1}, false, carried_type(p_.input));
  };
  weight(d, p_.weights_per_direction - 1)
      .copy_(at::cat(
          {sum(gate(0), before), sum(gate(1), before), sum(gate(3), kept(output_c_block(s)))}));
}

void* WeightGradients::bias_of_recurrence(int d, int which) const {
  constexpr int kFirst = 2;  // behind weight_ih and weight_hh
  if (!p_.has_bias || !biases_given_ || !needs(d, kFirst + which)) return nullptr;
  return directions_[d].weights[kFirst + which].data_ptr();
}

void WeightGradients::finish(int d, const WeightOperands& in, const Queue& queue) {
  const RecurrenceShape& s = p_.shape;
  const int64_t H = s.hidden_size, S = s.state_size(), N = s.seq_len * s.batch_size;
  const int64_t width = dgates_blocks(s.cell) * H;
  const int64_t recurrent = (d + 1) * width - num_gates(s.cell) * H;
  Direction& direction = directions_[d];
  const Tensor* const sums[] = {&direction.sum_weight_ih, &direction.sum_weight_hh};
  for (int i = 0; i < 2; ++i)
    if (sums[i]->defined() && !sums[i]->is_same(weight(d, i))) weight(d, i).copy_(*sums[i]);

  const auto sum_into = [&](Tensor to, int64_t column) {
    at::sum_out(to, in.dgates.narrow(1, column, to.size(0)), {0});
  };
  if (p_.has_bias && !biases_given_) {
    Tensor &bias_ih = weight(d, 2), &bias_hh = weight(d, 3);
    if (bias_hh.defined()) sum_into(bias_hh, recurrent);
    if (bias_ih.defined()) {
      if (s.cell == Cell::kGru)
        for (const InputGateBlocks& block : input_gate_blocks(s.cell))
          sum_into(bias_ih.narrow(0, block.row * H, block.count * H), d * width + block.column * H);
      else if (bias_hh.defined())
        bias_ih.copy_(bias_hh);
      else
        sum_into(bias_ih, recurrent);
    }
  }
  if (p_.has_peepholes() && needs(d, p_.weights_per_direction - 1)) add_peepholes(d, in);
  if (s.proj_size && needs(d, p_.weights_per_direction - 1)) {
    const Tensor& weight_hr = weight(d, p_.weights_per_direction - 1);
    Tensor h = in.reserve[d]
                   .narrow(1, output_c_block(s) * H, H)
                   .tanh()
                   .mul_(in.reserve[d].narrow(1, 3 * H, H));
    if (in.padding.defined()) h.masked_fill_(in.padding, 0);
    GemmShape product;  // dW_hr = dproj^T h
    product.transpose_a = true;
    product.m = S, product.n = H, product.k = N;
    product.lda = S, product.ldb = H, product.ldc = H;
    multiply(p_, queue, product, row_pointer(in.dproj, d), h.const_data_ptr(),
             weight_hr.data_ptr());
  }
}

std::vector<Tensor> WeightGradients::results() const {
  std::vector<Tensor> all;
  for (const Direction& direction : directions_)
    for (const Tensor& t : direction.weights)
      all.push_back(t.defined() ? t : at::empty({0}, p_.input.options()));
  return all;
}

}  // namespace birnn::gpu
