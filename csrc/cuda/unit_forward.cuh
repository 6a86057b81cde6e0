// One step of one hidden unit of one sequence, the equations of cells.h in the terms of
// ForwardDirection (recurrence.h): what the persistent forward kernels do once a thread has the
// products of all gates of a unit.
#pragma once

#include "../cells.h"
#include "../recurrence.h"
#include "device.h"

namespace birnn::cuda {

using namespace birnn::device;

// Blocks of H in a direction's bias: a GRU keeps the two biases of n apart.
template <Cell kCell>
constexpr int kBiasBlocks = kCell == Cell::kGru ? 4 : num_gates(kCell);
// Values that a step leaves in the reserve, at least one, so that arrays can hold them.
template <Cell kCell>
constexpr int kKeptBlocks = reserve_blocks(kCell) > 0 ? reserve_blocks(kCell) : 1;

// input: W_ih x, recurrent: W_hh h, a number for each gate. Returns h of this step from h of the
// step before, replaces c, and writes the reserve's blocks, rounded to nothing yet.
template <Cell kCell, class Math>
struct UnitForward;

template <class Math>
struct UnitForward<Cell::kTanh, Math> {
  static BIRNN_DEVICE float run(const float (&input)[1], const float (&recurrent)[1],
                                const float (&bias)[1], float, float&, float (&)[1]) {
    return TanhCell<Math>::forward(input[0] + recurrent[0] + bias[0]);
  }
};

template <class Math>
struct UnitForward<Cell::kRelu, Math> {
  static BIRNN_DEVICE float run(const float (&input)[1], const float (&recurrent)[1],
                                const float (&bias)[1], float, float&, float (&)[1]) {
    return ReluCell<Math>::forward(input[0] + recurrent[0] + bias[0]);
  }
};

template <class Math>
struct UnitForward<Cell::kGru, Math> {
  static BIRNN_DEVICE float run(const float (&input)[3], const float (&recurrent)[3],
                                const float (&bias)[4], float h, float&, float (&kept)[4]) {
    typename GruCell<Math>::Activations act;
    const float q = recurrent[2] + bias[3];
    const float h_new =
        GruCell<Math>::forward(input[0] + recurrent[0] + bias[0], input[1] + recurrent[1] + bias[1],
                               input[2] + bias[2], q, h, act);
    kept[0] = act.r;
    kept[1] = act.z;
    kept[2] = act.n;
    kept[3] = q;
    return h_new;
  }
};

template <class Math>
struct UnitForward<Cell::kLstm, Math> {
  static BIRNN_DEVICE float run(const float (&input)[4], const float (&recurrent)[4],
                                const float (&bias)[4], float, float& c, float (&kept)[5]) {
    typename LstmCell<Math>::Activations act;
    const float h_new = LstmCell<Math>::forward(
        input[0] + recurrent[0] + bias[0], input[1] + recurrent[1] + bias[1],
        input[2] + recurrent[2] + bias[2], input[3] + recurrent[3] + bias[3], c, act);
    kept[0] = act.i;
    kept[1] = act.f;
    kept[2] = act.g;
    kept[3] = act.o;
    kept[4] = c;
    return h_new;
  }
};

// The steps of a sequence: lengths [B] or null, clamped to [0, T].
BIRNN_DEVICE int clamped_length(const int64_t* lengths, int b, int seq_len) {
  if (!lengths) return seq_len;
  const int64_t given = lengths[b];
  return given < 0 ? 0 : given < seq_len ? static_cast<int>(given) : seq_len;
}

}  // namespace birnn::cuda
