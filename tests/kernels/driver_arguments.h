// From the plain integers and pointers that ctypes passes to the structs of a call: what the
// drivers of all recurrence kernels share.
#pragma once

#include <cstdint>

#include "guard_zones.h"
#include "recurrence.h"

namespace birnn::test {

// Of a driver, instead of what the call returned: kernels wrote past an end of the workspace.
constexpr int kWorkspaceOverrun = 78;

// Calls run(workspace) with the bytes asked for, all 0xff: NaN in the float formats.
template <class Run>
int with_workspace(int64_t bytes, const Run& run) {
  const GuardedMemory workspace(static_cast<size_t>(bytes));
  const int status = run(workspace.data());
  return workspace.is_intact() ? status : kWorkspaceOverrun;
}

// sizes: cell, element, T, B, H, P.
inline RecurrenceShape shape_of(const int64_t* sizes) {
  RecurrenceShape shape;
  shape.cell = static_cast<Cell>(sizes[0]);
  shape.element = static_cast<Element>(sizes[1]);
  shape.seq_len = sizes[2];
  shape.batch_size = sizes[3];
  shape.hidden_size = sizes[4];
  shape.proj_size = sizes[5];
  return shape;
}

// pointers, in the order of ForwardDirection: weight_hh, weight_hr or weight_ch, bias_ih, bias_hh,
// hx, cx, gates, output, hy, cy, resets. strides: of gates, of output.
constexpr int kForwardPointers = 11;
inline ForwardDirection forward_direction(bool reverse, void* const* pointers,
                                          const int64_t* strides) {
  ForwardDirection direction;
  direction.reverse = reverse;
  direction.weight_hh = pointers[0];
  direction.weight_hr = direction.weight_ch = pointers[1];
  direction.bias_ih = pointers[2];
  direction.bias_hh = pointers[3];
  direction.hx = pointers[4];
  direction.cx = pointers[5];
  direction.gates = pointers[6];
  direction.gates_stride = strides[0];
  direction.output = pointers[7];
  direction.output_stride = strides[1];
  direction.hy = pointers[8];
  direction.cy = pointers[9];
  direction.resets = static_cast<const bool*>(pointers[10]);
  return direction;
}

// Behind the other pointers and strides of a direction: recurrent_mask, zoneout_h, zoneout_c; the
// strides of the last two. Zoneout is stepwise's alone.
constexpr int kRegulariserPointers = 3, kRegulariserStrides = 2;
constexpr int kForwardStrides = 2, kBackwardStrides = 5;
inline Regularisers regularisers(void* const* pointers, const int64_t* strides) {
  Regularisers regularisers;
  regularisers.recurrent_mask = pointers[0];
  regularisers.zoneout_h = pointers[1];
  regularisers.zoneout_h_stride = strides[0];
  regularisers.zoneout_c = pointers[2];
  regularisers.zoneout_c_stride = strides[1];
  return regularisers;
}

// The shape of a call that is given these.
inline RecurrenceShape regularised_shape(const int64_t* sizes, const Regularisers& regularisers,
                                         const bool* resets) {
  RecurrenceShape shape = shape_of(sizes);
  shape.resets = resets != nullptr;
  shape.recurrent_dropout = regularisers.recurrent_mask != nullptr;
  shape.zoneout = regularisers.zoneout_h || regularisers.zoneout_c;
  return shape;
}

// pointers, in the order of BackwardDirection: weight_hh, weight_hr (or weight_ch), hx, cx, output,
// reserve, dy, dc, dgates, dproj, dhx, dcx, dbias_ih, dbias_hh, resets, then first_dgates. strides:
// of output, reserve, dy, dc, dgates.
constexpr int kFirstDgates = 15;
constexpr int kBackwardPointers = kFirstDgates + 1;
inline BackwardDirection backward_direction(bool reverse, void* const* pointers,
                                            const int64_t* strides) {
  BackwardDirection direction;
  direction.reverse = reverse;
  direction.weight_hh = pointers[0];
  direction.weight_hr = direction.weight_ch = pointers[1];
  direction.hx = pointers[2];
  direction.cx = pointers[3];
  direction.output = pointers[4];
  direction.output_stride = strides[0];
  direction.reserve = pointers[5];
  direction.reserve_stride = strides[1];
  direction.dy = pointers[6];
  direction.dy_stride = strides[2];
  direction.dc = pointers[7];
  direction.dc_stride = strides[3];
  direction.dgates = pointers[8];
  direction.dgates_stride = strides[4];
  direction.dproj = pointers[9];
  direction.dhx = pointers[10];
  direction.dcx = pointers[11];
  direction.dbias_ih = pointers[12];
  direction.dbias_hh = pointers[13];
  direction.resets = static_cast<const bool*>(pointers[14]);
  return direction;
}

}  // namespace birnn::test
