// stepwise, the host side: for each step a library product and a kernel of stepwise.cuh.
#include "cuda/stepwise/stepwise.cuh"

#include "cuda/recurrence_cuda.h"
#include "cuda/stepwise/reset_before.cuh"
#include "cuda/stepwise/sizes.h"
#include "cuda/stepwise/walk.cuh"

namespace birnn::cuda {
namespace {

using namespace stepwise;

template <Cell kCell, class T>
int forward(const Walk& walk, const int64_t* lengths, const ForwardDirection& dir,
            const Regularisers& regularisers, bool save_reserve, void* memory) {
  const RecurrenceShape& shape = walk.shape;
  const int64_t H = shape.hidden_size, S = shape.state_size();
  const ForwardWorkspace workspace(shape, memory);
  T* const masked = static_cast<T*>(workspace.masked);
  Step step = first_step(shape, lengths, dir.reverse);
  for (step.index = walk.portion.first; step.index < walk.end(); ++step.index) {
    const void* h_prev = step.index == 0 ? dir.hx : dir.hy;
    if (masked && h_prev) {
      if (step.index == 0)
        if (const int error =
                walk.run(S, mask_initial_state_kernel<T>, step, dir, regularisers, masked))
          return error;
      h_prev = masked;
    }
    const Carried<T>* const gates_h =
        h_prev ? static_cast<const Carried<T>*>(workspace.gates_h) : nullptr;
    if (h_prev) {
      const int64_t columns = num_gates(kCell) * H;
      if (const int error = walk.multiply_by_transpose(h_prev, columns, S, dir.weight_hh,
                                                       workspace.gates_h, true))
        return error;
    }
    if (const int error = walk.run(H, forward_step_kernel<kCell, T>, step, dir, regularisers,
                                   gates_h, static_cast<T*>(workspace.wide), masked, save_reserve))
      return error;
    if (shape.proj_size == 0) continue;
    if (const int error = walk.multiply_by_transpose(workspace.wide, S, H, dir.weight_hr,
                                                     workspace.projected, false))
      return error;
    if (const int error = walk.run(S, forward_projection_kernel<T>, step, dir, regularisers,
                                   static_cast<const T*>(workspace.projected), masked))
      return error;
  }
  return 0;
}

template <Cell kCell, class T>
int backward(const Walk& walk, const int64_t* lengths, const BackwardDirection& dir,
             const Regularisers& regularisers, void* first_dgates, void* memory) {
  const RecurrenceShape& shape = walk.shape;
  const int64_t B = shape.batch_size, H = shape.hidden_size, S = shape.state_size();
  const BackwardWorkspace workspace(shape, memory);
  const auto* const product = static_cast<const Carried<T>*>(workspace.product);
  const auto* const wide_dh = static_cast<const Carried<T>*>(workspace.wide_dh);
  // The product takes a step's rows where they are, unless they lie at different times: then the
  // kernels gather them beside.
  const bool gathers = lengths && dir.reverse;
  T* const step_dgates = gathers ? static_cast<T*>(workspace.step_dgates) : nullptr;
  T* const step_dproj = gathers ? static_cast<T*>(workspace.step_dproj) : nullptr;
  // The blocks of dgates that belong to weight_hh: for a GRU the last three of four.
  const int64_t first_column = (dgates_blocks(kCell) - num_gates(kCell)) * H;

  Step step = first_step(shape, lengths, dir.reverse);
  for (int64_t walked = walk.portion.first; walked < walk.end(); ++walked) {
    step.index = shape.seq_len - 1 - walked;
    const int64_t first_row = (dir.reverse ? shape.seq_len - 1 - step.index : step.index) * B;
    if (shape.proj_size) {
      if (const int error = walk.run(S, backward_projection_kernel<T>, step, dir, regularisers,
                                     product, step_dproj))
        return error;
      const T* const dproj = gathers ? step_dproj : static_cast<T*>(dir.dproj) + first_row * S;
      if (const int error = walk.multiply_by(dproj, S, H, S, dir.weight_hr, workspace.wide_dh))
        return error;
    }
    if (const int error = walk.run(H, backward_step_kernel<kCell, T>, step, dir, regularisers,
                                   product, wide_dh, step_dgates, static_cast<T*>(first_dgates)))
      return error;
    const T* const dgates =
        gathers ? step_dgates : static_cast<T*>(dir.dgates) + first_row * dir.dgates_stride;
    if (const int error = walk.multiply_by(
            dgates + first_column, gathers ? dgates_blocks(kCell) * H : dir.dgates_stride, S,
            num_gates(kCell) * H, dir.weight_hh, workspace.product))
      return error;
  }
  if (walk.end() < shape.seq_len) return 0;
  step.index = 0;
  return walk.run(S, backward_end_kernel<T>, step, dir, regularisers, kCell == Cell::kGru, product);
}

// The two with the reset gate before the product.
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

template <class T>
int forward_of_cell(const Walk& walk, const int64_t* lengths, const ForwardDirection& dir,
                    const Regularisers& regularisers, bool save_reserve, void* workspace) {
  switch (walk.shape.cell) {
    case Cell::kTanh:
      return forward<Cell::kTanh, T>(walk, lengths, dir, regularisers, save_reserve, workspace);
    case Cell::kRelu:
      return forward<Cell::kRelu, T>(walk, lengths, dir, regularisers, save_reserve, workspace);
    case Cell::kGru:
      return forward<Cell::kGru, T>(walk, lengths, dir, regularisers, save_reserve, workspace);
    case Cell::kGruResetBefore:
      return reset_before_forward<T>(walk, lengths, dir, regularisers, save_reserve, workspace);
    case Cell::kLstmPeepholes:
      return forward<Cell::kLstmPeepholes, T>(walk, lengths, dir, regularisers, save_reserve,
                                              workspace);
    case Cell::kLstm:
      break;
  }
  return forward<Cell::kLstm, T>(walk, lengths, dir, regularisers, save_reserve, workspace);
}

template <class T>
int backward_of_cell(const Walk& walk, const int64_t* lengths, const BackwardDirection& dir,
                     const Regularisers& regularisers, void* first_dgates, void* workspace) {
  switch (walk.shape.cell) {
    case Cell::kTanh:
      return backward<Cell::kTanh, T>(walk, lengths, dir, regularisers, first_dgates, workspace);
    case Cell::kRelu:
      return backward<Cell::kRelu, T>(walk, lengths, dir, regularisers, first_dgates, workspace);
    case Cell::kGru:
      return backward<Cell::kGru, T>(walk, lengths, dir, regularisers, first_dgates, workspace);
    case Cell::kGruResetBefore:
      return reset_before_backward<T>(walk, lengths, dir, regularisers, first_dgates, workspace);
    case Cell::kLstmPeepholes:
      return backward<Cell::kLstmPeepholes, T>(walk, lengths, dir, regularisers, first_dgates,
                                               workspace);
    case Cell::kLstm:
      break;
  }
  return backward<Cell::kLstm, T>(walk, lengths, dir, regularisers, first_dgates, workspace);
}

}  // namespace

int64_t stepwise_forward_workspace(const RecurrenceShape& shape) {
  return ForwardWorkspace(shape, nullptr).bytes;
}

int64_t stepwise_backward_workspace(const RecurrenceShape& shape) {
  return BackwardWorkspace(shape, nullptr).bytes;
}

int stepwise_forward(const RecurrenceShape& shape, const int64_t* lengths,
                     const ForwardDirection& direction, const Regularisers& regularisers,
                     bool save_reserve, const StepGemm& gemm, void* workspace, void* stream,
                     const Portion& portion) {
  const Walk walk{shape, gemm, stream, portion};
  const auto run = [&](auto forward_of) {
    return forward_of(walk, lengths, direction, regularisers, save_reserve, workspace);
  };
  switch (shape.element) {
    case Element::kFloat64:
      return run(forward_of_cell<double>);
    case Element::kFloat32:
      return run(forward_of_cell<float>);
    case Element::kFloat16:
      return run(forward_of_cell<Half>);
    case Element::kBFloat16:
      break;
  }
  return run(forward_of_cell<BFloat16>);
}

int stepwise_backward(const RecurrenceShape& shape, const int64_t* lengths,
                      const BackwardDirection& direction, const Regularisers& regularisers,
                      void* first_dgates, const StepGemm& gemm, void* workspace, void* stream,
                      const Portion& portion) {
  const Walk walk{shape, gemm, stream, portion};
  const auto run = [&](auto backward_of) {
    return backward_of(walk, lengths, direction, regularisers, first_dgates, workspace);
  };
  switch (shape.element) {
    case Element::kFloat64:
      return run(backward_of_cell<double>);
    case Element::kFloat32:
      return run(backward_of_cell<float>);
    case Element::kFloat16:
      return run(backward_of_cell<Half>);
    case Element::kBFloat16:
      break;
  }
  return run(backward_of_cell<BFloat16>);
}

}  // namespace birnn::cuda
