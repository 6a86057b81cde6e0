// stepwise, the host side of a GRU whose reset gate comes before the product: for each step two
// library products, and a kernel of reset_before.cuh after (backward: before) each.
#pragma once

#include "cuda/stepwise/reset_before.cuh"
#include "cuda/stepwise/walk.cuh"

namespace birnn::cuda::stepwise {

template <class T>
int reset_before_forward(const Walk& walk, const int64_t* lengths, const ForwardDirection& dir,
                         const Regularisers& regularisers, bool save_reserve, void* memory) {
  const RecurrenceShape& shape = walk.shape;
  const int64_t B = shape.batch_size, H = shape.hidden_size;
  const ForwardWorkspace workspace(shape, memory);
  T* const masked = static_cast<T*>(workspace.masked);
  T* const reset_h = static_cast<T*>(workspace.reset_h);
  auto* const z = static_cast<Carried<T>*>(workspace.z);
  auto* const gates_h = static_cast<Carried<T>*>(workspace.gates_h);
  Carried<T>* const product = gates_h + B * 2 * H;
  const T* const weight_hn = static_cast<const T*>(dir.weight_hh) + 2 * H * H;
  Step step = first_step(shape, lengths, dir.reverse);
  for (step.index = walk.portion.first; step.index < walk.end(); ++step.index) {
    const void* h_prev = step.index == 0 ? dir.hx : dir.hy;
    if (masked && h_prev) {
      if (step.index == 0)
        if (const int error =
                walk.run(H, mask_initial_state_kernel<T>, step, dir, regularisers, masked))
          return error;
      h_prev = masked;
    }
    if (h_prev)
      if (const int error =
              walk.multiply_by_transpose(h_prev, 2 * H, H, dir.weight_hh, gates_h, true))
        return error;
    if (const int error = walk.run(H, reset_gates_kernel<T>, step, dir, regularisers,
                                   static_cast<const Carried<T>*>(h_prev ? gates_h : nullptr), z,
                                   reset_h, save_reserve))
      return error;
    if (h_prev)
      if (const int error = walk.multiply_by_transpose(reset_h, H, H, weight_hn, product, true))
        return error;
    if (const int error = walk.run(
            H, reset_output_kernel<T>, step, dir, regularisers, static_cast<const Carried<T>*>(z),
            static_cast<const Carried<T>*>(h_prev ? product : nullptr), masked, save_reserve))
      return error;
  }
  return 0;
}

template <class T>
int reset_before_backward(const Walk& walk, const int64_t* lengths, const BackwardDirection& dir,
                          const Regularisers& regularisers, void* first_dgates, void* memory) {
  const RecurrenceShape& shape = walk.shape;
  const int64_t B = shape.batch_size, H = shape.hidden_size;
  const BackwardWorkspace workspace(shape, memory);
  const auto* const product = static_cast<const Carried<T>*>(workspace.product);
  const auto* const reset_dh = static_cast<const Carried<T>*>(workspace.reset_dh);
  const bool gathers = lengths && dir.reverse;
  T* const step_dgates = gathers ? static_cast<T*>(workspace.step_dgates) : nullptr;
  T* const first = static_cast<T*>(first_dgates);
  const int64_t stride = gathers ? 3 * H : dir.dgates_stride;
  const T* const weight_hn = static_cast<const T*>(dir.weight_hh) + 2 * H * H;
  Step step = first_step(shape, lengths, dir.reverse);
  for (int64_t walked = walk.portion.first; walked < walk.end(); ++walked) {
    step.index = shape.seq_len - 1 - walked;
    const int64_t first_row = (dir.reverse ? shape.seq_len - 1 - step.index : step.index) * B;
    const T* const dgates =
        gathers ? step_dgates : static_cast<T*>(dir.dgates) + first_row * dir.dgates_stride;
    if (const int error = walk.run(H, reset_output_backward_kernel<T>, step, dir, regularisers,
                                   product, step_dgates, first))
      return error;
    if (const int error =
            walk.multiply_by(dgates + 2 * H, stride, H, H, weight_hn, workspace.reset_dh))
      return error;
    if (const int error = walk.run(H, reset_gates_backward_kernel<T>, step, dir, regularisers,
                                   reset_dh, step_dgates, first))
      return error;
    if (const int error =
            walk.multiply_by(dgates, stride, H, 2 * H, dir.weight_hh, workspace.product))
      return error;
  }
  if (walk.end() < shape.seq_len) return 0;
  step.index = 0;
  return walk.run(H, backward_end_kernel<T>, step, dir, regularisers, true, product);
}

}  // namespace birnn::cuda::stepwise
