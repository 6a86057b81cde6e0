// stepwise, the device side: one step of a direction after (backward: before) the library product.
//
// Any shape, any element type. A thread owns a unit of a sequence, in the equations of cells.h:
//
//   forward    gates_h = h_prev W_hh^T (library)   ->  forward_step_kernel: the cell
//   backward   backward_step_kernel: dgates        ->  product = dgates W_hh (library)
//
// with a second product and a small kernel for an LSTM's projection. Elements are read and written
// as they are; gates, c, dc and dh are computed and carried in fp32 (fp64 for fp64).
//
// Regularisers: the masked h is written beside h, for the library to multiply; what zoneout leaves
// of dh past the cell waits in dhx for the product that it is added to.
//
// Where a sequence begins inside a row (`resets`), the step that would continue the one before it
// takes zeros for what is carried: the library has multiplied that too, but nobody reads the
// result.
//
// A direction's step is counted from where it starts: step s of sequence b is t = s forward and
// t = length - 1 - s in reverse. From s = length on the sequence rests: its state is left alone,
// and step s writes zeros to row t = s of what is padded. So each step writes one row of every
// sequence, and all T steps write every row. Rows past the end are never read.
//
// Threads lie along units (accesses are coalesced), blocks along x over units and along y over
// sequences, both in strides: any size fits any grid. No shared memory, no communication.
#pragma once

#include "cells.h"
#include "cuda/device/device.h"
#include "cuda/stepwise/sizes.h"
#include "recurrence.h"

namespace birnn::cuda::stepwise {

using namespace birnn::device;

// What an element is computed and carried in.
template <class T>
struct CarriedType {
  using Type = float;
};
template <>
struct CarriedType<double> {
  using Type = double;
};
template <class T>
using Carried = typename CarriedType<T>::Type;

template <class T>
BIRNN_DEVICE float load(const T* source) {
  return to_float(*source);
}
BIRNN_DEVICE double load(const double* source) { return *source; }

template <class T>
BIRNN_DEVICE void store(T* destination, float value) {
  *destination = from_float<T>(value);
}
BIRNN_DEVICE void store(double* destination, double value) { *destination = value; }

// The element at `index`, or zero where there is no array.
template <class T>
BIRNN_DEVICE Carried<T> load_or_zero(const void* array, int64_t index) {
  return array ? load(static_cast<const T*>(array) + index) : Carried<T>(0);
}

template <class Real>
struct ScalarMath {
  using Value = Real;
  static BIRNN_DEVICE Real one() { return Real(1); }
  static BIRNN_DEVICE Real tanh(Real x) { return tanh_precise(x); }
  // exp overflows to infinity and the quotient to its limit 0.
  static BIRNN_DEVICE Real sigmoid(Real x) { return Real(1) / (Real(1) + exp_precise(-x)); }
  static BIRNN_DEVICE Real zero_where_not_positive(Real value, Real condition) {
    return condition <= Real(0) ? Real(0) : value;
  }
};

// An LSTM's peepholes [3*H] of unit u.
template <class T>
BIRNN_DEVICE auto peepholes_of(const void* weight_ch, int64_t hidden_size, int64_t u) {
  const T* const w = static_cast<const T*>(weight_ch) + u;
  return typename PeepholeLstmCell<ScalarMath<Carried<T>>>::Peepholes{
      load(w), load(w + hidden_size), load(w + 2 * hidden_size)};
}

// One step of one direction over the batch.
struct Step {
  int64_t index = 0;                 // s
  const int64_t* lengths = nullptr;  // [B], null: all are T
  int64_t seq_len = 0, batch_size = 0, hidden_size = 0, state_size = 0;
  bool reverse = false;
};

// A sequence at a step: while active its row is that of step s, afterwards the row to be padded.
struct Position {
  int64_t length, row, previous_row;
  bool active;
};

// Whether an active step continues nothing, and whether the step after it continues nothing of it.
BIRNN_DEVICE bool begins_anew(const Step& step, const bool* resets, const Position& at) {
  if (!resets) return false;
  return step.reverse ? step.index > 0 && resets[at.previous_row] : resets[at.row];
}
BIRNN_DEVICE bool ends_before_next(const Step& step, const bool* resets, const Position& at) {
  if (!resets || step.index + 1 >= at.length) return false;
  return resets[step.reverse ? at.row : at.row + step.batch_size];
}

BIRNN_DEVICE Position position_of(const Step& step, int64_t b) {
  Position at;
  at.length = step.seq_len;
  if (step.lengths) {
    const int64_t given = step.lengths[b];
    at.length = given < 0 ? 0 : given < step.seq_len ? given : step.seq_len;
  }
  at.active = step.index < at.length;
  const bool backwards = at.active && step.reverse;
  const int64_t t = backwards ? at.length - 1 - step.index : step.index;
  at.row = t * step.batch_size + b;
  at.previous_row = backwards ? at.row + step.batch_size : at.row - step.batch_size;
  return at;
}

// Calls body(b, at, u) for this thread's units u of `width`, of its sequences b.
template <class Body>
BIRNN_DEVICE void for_each_unit(const Step& step, int64_t width, const Body& body) {
  const int64_t first = int64_t{block_idx().x} * block_dim() + thread_idx();
  const int64_t stride = int64_t{grid_dim().x} * block_dim();
  for (int64_t b = block_idx().y; b < step.batch_size; b += grid_dim().y) {
    const Position at = position_of(step, b);
    for (int64_t u = first; u < width; u += stride) body(b, at, u);
  }
}

// ---------------------------------------------------------------------------------------------
// Forward.

// masked [B, S]: h as it enters its product with W_hh, null where that is h itself.
template <class T>
BIRNN_DEVICE void store_masked(const Regularisers& regularisers, T* masked, int64_t state,
                               Carried<T> h) {
  if (masked) store(masked + state, h * load_or_zero<T>(regularisers.recurrent_mask, state));
}

// zoneout's h, of the step's own.
template <class T>
BIRNN_DEVICE Carried<T> mixed_h(const Step& step, const ForwardDirection& dir,
                                const Regularisers& regularisers, const Position& at, bool anew,
                                int64_t state, int64_t u, Carried<T> h) {
  if (!regularisers.zoneout_h) return h;
  const Carried<T> carried = step.index == 0 ? load_or_zero<T>(dir.hx, state)
                                             : load(static_cast<const T*>(dir.hy) + state);
  const Carried<T> share =
      load_or_zero<T>(regularisers.zoneout_h, at.row * regularisers.zoneout_h_stride + u);
  return Zoneout<ScalarMath<Carried<T>>>::mix(h, anew ? Carried<T>(0) : carried, share);
}

// Before the first step: masked of hx.
template <class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxThreads,
                                 1) void mask_initial_state_kernel(Step step, ForwardDirection dir,
                                                                   Regularisers regularisers,
                                                                   T* masked) {
  for_each_unit(step, step.state_size, [&](int64_t b, const Position&, int64_t u) {
    const int64_t state = b * step.state_size + u;
    store_masked(regularisers, masked, state, load_or_zero<T>(dir.hx, state));
  });
}

// gates_h [B, G*H], null where h_prev is zero. wide [B, H]: h before the projection, null for none.
template <Cell kCell, class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxThreads,
                                 1) void forward_step_kernel(Step step, ForwardDirection dir,
                                                             Regularisers regularisers,
                                                             const Carried<T>* gates_h, T* wide,
                                                             T* masked, bool save_reserve) {
  using Real = Carried<T>;
  using Math = ScalarMath<Real>;
  const int64_t H = step.hidden_size;
  const bool is_first = step.index == 0;
  T* const hy = static_cast<T*>(dir.hy);
  Real* const cy = static_cast<Real*>(dir.cy);

  for_each_unit(step, H, [&](int64_t b, const Position& at, int64_t u) {
    const int64_t unit = b * H + u;  // in [B, H]; without projection S = H
    T* const output = static_cast<T*>(dir.output) + at.row * dir.output_stride + u;
    if (!at.active) {
      if (wide) {
        if (is_first) store(wide + unit, Real(0));
      } else {
        store(output, Real(0));
        if (is_first) store(hy + unit, load_or_zero<T>(dir.hx, unit));
        if (is_first) store_masked(regularisers, masked, unit, Real(0));
      }
      if constexpr (kIsLstm<kCell>) {
        if (is_first) cy[unit] = load_or_zero<T>(dir.cx, unit);
      }
      return;
    }

    const bool anew = begins_anew(step, dir.resets, at);
    T* const gates = static_cast<T*>(dir.gates) + at.row * dir.gates_stride + u;
    const auto input_part = [&](int gate) { return load(gates + gate * H); };
    const auto recurrent_part = [&](int gate) {
      return gates_h && !anew ? gates_h[(b * kNumGates<kCell> + gate) * H + u] : Real(0);
    };
    const auto of_gate = [&](const void* bias) {
      return [=](int gate) { return load_or_zero<T>(bias, gate * H + u); };
    };
    const auto bias = [&](int of) {
      return bias_of_sum<kCell>(of, of_gate(dir.bias_ih), of_gate(dir.bias_hh));
    };
    const auto preactivation = [&](int gate) {
      return input_part(gate) + recurrent_part(gate) + bias(gate);
    };
    const auto keep = [&](int block, Real value) {
      if (save_reserve) store(gates + block * H, value);
    };

    Real h;
    if constexpr (kCell == Cell::kTanh || kCell == Cell::kRelu) {
      const Real a = preactivation(0);
      h = kCell == Cell::kTanh ? TanhCell<Math>::forward(a) : ReluCell<Math>::forward(a);
      if (regularisers.zoneout_h) keep(0, h);
    } else if constexpr (kCell == Cell::kGru) {
      const Real carried = is_first ? load_or_zero<T>(dir.hx, unit) : load(hy + unit);
      const Real h_prev = anew ? Real(0) : carried;
      const Real q = recurrent_part(2) + bias(3);
      typename GruCell<Math>::Activations act;
      h = GruCell<Math>::forward(preactivation(0), preactivation(1), input_part(2) + bias(2), q,
                                 h_prev, act);
      keep(0, act.r);
      keep(1, act.z);
      keep(2, act.n);
      keep(3, q);
    } else {
      const Real carried = is_first ? load_or_zero<T>(dir.cx, unit) : cy[unit];
      const Real c_prev = anew ? Real(0) : carried;
      Real c = c_prev;
      typename LstmCell<Math>::Activations act;
      if constexpr (kCell == Cell::kLstmPeepholes)
        h = PeepholeLstmCell<Math>::forward(preactivation(0), preactivation(1), preactivation(2),
                                            preactivation(3), c,
                                            peepholes_of<T>(dir.weight_ch, H, u), act);
      else
        h = LstmCell<Math>::forward(preactivation(0), preactivation(1), preactivation(2),
                                    preactivation(3), c, act);
      if (regularisers.zoneout_h || regularisers.zoneout_c) keep(5, c);
      if (regularisers.zoneout_c) {
        const int64_t shares = at.row * regularisers.zoneout_c_stride + u;
        c = Zoneout<Math>::mix(c, c_prev, load_or_zero<T>(regularisers.zoneout_c, shares));
      }
      cy[unit] = c;
      keep(0, act.i);
      keep(1, act.f);
      keep(2, act.g);
      keep(3, act.o);
      keep(4, c);
    }
    if (wide) {
      store(wide + unit, h);
    } else {
      h = mixed_h<T>(step, dir, regularisers, at, anew, unit, u, h);
      store(output, h);
      store(hy + unit, h);
      store_masked(regularisers, masked, unit, h);
    }
  });
}

// projected [B, P] = wide W_hr^T: the state of the sequences that are active.
template <class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxThreads,
                                 1) void forward_projection_kernel(Step step, ForwardDirection dir,
                                                                   Regularisers regularisers,
                                                                   const T* projected, T* masked) {
  const int64_t P = step.state_size;
  T* const hy = static_cast<T*>(dir.hy);
  for_each_unit(step, P, [&](int64_t b, const Position& at, int64_t u) {
    const int64_t unit = b * P + u;
    T* const output = static_cast<T*>(dir.output) + at.row * dir.output_stride + u;
    if (at.active) {
      const bool anew = begins_anew(step, dir.resets, at);
      const Carried<T> h =
          mixed_h<T>(step, dir, regularisers, at, anew, unit, u, load(projected + unit));
      store(output, h);
      store(hy + unit, h);
      store_masked(regularisers, masked, unit, h);
    } else {
      store(output, Carried<T>(0));
      if (step.index == 0) store(hy + unit, load_or_zero<T>(dir.hx, unit));
      if (step.index == 0) store_masked(regularisers, masked, unit, Carried<T>(0));
    }
  });
}

// ---------------------------------------------------------------------------------------------
// Backward. dh, the gradient of the state after step s, comes from step s + 1 by `product`
// [B, S] = dgates W_hh of that step, times the mask of its h; the direct paths of a GRU and of
// zoneout are left in dhx beside it. At a sequence's last step dh is dhy, which dhx holds on entry.
// `is_cut`: nothing comes.

template <class T, class Direction>
BIRNN_DEVICE Carried<T> carried_dh(const Direction& dir, const Regularisers& regularisers,
                                   bool is_last, bool is_cut, bool is_gru,
                                   const Carried<T>* product, int64_t state) {
  if (is_cut) return Carried<T>(0);
  const Carried<T>* dhx = static_cast<const Carried<T>*>(dir.dhx);
  if (is_last) return dhx[state];
  const Carried<T> factor =
      regularisers.recurrent_mask ? load_or_zero<T>(regularisers.recurrent_mask, state) : 1;
  const Carried<T> dh = factor * product[state];
  return is_gru || regularisers.zoneout_h ? dh + dhx[state] : dh;
}

// Takes what zoneout hands straight to the h before out of dh, and leaves it in dhx.
template <class T>
BIRNN_DEVICE void leave_direct(const BackwardDirection& dir, const Regularisers& regularisers,
                               const Position& at, int64_t state, int64_t u, Carried<T>& dh) {
  if (!regularisers.zoneout_h) return;
  const Carried<T> share =
      load_or_zero<T>(regularisers.zoneout_h, at.row * regularisers.zoneout_h_stride + u);
  static_cast<Carried<T>*>(dir.dhx)[state] = Zoneout<ScalarMath<Carried<T>>>::backward(dh, share);
}

// wide_dh [B, H]: the gradient of h before the projection, null for none. Writes the step's dgates
// [B, dgates_blocks * H] to their rows; also, where these are not null, to step_dgates, in the
// order of the sequences, and from the first step to first_dgates.
template <Cell kCell, class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxThreads, 1) void backward_step_kernel(
    Step step, BackwardDirection dir, Regularisers regularisers, const Carried<T>* product,
    const Carried<T>* wide_dh, T* step_dgates, T* first_dgates) {
  using Real = Carried<T>;
  using Math = ScalarMath<Real>;
  constexpr int kBlocks = kDgatesBlocks<kCell>;
  const int64_t H = step.hidden_size;
  const bool is_first = step.index == 0;

  for_each_unit(step, H, [&](int64_t b, const Position& at, int64_t u) {
    const int64_t unit = b * H + u;
    T* const dgates = static_cast<T*>(dir.dgates) + at.row * dir.dgates_stride + u;
    const auto emit = [&](int block, Real value) {
      const int64_t offset = (b * kBlocks + block) * H + u;
      store(dgates + block * H, value);
      if (step_dgates) store(step_dgates + offset, value);
      if (first_dgates && is_first) store(first_dgates + offset, value);
    };
    if (!at.active) {
      for (int block = 0; block < kBlocks; ++block) emit(block, Real(0));
      return;
    }

    Real dh;
    if (wide_dh) {
      dh = wide_dh[unit];
    } else {
      const bool is_last = step.index + 1 == at.length;
      const bool is_cut = ends_before_next(step, dir.resets, at);
      dh = carried_dh<T>(dir, regularisers, is_last, is_cut, kCell == Cell::kGru, product, unit) +
           load_or_zero<T>(dir.dy, at.row * dir.dy_stride + u);
      leave_direct<T>(dir, regularisers, at, unit, u, dh);
    }
    const T* const reserve = static_cast<const T*>(dir.reserve) + at.row * dir.reserve_stride + u;
    const T* const output = static_cast<const T*>(dir.output) + u;
    if constexpr (kCell == Cell::kTanh || kCell == Cell::kRelu) {
      const Real y =
          regularisers.zoneout_h ? load(reserve) : load(output + at.row * dir.output_stride);
      emit(0, kCell == Cell::kTanh ? TanhCell<Math>::backward(dh, y)
                                   : ReluCell<Math>::backward(dh, y));
    } else if constexpr (kCell == Cell::kGru) {
      const Real continued = is_first ? load_or_zero<T>(dir.hx, unit)
                                      : load(output + at.previous_row * dir.output_stride);
      const Real h_prev = begins_anew(step, dir.resets, at) ? Real(0) : continued;
      const typename GruCell<Math>::Activations act{load(reserve), load(reserve + H),
                                                    load(reserve + 2 * H)};
      const auto d = GruCell<Math>::backward(dh, act, load(reserve + 3 * H), h_prev);
      emit(0, d.n);
      emit(1, d.r);
      emit(2, d.z);
      emit(3, d.n_recurrent);
      Real* const direct = static_cast<Real*>(dir.dhx) + unit;
      *direct = regularisers.zoneout_h ? *direct + d.h_direct : d.h_direct;
    } else {
      Real* const dc = static_cast<Real*>(dir.dcx) + unit;
      const int64_t previous_c = (at.previous_row - at.row) * dir.reserve_stride + 4 * H;
      const Real continued = is_first ? load_or_zero<T>(dir.cx, unit) : load(reserve + previous_c);
      const bool anew = begins_anew(step, dir.resets, at);
      const Real c_prev = anew ? Real(0) : continued;
      const typename LstmCell<Math>::Activations act{load(reserve), load(reserve + H),
                                                     load(reserve + 2 * H), load(reserve + 3 * H)};
      Real dc_new = *dc + load_or_zero<T>(dir.dc, at.row * dir.dc_stride + u);
      Real direct_c(0);
      if (regularisers.zoneout_c) {
        const int64_t shares = at.row * regularisers.zoneout_c_stride + u;
        direct_c = Zoneout<Math>::backward(dc_new, load_or_zero<T>(regularisers.zoneout_c, shares));
      }
      const bool is_mixed = regularisers.zoneout_h || regularisers.zoneout_c;
      const Real c_new = load(reserve + (is_mixed ? 5 : 4) * H);
      typename LstmCell<Math>::Gradients d;
      if constexpr (kCell == Cell::kLstmPeepholes)
        d = PeepholeLstmCell<Math>::backward(dh, dc_new, act, c_new, c_prev,
                                             peepholes_of<T>(dir.weight_ch, H, u));
      else
        d = LstmCell<Math>::backward(dh, dc_new, act, c_new, c_prev);
      emit(0, d.i);
      emit(1, d.f);
      emit(2, d.g);
      emit(3, d.o);
      const Real dc_prev = regularisers.zoneout_c ? direct_c + d.c : d.c;
      *dc = anew ? Real(0) : dc_prev;
    }
  });
}

// dproj = dh + dy, the gradient of the projected state: to its row, and where step_dproj [B, P] is
// not null there too.
template <class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxThreads, 1) void backward_projection_kernel(
    Step step, BackwardDirection dir, Regularisers regularisers, const Carried<T>* product,
    T* step_dproj) {
  const int64_t P = step.state_size;
  for_each_unit(step, P, [&](int64_t b, const Position& at, int64_t u) {
    const int64_t unit = b * P + u;
    Carried<T> d(0);
    if (at.active) {
      const bool is_last = step.index + 1 == at.length;
      const bool is_cut = ends_before_next(step, dir.resets, at);
      d = carried_dh<T>(dir, regularisers, is_last, is_cut, false, product, unit) +
          load_or_zero<T>(dir.dy, at.row * dir.dy_stride + u);
      leave_direct<T>(dir, regularisers, at, unit, u, d);
    }
    store(static_cast<T*>(dir.dproj) + at.row * P + u, d);
    if (step_dproj) store(step_dproj + unit, d);
  });
}

// After step 0: dhx, which stays dhy for an empty sequence.
template <class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxThreads,
                                 1) void backward_end_kernel(Step step, BackwardDirection dir,
                                                             Regularisers regularisers, bool is_gru,
                                                             const Carried<T>* product) {
  const int64_t S = step.state_size;
  for_each_unit(step, S, [&](int64_t b, const Position& at, int64_t u) {
    const int64_t state = b * S + u;
    const bool is_cut = at.active && begins_anew(step, dir.resets, at);
    static_cast<Carried<T>*>(dir.dhx)[state] =
        carried_dh<T>(dir, regularisers, !at.active, is_cut, is_gru, product, state);
  });
}

}  // namespace birnn::cuda::stepwise
