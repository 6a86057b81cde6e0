// What both passes of a layer on the CPU compute with: types, kernels, weights, rows.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/recurrence_cpu.h"
#include "layer/cpu/packed_rows.h"
#include "layer/layer.h"

namespace birnn::cpu {

// What a call computes with: the kernels for its weights, and the types of its rows (x, h, their
// gradients, dgates), which the products of the weight gradients share, and of all else.
struct Numbers {
  const KernelTable* kernels;
  const char* instruction_set;
  at::ScalarType weights, rows, sums;  // weights: the matrices, as the kernels take them

  Numbers(at::ScalarType type, const RecurrenceShape& shape) : sums(at::toOpMathType(type)) {
    if (type == at::kChar) {
      take(WeightFormat::kInt8);
      weights = at::kChar;
      rows = sums = at::kFloat;
      return;
    }
    if (runs_in_plain_numbers(shape.cell)) type = sums;
    take(type == at::kDouble     ? WeightFormat::kFloat64
         : type == at::kHalf     ? WeightFormat::kFloat16
         : type == at::kBFloat16 ? WeightFormat::kBFloat16
                                 : WeightFormat::kFloat32);
    // Widening costs an instruction or two for each vector of weights in each step, which a few
    // sequences regain in bytes and more do not: LSTM, AVX-512, H = 1024, B = 1 runs 1.35 times as
    // fast as float32, H = 512, B = 32 0.6 times. The sums are the same, bit for bit.
    constexpr int64_t kFewSequences = 2;
    const bool widens = type != sums && kernels && kernels->rows != Element::kBFloat16;
    if (widens && shape.batch_size > kFewSequences) kernels = nullptr;
    weights = kernels ? type : sums;
    if (!kernels) take(WeightFormat::kFloat32);
    rows = kernels->rows == Element::kBFloat16 ? at::kBFloat16 : sums;
  }

 private:
  void take(WeightFormat format) {
    const ChosenKernels& chosen = kernels_for(format);
    kernels = chosen.table;
    instruction_set = chosen.instruction_set;
  }
};

// The weights as a pass takes them: forward multiplies rows of x by W_ih in the recurrence,
// backward rows of dgates by a product of their own type.
inline std::vector<Tensor> weights_for(const Problem& p, const Numbers& numbers, bool backward) {
  std::vector<Tensor> weights;
  for (size_t i = 0; i < p.weights.size(); ++i) {
    const Tensor& w = p.weights[i];
    const bool is_ih = i % p.weights_per_direction == 0;
    const at::ScalarType type = w.dim() == 1        ? numbers.sums
                                : is_ih && backward ? numbers.rows
                                                    : numbers.weights;
    weights.push_back(as_type(w, type).contiguous());
  }
  return weights;
}

// What the recurrence reads of a call's regularisers, and the pointers to it of each direction.
struct RegulariserOperands {
  Tensor recurrent_mask, zoneout_h, zoneout_c;  // [D, B, S], [N or 1, D*S], [N or 1, D*H]
  std::vector<Regularisers> directions;

  RegulariserOperands(const Problem& p, const Rows& rows, at::ScalarType type) {
    const auto& [mask, shares_h, shares_c] = p.regularisers;
    if (mask) recurrent_mask = read_state(*mask, rows, type);
    const auto take_shares = [&](const OptionalTensor& shares) {
      if (!shares) return Tensor();
      if (!is_one_row(*shares)) return take_rows(*shares, rows, type);
      return as_type(shares->reshape({1, -1}), type).contiguous();
    };
    zoneout_h = take_shares(shares_h), zoneout_c = take_shares(shares_c);
    directions = regularisers_of(p, recurrent_mask, zoneout_h, zoneout_c);
  }
  const Regularisers* pointer() const { return directions.empty() ? nullptr : directions.data(); }
};

inline Layer cpu_layer(const Problem& p, const Rows& rows, const RegulariserOperands& regularisers,
                       const KernelTable* kernels) {
  // Asked once, for a whole pass: its workspace depends on it.
  const bool meets = !Crowding::is_crowded();
  Layer layer{p.shape,      rows.pointers(), p.num_directions,
              p.input_size, kernels,         regularisers.pointer(),
              meets};
  layer.shape.element = kernels->rows;
  return layer;
}

}  // namespace birnn::cpu
