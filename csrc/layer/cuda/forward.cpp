// The forward pass of a layer on a GPU.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "layer/cuda/layer.h"
#include "layer/profile.h"

namespace birnn {

using namespace gpu;

ForwardResult forward_cuda(const Problem& given, bool training) {
  const OnDevice on_device(given.input.device());
  const at::NoGradGuard no_grad;
  const cuda::PlanRequest request = request_of(given, training);
  const cuda::Choice choice = choose_kernel(request, cuda::Pass::kForward);
  const ProfiledCall call(given, "forward", cuda::name_of(choice.kernel));
  Problem p = given;
  p.weights = contiguous_weights(given);
  const Rows rows = rows_of(p);
  const RecurrenceShape& s = p.shape;
  const int64_t D = p.num_directions, T = s.seq_len, B = s.batch_size, H = s.hidden_size;
  const int64_t S = s.state_size(), I = p.input_size, G = num_gates(s.cell), N = T * B;
  const auto options = p.input.options();
  const bool lstm = is_lstm(s.cell), together = cuda::runs_directions_together(choice);

  const Tensor x = take_rows(p.input, rows, p);
  const RegulariserOperands regularisers(p, rows);
  ForwardTensors tensors;
  tensors.hx = contiguous(p.hx), tensors.cx = contiguous(p.cx);
  tensors.output = at::empty({N, D * S}, options);
  tensors.hy = at::empty({D, B, S}, options);
  if (lstm) tensors.cy = at::empty({D, B, H}, options.dtype(carried_type(p.input)));
  const Tensor reserve = at::empty(
      training ? std::vector<int64_t>{D, N, reserve_blocks(s) * H} : std::vector<int64_t>{0},
      options);
  // [D, N, G*H or more]: where the projections go, and what becomes of them.
  Tensor gates;
  if (G == 1 && !s.zoneout)
    gates = tensors.output.view({N, D, S}).transpose(0, 1);
  else
    gates = training ? reserve : at::empty({D, N, G * H}, options);
  const Workspace workspace =
      make_workspace(p, cuda::forward_workspace(choice, s, p.num_directions), choice);

  std::vector<ForwardDirection> directions(D);
  for (int d = 0; d < D; ++d) {
    directions[d] = forward_direction(p, tensors, d);
    directions[d].gates = mutable_row_pointer(gates, d);
    directions[d].gates_stride = gates.stride(1);
    directions[d].resets = reset_pointer(p);
  }
  // Directions [first, first + count) on the current stream.
  const auto recur = [&](int first, int count, const Queue& queue, const cuda::Portion& portion) {
    check(cuda::forward_recurrence(choice, s, rows.length_pointer(), &directions[first],
                                   regularisers.at(first), count, training, step_gemm(p, queue),
                                   workspace.at(first), queue.stream, portion),
          cuda::name_of(choice.kernel), p);
  };
  Directions streams(p);
  streams.fork();
  // The weights first: they are packed while the host still enqueues the projection.
  if (cuda::packs_weights(choice)) {
    if (together)
      recur(0, p.num_directions, {current_stream()}, cuda::kPacking);
    else
      streams.each([&](int d) { recur(d, 1, {current_stream()}, cuda::kPacking); });
  }
  streams.each([&](int d) {
    GemmShape product;  // x W_ih^T
    product.transpose_b = true;
    product.m = N, product.n = G * H, product.k = I;
    product.lda = x.stride(0), product.ldb = I, product.ldc = directions[d].gates_stride;
    multiply(p, streams.queue(d), product, x.const_data_ptr(), p.weight_ih(d).const_data_ptr(),
             directions[d].gates);
  });
  if (together) streams.join();
  for (const cuda::Portion& portion : cuda::portions(choice, T)) {
    if (together)
      recur(0, p.num_directions, {current_stream()}, portion);
    else
      streams.each([&](int d) { recur(d, 1, streams.queue(d), portion); });
  }
  if (!together) streams.join();

  std::vector<int64_t> sizes = p.input.sizes().vec();
  sizes.back() = D * S;
  return {give_rows(tensors.output, rows, sizes), tensors.hy,
          lstm ? tensors.cy.to(p.input.scalar_type()) : at::empty({0}, options), reserve};
}

}  // namespace birnn
