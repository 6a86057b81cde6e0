// stepwise, a GRU whose reset gate comes before the product (cells.h): two products a step, each
// before a kernel of its own.
//
//   forward    gates_h = h_prev W_hr,hz^T (library)   ->  reset_gates_kernel: r, z, r * h
//              product = (r * h) W_hn^T (library)     ->  reset_output_kernel: n, h
//   backward   reset_output_backward_kernel: dn, dz   ->  product = dn W_hn (library)
//              reset_gates_backward_kernel: dr        ->  product = dr, dz W_hr,hz (library)
//
// r * h is the reserve's last block, by which the gradient of W_hn is a product: there it is zero
// past the ends. All else is as in stepwise.cuh.
#pragma once

#include "cuda/stepwise/stepwise.cuh"

namespace birnn::cuda::stepwise {

// The h that a step continues, of what `state` holds.
template <class T>
BIRNN_DEVICE Carried<T> continued_h(const Step& step, const ForwardDirection& dir, bool anew,
                                    int64_t unit) {
  if (anew) return Carried<T>(0);
  return step.index == 0 ? load_or_zero<T>(dir.hx, unit)
                         : load(static_cast<const T*>(dir.hy) + unit);
}

// What the biases add to sum `gate` of unit u.
template <class T>
BIRNN_DEVICE Carried<T> bias_of(const Step& step, const ForwardDirection& dir, int gate,
                                int64_t u) {
  const auto of_gate = [&](const void* bias) {
    return [=](int of) { return load_or_zero<T>(bias, of * step.hidden_size + u); };
  };
  return bias_of_sum<Cell::kGruResetBefore>(gate, of_gate(dir.bias_ih), of_gate(dir.bias_hh));
}

// gates_h [B, 2*H], null where h_prev is zero. z [B, H], reset_h [B, H]: for what comes next.
template <class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxThreads, 1) void reset_gates_kernel(
    Step step, ForwardDirection dir, Regularisers regularisers, const Carried<T>* gates_h,
    Carried<T>* z, T* reset_h, bool save_reserve) {
  using Real = Carried<T>;
  using Reset = ResetBefore<ScalarMath<Real>>;
  const int64_t H = step.hidden_size;
  for_each_unit(step, H, [&](int64_t b, const Position& at, int64_t u) {
    const int64_t unit = b * H + u;
    T* const gates = static_cast<T*>(dir.gates) + at.row * dir.gates_stride + u;
    const auto keep = [&](int block, Real value) {
      if (save_reserve) store(gates + block * H, value);
    };
    if (!at.active) {
      store(reset_h + unit, Real(0));
      keep(3, Real(0));
      return;
    }
    const bool anew = begins_anew(step, dir.resets, at);
    const auto gate = [&](int of) {
      const Real recurrent = gates_h && !anew ? gates_h[(b * 2 + of) * H + u] : Real(0);
      return Reset::gate(load(gates + of * H) + recurrent + bias_of<T>(step, dir, of, u));
    };
    Real h = continued_h<T>(step, dir, anew, unit);
    if (regularisers.recurrent_mask) h = h * load_or_zero<T>(regularisers.recurrent_mask, unit);
    const Real r = gate(0), reset = Reset::reset(r, h);
    z[unit] = gate(1);
    store(reset_h + unit, reset);
    keep(0, r);
    keep(1, z[unit]);
    keep(3, reset);
  });
}

// product [B, H] = reset_h W_hn^T, null where that is zero.
template <class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxThreads, 1) void reset_output_kernel(
    Step step, ForwardDirection dir, Regularisers regularisers, const Carried<T>* z,
    const Carried<T>* product, T* masked, bool save_reserve) {
  using Real = Carried<T>;
  using Cell = GruCell<ScalarMath<Real>>;
  const int64_t H = step.hidden_size;
  T* const hy = static_cast<T*>(dir.hy);
  for_each_unit(step, H, [&](int64_t b, const Position& at, int64_t u) {
    const int64_t unit = b * H + u;
    T* const output = static_cast<T*>(dir.output) + at.row * dir.output_stride + u;
    if (!at.active) {
      store(output, Real(0));
      if (step.index == 0) store(hy + unit, load_or_zero<T>(dir.hx, unit));
      if (step.index == 0) store_masked(regularisers, masked, unit, Real(0));
      return;
    }
    const bool anew = begins_anew(step, dir.resets, at);
    T* const gates = static_cast<T*>(dir.gates) + at.row * dir.gates_stride + u;
    const Real recurrent = product && !anew ? product[unit] : Real(0);
    typename Cell::Activations act;
    act.z = z[unit];
    Real h = Cell::output(load(gates + 2 * H) + recurrent + bias_of<T>(step, dir, 2, u),
                          continued_h<T>(step, dir, anew, unit), act);
    if (save_reserve) store(gates + 2 * H, act.n);
    h = mixed_h<T>(step, dir, regularisers, at, anew, unit, u, h);
    store(output, h);
    store(hy + unit, h);
    store_masked(regularisers, masked, unit, h);
  });
}

// Where a step's gradients of the pre-activations go: to their row and, where these are not null,
// to step_dgates and first_dgates, as of backward_step_kernel.
template <class T>
struct DGates {
  T* row;
  T* beside;
  T* first;
  int64_t hidden_size;

  BIRNN_DEVICE DGates(const Step& step, const BackwardDirection& dir, const Position& at, int64_t b,
                      int64_t u, T* step_dgates, T* first_dgates)
      : row(static_cast<T*>(dir.dgates) + at.row * dir.dgates_stride + u),
        beside(step_dgates ? step_dgates + b * 3 * step.hidden_size + u : nullptr),
        first(first_dgates && step.index == 0 ? first_dgates + b * 3 * step.hidden_size + u
                                              : nullptr),
        hidden_size(step.hidden_size) {}
  BIRNN_DEVICE void emit(int block, Carried<T> value) const {
    store(row + block * hidden_size, value);
    if (beside) store(beside + block * hidden_size, value);
    if (first) store(first + block * hidden_size, value);
  }
};

template <class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxThreads, 1) void reset_output_backward_kernel(
    Step step, BackwardDirection dir, Regularisers regularisers, const Carried<T>* product,
    T* step_dgates, T* first_dgates) {
  using Real = Carried<T>;
  const int64_t H = step.hidden_size;
  for_each_unit(step, H, [&](int64_t b, const Position& at, int64_t u) {
    const int64_t unit = b * H + u;
    const DGates<T> dgates(step, dir, at, b, u, step_dgates, first_dgates);
    if (!at.active) {
      for (int block = 0; block < 3; ++block) dgates.emit(block, Real(0));
      return;
    }
    const bool is_last = step.index + 1 == at.length;
    const bool is_cut = ends_before_next(step, dir.resets, at);
    Real dh = carried_dh<T>(dir, regularisers, is_last, is_cut, true, product, unit) +
              load_or_zero<T>(dir.dy, at.row * dir.dy_stride + u);
    leave_direct<T>(dir, regularisers, at, unit, u, dh);
    const T* const reserve = static_cast<const T*>(dir.reserve) + at.row * dir.reserve_stride + u;
    const T* const output = static_cast<const T*>(dir.output) + u;
    const Real continued = step.index == 0 ? load_or_zero<T>(dir.hx, unit)
                                           : load(output + at.previous_row * dir.output_stride);
    const Real h_prev = begins_anew(step, dir.resets, at) ? Real(0) : continued;
    const auto d = GruCell<ScalarMath<Real>>::output_backward(dh, load(reserve + H),
                                                              load(reserve + 2 * H), h_prev);
    dgates.emit(1, d.z);
    dgates.emit(2, d.n);
    Real* const direct = static_cast<Real*>(dir.dhx) + unit;
    *direct = regularisers.zoneout_h ? *direct + d.h_direct : d.h_direct;
  });
}

// product [B, H] = dn W_hn: the gradient of r * h. What it hands to h waits in dhx, too.
template <class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxThreads, 1) void reset_gates_backward_kernel(
    Step step, BackwardDirection dir, Regularisers regularisers, const Carried<T>* product,
    T* step_dgates, T* first_dgates) {
  using Real = Carried<T>;
  const int64_t H = step.hidden_size;
  for_each_unit(step, H, [&](int64_t b, const Position& at, int64_t u) {
    if (!at.active) return;
    const int64_t unit = b * H + u;
    const T* const reserve = static_cast<const T*>(dir.reserve) + at.row * dir.reserve_stride + u;
    const auto d = ResetBefore<ScalarMath<Real>>::backward(product[unit], load(reserve),
                                                           load(reserve + 3 * H));
    DGates<T>(step, dir, at, b, u, step_dgates, first_dgates).emit(0, d.r);
    const Real factor =
        regularisers.recurrent_mask ? load_or_zero<T>(regularisers.recurrent_mask, unit) : 1;
    static_cast<Real*>(dir.dhx)[unit] += factor * d.h;
  });
}

}  // namespace birnn::cuda::stepwise
