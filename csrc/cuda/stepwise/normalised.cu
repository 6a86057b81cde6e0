// stepwise, a layer-normalised GRU or LSTM, the host side: for each step a library product and a
// kernel of normalised.cuh.
#include "cuda/stepwise/normalised.cuh"

#include "cuda/recurrence_cuda.h"
#include "cuda/stepwise/sizes.h"
#include "cuda/stepwise/walk.cuh"

namespace birnn::cuda {
namespace {

using namespace stepwise;

LaunchConfig rows_of(const Walk& walk) {
  const RecurrenceShape& s = walk.shape;
  return config_for_rows(s.hidden_size, s.batch_size, element_bytes(s.element), walk.stream);
}

template <Cell kCell, class T>
int forward(const Walk& walk, const int64_t* lengths, const NormalisedDirection& dir,
            void* memory) {
  const int64_t H = walk.shape.hidden_size;
  T* const sums = static_cast<T*>(NormalisedForwardWorkspace(walk.shape, memory).sums);
  Step step = first_step(walk.shape, lengths, dir.reverse);
  for (step.index = walk.portion.first; step.index < walk.end(); ++step.index) {
    const void* const h_prev = step.index == 0 ? dir.hx : dir.hy;
    if (h_prev)
      if (const int error = walk.multiply_by_transpose(h_prev, num_gates(kCell) * H, H,
                                                       dir.weight_hh, sums, true))
        return error;
    if (const int error = walk.run(rows_of(walk), normalised_forward_kernel<kCell, T>, step, dir,
                                   static_cast<const T*>(h_prev ? sums : nullptr)))
      return error;
  }
  return 0;
}

template <Cell kCell, class T>
int backward(const Walk& walk, const int64_t* lengths, const NormalisedDirection& dir,
             void* memory) {
  const RecurrenceShape& shape = walk.shape;
  const int64_t H = shape.hidden_size, columns = num_gates(kCell) * H;
  const NormalisedBackwardWorkspace workspace(shape, memory);
  const T* const product = static_cast<const T*>(workspace.product);
  // The product takes a step's rows where they are, unless they lie at different times.
  const bool gathers = lengths && dir.reverse;
  T* const step_dsums = gathers ? static_cast<T*>(workspace.step_dsums) : nullptr;
  Step step = first_step(shape, lengths, dir.reverse);
  for (int64_t walked = walk.portion.first; walked < walk.end(); ++walked) {
    step.index = shape.seq_len - 1 - walked;
    if (const int error = walk.run(rows_of(walk), normalised_backward_kernel<kCell, T>, step, dir,
                                   product, step_dsums))
      return error;
    const int64_t time = dir.reverse ? shape.seq_len - 1 - step.index : step.index;
    const T* const dsums =
        gathers ? step_dsums : static_cast<T*>(dir.dsums) + time * shape.batch_size * columns;
    if (const int error =
            walk.multiply_by(dsums, columns, H, columns, dir.weight_hh, workspace.product))
      return error;
  }
  if (walk.end() < shape.seq_len) return 0;
  step.index = 0;
  BackwardDirection end;
  end.dhx = dir.dhx;
  end.resets = dir.resets;
  return walk.run(H, backward_end_kernel<T>, step, end, Regularisers{}, kCell == Cell::kGru,
                  product);
}

bool has_instance(const RecurrenceShape& s) {
  return (s.cell == Cell::kGru || s.cell == Cell::kLstm) &&
         (s.element == Element::kFloat32 || s.element == Element::kFloat64);
}

}  // namespace

int64_t normalised_forward_workspace(const RecurrenceShape& shape) {
  return NormalisedForwardWorkspace(shape, nullptr).bytes;
}

int64_t normalised_backward_workspace(const RecurrenceShape& shape) {
  return NormalisedBackwardWorkspace(shape, nullptr).bytes;
}

int normalised_forward(const RecurrenceShape& shape, const int64_t* lengths,
                       const NormalisedDirection& direction, const StepGemm& gemm, void* workspace,
                       void* stream, const Portion& portion) {
  if (!has_instance(shape)) return kNoInstance;
  const Walk walk{shape, gemm, stream, portion};
  const auto run = [&](auto of_float, auto of_double) {
    return (shape.element == Element::kFloat32 ? of_float : of_double)(walk, lengths, direction,
                                                                       workspace);
  };
  return shape.cell == Cell::kGru ? run(forward<Cell::kGru, float>, forward<Cell::kGru, double>)
                                  : run(forward<Cell::kLstm, float>, forward<Cell::kLstm, double>);
}

int normalised_backward(const RecurrenceShape& shape, const int64_t* lengths,
                        const NormalisedDirection& direction, const StepGemm& gemm, void* workspace,
                        void* stream, const Portion& portion) {
  if (!has_instance(shape)) return kNoInstance;
  const Walk walk{shape, gemm, stream, portion};
  const auto run = [&](auto of_float, auto of_double) {
    return (shape.element == Element::kFloat32 ? of_float : of_double)(walk, lengths, direction,
                                                                       workspace);
  };
  return shape.cell == Cell::kGru
             ? run(backward<Cell::kGru, float>, backward<Cell::kGru, double>)
             : run(backward<Cell::kLstm, float>, backward<Cell::kLstm, double>);
}

}  // namespace birnn::cuda
