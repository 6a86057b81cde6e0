// The backward pass of a layer on a GPU.
//
// The products of the weight gradients need no step but their own: the steps can be divided into
// parts, and the products of one part run beside the recurrence of the next. Then each recurrence
// has a stream of its own, more urgent than those of the directions, where the products follow it:
// a product that is ready must not take the place of the next part. The parts of a direction hand
// on dh and dc in dhx and dcx. How many: the plan.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "layer/cuda/layer.h"
#include "layer/cuda/weight_gradients.h"
#include "layer/profile.h"

namespace birnn {

using namespace gpu;

namespace {

// A state's gradient in memory of its own, in the type that carries it.
Tensor carried_copy(const OptionalTensor& t, at::IntArrayRef sizes,
                    const at::TensorOptions& options) {
  return t ? at::empty(sizes, options).copy_(*t) : at::zeros(sizes, options);
}

// The rows of all weight_ih [.., I] in the order of the columns of dgates [N, D * dgates_blocks *
// H], up to the last column that belongs to one: dx is a single product. A GRU's n of the recurrent
// side, between its directions, meets zeros.
Tensor stacked_input_weights(const Problem& p) {
  const int64_t H = p.shape.hidden_size;
  if (p.shape.cell != Cell::kGru)
    return p.num_directions == 1 ? p.weight_ih(0) : at::cat({p.weight_ih(0), p.weight_ih(1)});
  std::vector<Tensor> parts;
  for (int d = 0; d < p.num_directions; ++d) {
    if (d > 0) parts.push_back(at::zeros({H, p.input_size}, p.input.options()));
    parts.push_back(p.weight_ih(d).narrow(0, 2 * H, H));
    parts.push_back(p.weight_ih(d).narrow(0, 0, 2 * H));
  }
  return at::cat(parts);
}

// Direction d restricted to some of its steps. `before` keeps the states that it continues.
BackwardDirection direction_of_steps(const Problem& p, const BackwardTensors& tensors,
                                     const Tensor& dgates, int d, const Steps& steps,
                                     std::vector<Tensor>& before) {
  const RecurrenceShape& s = p.shape;
  const int64_t T = s.seq_len, B = s.batch_size, H = s.hidden_size, S = s.state_size();
  const bool reverse = d == 1;
  const int64_t row = first_time(steps, T, reverse) * B;
  BackwardDirection dir = backward_direction(p, tensors, d, row);
  dir.dgates = mutable_row_pointer(dgates, row, d * dgates_blocks(s.cell) * H);
  dir.dgates_stride = dgates.stride(0);
  dir.resets = p.resets ? reset_pointer(p) + row : nullptr;
  if (steps.first > 0) {
    const int64_t previous = (reverse ? T - steps.first : steps.first - 1) * B;
    before.push_back(tensors.output.narrow(0, previous, B).narrow(1, d * S, S).contiguous());
    dir.hx = before.back().const_data_ptr();
    if (is_lstm(s.cell)) {
      before.push_back(tensors.reserve[d].narrow(0, previous, B).narrow(1, 4 * H, H).contiguous());
      dir.cx = before.back().const_data_ptr();
    }
  }
  return dir;
}

// The steps in as many parts as asked for, the last steps first.
std::vector<Steps> divide(int64_t seq_len, int parts) {
  std::vector<Steps> all;
  for (int i = parts - 1; i >= 0; --i)
    all.push_back({seq_len * i / parts, seq_len * (i + 1) / parts});
  return all;
}

}  // namespace

BackwardResult backward_cuda(const Problem& given, const BackwardInputs& in) {
  const OnDevice on_device(given.input.device());
  const at::NoGradGuard no_grad;
  const cuda::PlanRequest request = request_of(given, true);
  const cuda::Choice choice = choose_kernel(request, cuda::Pass::kBackward);
  const ProfiledCall call(given, "backward", cuda::name_of(choice.kernel));
  Problem p = given;
  p.weights = contiguous_weights(given);
  const Rows rows = rows_of(p);
  const RecurrenceShape& s = p.shape;
  const int64_t D = p.num_directions, T = s.seq_len, B = s.batch_size, H = s.hidden_size;
  const int64_t S = s.state_size(), I = p.input_size, N = T * B;
  const auto options = p.input.options();
  const auto carried = options.dtype(carried_type(p.input));
  const bool lstm = is_lstm(s.cell);
  const int64_t width = dgates_blocks(s.cell) * H;
  const std::vector<Steps> parts = divide(T, cuda::backward_parts(request, choice));

  const bool together = cuda::runs_directions_together(choice);

  WeightGradients gradients(p, in.needs_grad, static_cast<int>(parts.size()),
                            cuda::sums_biases(choice));
  const RegulariserOperands regularisers(p, rows);
  BackwardTensors tensors;
  tensors.output = take_rows(in.output, rows, p);
  tensors.reserve = in.reserve;
  if (in.d_output) tensors.dy = take_rows(*in.d_output, rows, p);
  if (in.d_cell_states) tensors.dc = take_rows(*in.d_cell_states, rows, p);
  tensors.hx = contiguous(p.hx), tensors.cx = contiguous(p.cx);
  tensors.dhx = carried_copy(in.d_h_n, {D, B, S}, carried);
  if (lstm) tensors.dcx = carried_copy(in.d_c_n, {D, B, H}, carried);
  const Tensor dgates = at::empty({N, D * width}, options);
  if (s.proj_size) tensors.dproj = at::empty({D, N, S}, options);

  WeightOperands factors;
  factors.rows = rows;
  factors.cx = tensors.cx;
  if (gradients.any_weight_ih()) factors.x = take_masked_rows(p.input, rows, p);
  factors.output = tensors.output;
  factors.hx = tensors.hx;
  if (p.resets && gradients.any_weight_hh()) {
    factors.output = continued_rows(tensors.output, p);
    if (factors.hx.defined()) {  // the forward direction's, where a sequence begins at step 0
      factors.hx = factors.hx.clone();
      factors.hx[0].masked_fill_(p.resets->select(0, 0).unsqueeze(1), 0);
    }
  }
  if (p.regularisers.recurrent_mask && gradients.any_weight_hh()) {
    const Tensor& mask = regularisers.recurrent_mask;
    const Tensor by_row = mask.transpose(0, 1).reshape({1, B, D * S});
    factors.output = factors.output.view({T, B, D * S}).mul(by_row).view({N, D * S});
    if (factors.hx.defined()) factors.hx = factors.hx.mul(mask);
  }
  factors.dgates = dgates;
  factors.dproj = tensors.dproj;
  factors.reserve = tensors.reserve;
  if (rows.lengths.defined()) {
    if (gradients.any_weight_hh() && tensors.hx.defined()) {
      factors.first_dgates = at::empty({D, B, width}, options);
      factors.started_hx = factors.hx.masked_fill(rows.lengths.view({1, B, 1}).le(0), 0);
    }
    if (gradients.any_last()) factors.padding = padding_mask(rows, p).view({N, 1});
  }
  const Workspace workspace =
      make_workspace(p, cuda::backward_workspace(choice, s, p.num_directions), choice);
  std::vector<Tensor> before[2];  // states that parts continue
  Directions streams(p);
  streams.fork();

  if (cuda::packs_weights(choice)) {
    const auto pack = [&](int first, int count) {
      std::vector<BackwardDirection> directions(count);
      const std::vector<void*> first_dgates(count);
      for (int i = 0; i < count; ++i) {
        directions[i].weight_hh = p.weight_hh(first + i).const_data_ptr();
        directions[i].reverse = first + i == 1;
        directions[i].resets = reset_pointer(p);
      }
      check(cuda::backward_recurrence(choice, s, rows.length_pointer(), directions.data(), nullptr,
                                      first_dgates.data(), count, step_gemm(p, {}),
                                      workspace.at(first), current_stream(), cuda::kPacking),
            "the packing of weight_hh", p);
    };
    if (together)
      pack(0, p.num_directions);
    else
      streams.each([&](int d) { pack(d, 1); });
  }

  // Directions [first, first + count), of a part, on the current stream.
  const auto recur = [&](int first, int count, const Queue& queue, const Steps& steps,
                         const cuda::Portion& portion) {
    RecurrenceShape shape = s;
    shape.seq_len = steps.count();
    std::vector<BackwardDirection> directions;
    std::vector<void*> first_dgates;
    for (int d = first; d < first + count; ++d) {
      directions.push_back(direction_of_steps(p, tensors, dgates, d, steps, before[first]));
      directions.back().dbias_ih = gradients.bias_of_recurrence(d, 0);
      directions.back().dbias_hh = gradients.bias_of_recurrence(d, 1);
      first_dgates.push_back(
          factors.first_dgates.defined() ? mutable_row_pointer(factors.first_dgates, d) : nullptr);
    }
    check(
        cuda::backward_recurrence(choice, shape, rows.length_pointer(), directions.data(),
                                  regularisers.at(first), first_dgates.data(), count,
                                  step_gemm(p, queue), workspace.at(first), queue.stream, portion),
        cuda::name_of(choice.kernel), p);
  };

  if (parts.size() == 1) {
    for (const cuda::Portion& portion : cuda::portions(choice, T)) {
      if (together)
        recur(0, p.num_directions, {current_stream()}, parts[0], portion);
      else
        streams.each([&](int d) { recur(d, 1, streams.queue(d), parts[0], portion); });
    }
    if (together) streams.fork();
    streams.each([&](int d) { gradients.add(d, parts[0], factors, streams.queue(d)); });
  } else {
    // A grid is not more urgent than others: two of unequal priority could each hold
    // multiprocessors that the other waits for.
    const auto role = together ? cuda::Role::kAhead : cuda::Role::kUrgentlyAhead;
    std::optional<SideStream> ahead[2];
    const auto each_recurrence = [&](const auto& run) {
      if (together)
        run(0, p.num_directions);
      else
        streams.each([&](int d) { run(d, 1); });
    };
    each_recurrence([&](int first, int) {
      ahead[first].emplace(p.input.device(), role);
      check(ahead[first]->fork(), "the fork of a recurrence's stream", p);
    });
    // A part is enqueued before the products of the one before it, so that the device begins with
    // it; those wait for their own part alone.
    for (size_t i = 0; i <= parts.size(); ++i) {
      if (i > 0)
        streams.each([&](int d) {
          check(ahead[together ? 0 : d]->precede_current(), "the wait for a recurrence", p);
        });
      if (i < parts.size())
        each_recurrence([&](int first, int count) {
          cuda::Portion portion = cuda::portions(choice, T)[0];
          portion.again = i > 0;
          ahead[first]->enter();
          recur(first, count, {current_stream()}, parts[i], portion);
          ahead[first]->leave();
        });
      if (i > 0)
        streams.each([&](int d) { gradients.add(d, parts[i - 1], factors, streams.queue(d)); });
    }
    each_recurrence([&](int first, int) {
      check(ahead[first]->join(), "the join of a recurrence's stream", p);
    });
  }
  streams.each([&](int d) { gradients.finish(d, factors, streams.queue(d)); });
  streams.join();

  BackwardResult out;
  const at::ScalarType type = p.input.scalar_type();
  const auto none = [&] { return at::empty({0}, options); };  // results must not share memory
  out.d_hx = in.needs_grad[1] && p.hx ? tensors.dhx.to(type) : none();
  out.d_cx = in.needs_grad[2] && p.cx ? tensors.dcx.to(type) : none();
  if (in.needs_grad[0]) {
    const Tensor weights = stacked_input_weights(p);
    const Tensor dx = at::empty({N, I}, options);
    GemmShape product;  // dx = dgates W_ih
    product.m = N, product.n = I, product.k = weights.size(0);
    product.lda = dgates.stride(0), product.ldb = I, product.ldc = I;
    multiply(p, streams.queue(0), product, dgates.const_data_ptr(), weights.const_data_ptr(),
             dx.data_ptr());
    out.d_input = give_rows(dx, rows, p.input.sizes());
  } else {
    out.d_input = none();
  }
  out.d_weights = gradients.results();
  return out;
}

}  // namespace birnn
