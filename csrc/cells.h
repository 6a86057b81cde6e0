// The cell equations, forward and backward: the one source for the CPU and CUDA kernels.
//
// Notation: sigma the logistic function, * elementwise, h and c the states of the step before.
// Gate orders are PyTorch's. Sources: vanilla RNN, Elman 1990; LSTM, Hochreiter & Schmidhuber
// 1997 with the forget gate of Gers et al. 2000, peepholes Gers et al. 2002, diagonal as in Graves
// 2013 (arXiv 1308.0850); GRU, Cho et al. 2014 (arXiv 1406.1078) in the variant that applies the
// reset gate after the recurrent product, as cuDNN and PyTorch do, and in their own.
//
//   RNN    h' = tanh(a) or relu(a),                    a = W_ih x + W_hh h + b
//   GRU    r = sigma(a_r)   z = sigma(a_z)             q = W_hn h + b_hn
//          n = tanh(a_n + r * q)                       a_n = W_in x + b_in
//          h' = (1 - z) * n + z * h
//   LSTM   i, f, o = sigma(a_i, a_f, a_o)              g = tanh(a_g)
//          c' = f * c + i * g                          h' = o * tanh(c')
//
// A GRU with the reset gate before the product has two products, one after the other; peepholes
// w_c, one number a unit, let an LSTM's gates read its cell state. What they change:
//
//   GRU    n = tanh(a_n)                               a_n = W_in x + b_in + W_hn (r * h) + b_hn
//   LSTM   i, f = sigma(a_i + w_ci * c, a_f + w_cf * c)
//          o = sigma(a_o + w_co * c')
//
// Zoneout (Krueger et al. 2017, arXiv 1606.01305) mixes the states above with those before, by
// shares d_h and d_c; an LSTM's h' comes of its c' as it was before it was mixed:
//
//          h' <- d_h * h + (1 - d_h) * h'              c' <- d_c * c + (1 - d_c) * c'
//
// `Math` supplies the value type and the transcendental functions: a SIMD vector on the CPU, a
// float or double in a CUDA thread.
#pragma once

#include "recurrence.h"

#if defined(__CUDACC__)
#define BIRNN_CELL_FN static __host__ __device__ __forceinline__
#else
#define BIRNN_CELL_FN static inline __attribute__((always_inline))
#endif

namespace birnn {

// What the biases add to sum `of` (num_sums), both functions of a gate: b above is their sum, but
// for a GRU's n, whose b_in and b_hn stay apart.
template <Cell kCell, class BiasIh, class BiasHh>
BIRNN_CELL_FN auto bias_of_sum(int of, const BiasIh& bias_ih, const BiasHh& bias_hh) {
  if (kCell == Cell::kGru && of == 2) return bias_ih(2);
  if (kCell == Cell::kGru && of == 3) return bias_hh(2);
  return bias_ih(of) + bias_hh(of);
}

// And back: the gate whose bias has its gradient in block `block` of dgates; -1: none has.
template <Cell kCell>
BIRNN_CELL_FN int gate_of_bias_ih(int block) {
  if (kCell != Cell::kGru) return block;
  return block == 0 ? 2 : block == 3 ? -1 : block - 1;
}
template <Cell kCell>
BIRNN_CELL_FN int gate_of_bias_hh(int block) {
  return kCell == Cell::kGru ? block - 1 : block;
}

// Layer normalisation (Ba et al. 2016, arXiv 1607.06450) of n numbers x with mean m and variance v:
//
//   normalised = (x - m) * scale, scale = 1 / sqrt(v + eps)
//
// In a normalised GRU or LSTM each W_hh h above is norm_hh * normalised(W_hh h), over all gates at
// once, so is each W_ih x, and an LSTM's h' = o * tanh(norm_c * normalised(c') + bias_c).
template <class Math>
struct LayerNorm {
  using Value = typename Math::Value;
  BIRNN_CELL_FN Value forward(Value x, Value mean, Value scale) { return (x - mean) * scale; }
  // d: the gradient of `normalised`; mean_d and mean_product: the means of d and d * normalised.
  BIRNN_CELL_FN Value backward(Value d, Value normalised, Value mean_d, Value mean_product,
                               Value scale) {
    return scale * (d - mean_d - normalised * mean_product);
  }
};

template <class Math>
struct Zoneout {
  using Value = typename Math::Value;
  // A share of 0 or 1 gives one of the two, bit for bit.
  BIRNN_CELL_FN Value mix(Value state, Value before, Value share) {
    return share * before + (Math::one() - share) * state;
  }
  // Takes what goes straight to the state before out of d, and returns it.
  BIRNN_CELL_FN Value backward(Value& d, Value share) {
    const Value direct = share * d;
    d = (Math::one() - share) * d;
    return direct;
  }
};

template <class Math>
struct TanhCell {
  using Value = typename Math::Value;
  BIRNN_CELL_FN Value forward(Value a) { return Math::tanh(a); }
  // y is the cell's own output; returns the gradient of a.
  BIRNN_CELL_FN Value backward(Value dy, Value y) { return dy - dy * y * y; }
};

template <class Math>
struct ReluCell {
  using Value = typename Math::Value;
  // NaN passes through both ways, as in torch.relu: the comparison with NaN is false.
  BIRNN_CELL_FN Value forward(Value a) { return Math::zero_where_not_positive(a, a); }
  BIRNN_CELL_FN Value backward(Value dy, Value y) { return Math::zero_where_not_positive(dy, y); }
};

template <class Math>
struct GruCell {
  using Value = typename Math::Value;
  struct Activations {
    Value r, z, n;
  };
  struct Gradients {
    Value r, z, n;      // of the pre-activations; n: of a_n
    Value n_recurrent;  // of q
    Value h_direct;     // of h, along the path z * h alone
  };

  // The two halves of forward, for callers that run them over several units in turn: each depends
  // on a chain of its own, and the second on all of the first.
  BIRNN_CELL_FN Value gates(Value a_r, Value a_z, Value a_n, Value q, Activations& out) {
    out.r = Math::sigmoid(a_r);
    out.z = Math::sigmoid(a_z);
    return a_n + out.r * q;
  }
  BIRNN_CELL_FN Value output(Value new_gate, Value h, Activations& out) {
    out.n = Math::tanh(new_gate);
    return out.n + out.z * (h - out.n);
  }

  BIRNN_CELL_FN Value forward(Value a_r, Value a_z, Value a_n, Value q, Value h, Activations& out) {
    return output(gates(a_r, a_z, a_n, q, out), h, out);
  }

  // What output hands back: the gradients of a_z, of what it is given as the new gate, and of h.
  struct OutputGradients {
    Value z, n, h_direct;
  };
  BIRNN_CELL_FN OutputGradients output_backward(Value dh, Value z, Value n, Value h) {
    OutputGradients d;
    d.h_direct = dh * z;
    d.n = (dh - d.h_direct) * (Math::one() - n * n);
    d.z = d.h_direct * (h - n) * (Math::one() - z);
    return d;
  }

  BIRNN_CELL_FN Gradients backward(Value dh, const Activations& act, Value q, Value h) {
    const OutputGradients of_output = output_backward(dh, act.z, act.n, h);
    Gradients d;
    d.h_direct = of_output.h_direct;
    d.n = of_output.n;
    d.z = of_output.z;
    d.n_recurrent = d.n * act.r;
    d.r = d.n_recurrent * q * (Math::one() - act.r);
    return d;
  }
};

// The reset gate before the product; the other functions are those of GruCell.
template <class Math>
struct ResetBefore {
  using Value = typename Math::Value;
  BIRNN_CELL_FN Value gate(Value a) { return Math::sigmoid(a); }  // r, and z
  // h as W_hn multiplies it.
  BIRNN_CELL_FN Value reset(Value r, Value h) { return r * h; }
  struct Gradients {
    Value r, h;  // of a_r, and of the h that reset was given
  };
  // d: of what reset returned, `reset_h`.
  BIRNN_CELL_FN Gradients backward(Value d, Value r, Value reset_h) {
    return {d * reset_h * (Math::one() - r), d * r};
  }
};

template <class Math>
struct LstmCell {
  using Value = typename Math::Value;
  struct Activations {
    Value i, f, g, o;
  };
  struct Gradients {
    Value i, f, g, o;  // of the pre-activations
    Value c;           // of the cell state of the step before
  };

  // The two halves of forward, as for the GRU. update returns c'.
  BIRNN_CELL_FN Value update(Value a_i, Value a_f, Value a_g, Value a_o, Value c,
                             Activations& out) {
    out.i = Math::sigmoid(a_i);
    out.f = Math::sigmoid(a_f);
    out.g = Math::tanh(a_g);
    out.o = Math::sigmoid(a_o);
    return out.f * c + out.i * out.g;
  }
  BIRNN_CELL_FN Value output(Value o, Value c_new) { return o * Math::tanh(c_new); }

  // Returns h', replaces c by c'.
  BIRNN_CELL_FN Value forward(Value a_i, Value a_f, Value a_g, Value a_o, Value& c,
                              Activations& out) {
    c = update(a_i, a_f, a_g, a_o, c, out);
    return output(out.o, c);
  }

  // The two halves of backward, for callers that have the output made of another c.
  struct OutputGradients {
    Value o, c;  // of the pre-activation, and of the c that output was given
  };
  BIRNN_CELL_FN OutputGradients output_backward(Value dh, Value o, Value c) {
    const Value one = Math::one(), tanh_c = Math::tanh(c);
    return {dh * tanh_c * o * (one - o), dh * o * (one - tanh_c * tanh_c)};
  }
  // dc: of the c that update returned. d.o and act.o have no part in it.
  BIRNN_CELL_FN Gradients update_backward(Value dc, const Activations& act, Value c_old) {
    const Value one = Math::one();
    Gradients d;
    d.o = Value{};
    d.i = dc * act.g * act.i * (one - act.i);
    d.g = dc * act.i * (one - act.g * act.g);
    d.f = dc * c_old * act.f * (one - act.f);
    d.c = dc * act.f;
    return d;
  }

  // c_new is the state that forward left; dc its gradient from the step after.
  BIRNN_CELL_FN Gradients backward(Value dh, Value dc, const Activations& act, Value c_new,
                                   Value c_old) {
    const OutputGradients of_output = output_backward(dh, act.o, c_new);
    Gradients d = update_backward(dc + of_output.c, act, c_old);
    d.o = of_output.o;
    return d;
  }
};

// An LSTM whose gates see c through `w`, the peepholes of a unit.
template <class Math>
struct PeepholeLstmCell {
  using Value = typename Math::Value;
  using Activations = typename LstmCell<Math>::Activations;
  using Gradients = typename LstmCell<Math>::Gradients;
  struct Peepholes {
    Value i, f, o;
  };

  BIRNN_CELL_FN Value update(Value a_i, Value a_f, Value a_g, Value a_o, Value c,
                             const Peepholes& w, Activations& out) {
    const Value c_new = LstmCell<Math>::update(a_i + w.i * c, a_f + w.f * c, a_g, a_o, c, out);
    out.o = Math::sigmoid(a_o + w.o * c_new);
    return c_new;
  }
  BIRNN_CELL_FN Value forward(Value a_i, Value a_f, Value a_g, Value a_o, Value& c,
                              const Peepholes& w, Activations& out) {
    c = update(a_i, a_f, a_g, a_o, c, w, out);
    return LstmCell<Math>::output(out.o, c);
  }

  BIRNN_CELL_FN Gradients backward(Value dh, Value dc, const Activations& act, Value c_new,
                                   Value c_old, const Peepholes& w) {
    const auto of_output = LstmCell<Math>::output_backward(dh, act.o, c_new);
    Gradients d = LstmCell<Math>::update_backward(dc + of_output.c + w.o * of_output.o, act, c_old);
    d.o = of_output.o;
    d.c = d.c + w.i * d.i + w.f * d.f;
    return d;
  }
};

}  // namespace birnn
