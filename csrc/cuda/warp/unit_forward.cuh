// One step of one hidden unit of one sequence, the equations of cells.h in the terms of
// ForwardDirection (recurrence.h): what the persistent forward kernels do once a thread has the
// products of all gates of a unit.
#pragma once

#include "cells.h"
#include "cuda/device/device.h"
#include "recurrence.h"

namespace birnn::cuda {

using namespace birnn::device;

// Values that a step leaves in the reserve, if it leaves any; at least one, for arrays of them.
template <Cell kCell>
constexpr bool kHasReserve = reserve_blocks(kCell) > 0;
template <Cell kCell>
constexpr int kKeptBlocks = kHasReserve<kCell> ? reserve_blocks(kCell) : 1;

// h of one step from its sums (num_sums) of W_ih x, W_hh h and the biases. h is the state before;
// replaces c; writes the reserve's blocks, not yet rounded.
template <Cell kCell, class Math>
struct CellForward;

template <class Math>
struct CellForward<Cell::kTanh, Math> {
  static BIRNN_DEVICE float run(const float (&sums)[1], float, float&, float (&)[1]) {
    return TanhCell<Math>::forward(sums[0]);
  }
};

template <class Math>
struct CellForward<Cell::kRelu, Math> {
  static BIRNN_DEVICE float run(const float (&sums)[1], float, float&, float (&)[1]) {
    return ReluCell<Math>::forward(sums[0]);
  }
};

template <class Math>
struct CellForward<Cell::kGru, Math> {
  static BIRNN_DEVICE float run(const float (&sums)[4], float h, float&, float (&kept)[4]) {
    typename GruCell<Math>::Activations act;
    const float h_new = GruCell<Math>::forward(sums[0], sums[1], sums[2], sums[3], h, act);
    kept[0] = act.r;
    kept[1] = act.z;
    kept[2] = act.n;
    kept[3] = sums[3];
    return h_new;
  }
};

template <class Math>
struct CellForward<Cell::kLstm, Math> {
  static BIRNN_DEVICE float run(const float (&sums)[4], float, float& c, float (&kept)[5]) {
    typename LstmCell<Math>::Activations act;
    const float h_new = LstmCell<Math>::forward(sums[0], sums[1], sums[2], sums[3], c, act);
    kept[0] = act.i;
    kept[1] = act.f;
    kept[2] = act.g;
    kept[3] = act.o;
    kept[4] = c;
    return h_new;
  }
};

// The same from the parts. input: W_ih x, recurrent: W_hh h, a number for each gate.
template <Cell kCell, class Math>
struct UnitForward {
  static BIRNN_DEVICE float run(const float (&input)[kNumGates<kCell>],
                                const float (&recurrent)[kNumGates<kCell>],
                                const float (&bias)[kNumSums<kCell>], float h, float& c,
                                float (&kept)[kKeptBlocks<kCell>]) {
    float sums[kNumSums<kCell>];
    BIRNN_UNROLL
    for (int i = 0; i < kNumGates<kCell>; ++i) sums[i] = input[i] + recurrent[i] + bias[i];
    if constexpr (kCell == Cell::kGru) {
      sums[2] = input[2] + bias[2];
      sums[3] = recurrent[2] + bias[3];
    }
    return CellForward<kCell, Math>::run(sums, h, c, kept);
  }
};

// What the biases add to sum `of` of a unit.
template <Cell kCell, class T>
BIRNN_DEVICE float unit_bias(const ForwardDirection& dir, int of, int hidden_size, int unit) {
  const auto of_gate = [&](const void* bias) {
    return [=](int gate) {
      return bias ? to_float(static_cast<const T*>(bias)[gate * hidden_size + unit]) : 0.0f;
    };
  };
  return bias_of_sum<kCell>(of, of_gate(dir.bias_ih), of_gate(dir.bias_hh));
}

// The steps of a sequence: lengths [B] or null, clamped to [0, T].
BIRNN_DEVICE int clamped_length(const int64_t* lengths, int b, int seq_len) {
  if (!lengths) return seq_len;
  const int64_t given = lengths[b];
  return given < 0 ? 0 : given < seq_len ? static_cast<int>(given) : seq_len;
}

}  // namespace birnn::cuda
