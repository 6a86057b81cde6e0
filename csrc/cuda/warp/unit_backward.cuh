// The cell of one hidden unit of one sequence in a persistent backward kernel. Equations: cells.h.
#pragma once

#include "cells.h"
#include "cuda/device/device.h"
#include "recurrence.h"

namespace birnn::cuda {

using namespace birnn::device;

// dgates: blocks of dgates in their order in memory.
template <Cell kCell, class Math>
struct UnitBackward;
template <class Math>
struct UnitBackward<Cell::kTanh, Math> {
  static BIRNN_DEVICE void run(float dh, const float (&act)[1], float, float, float&,
                               float (&dgates)[1]) {
    dgates[0] = TanhCell<Math>::backward(dh, act[0]);
  }
};
template <class Math>
struct UnitBackward<Cell::kRelu, Math> {
  static BIRNN_DEVICE void run(float dh, const float (&act)[1], float, float, float&,
                               float (&dgates)[1]) {
    dgates[0] = ReluCell<Math>::backward(dh, act[0]);
  }
};
template <class Math>
struct UnitBackward<Cell::kGru, Math> {
  // carried: the gradient along z * h
  static BIRNN_DEVICE void run(float dh, const float (&act)[4], float h_before, float,
                               float& carried, float (&dgates)[4]) {
    const auto d = GruCell<Math>::backward(dh, {act[0], act[1], act[2]}, act[3], h_before);
    dgates[0] = d.n;
    dgates[1] = d.r;
    dgates[2] = d.z;
    dgates[3] = d.n_recurrent;
    carried = d.h_direct;
  }
};
template <class Math>
struct UnitBackward<Cell::kLstm, Math> {
  // carried: dc
  static BIRNN_DEVICE void run(float dh, const float (&act)[4], float c_before, float c_after,
                               float& carried, float (&dgates)[4]) {
    const auto d =
        LstmCell<Math>::backward(dh, carried, {act[0], act[1], act[2], act[3]}, c_after, c_before);
    dgates[0] = d.i;
    dgates[1] = d.f;
    dgates[2] = d.g;
    dgates[3] = d.o;
    carried = d.c;
  }
};

}  // namespace birnn::cuda
