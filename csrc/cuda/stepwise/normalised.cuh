// stepwise, a layer-normalised GRU or LSTM (cells.h), the device side: one step of a direction
// after (backward: before) the library product.
//
//   forward    sums = h_prev W_hh^T (library)     ->  normalised_forward_kernel: norm, cell, norm
//   of c backward   normalised_backward_kernel: dsums  ->  product = dsums W_hh (library)
//
// A norm needs all sums of a sequence before its cell reads the first. So a block takes a sequence,
// and blocks stride over the batch; a thread owns units of it, all gates of each, and sums go
// around the block: the mean, then the squares of the deviations from it, as large as they are (of
// squares less a squared mean little would be left where the mean is large). What a thread hands to
// itself through memory, nobody else reads; the only shared memory is that of the sums.
//
// The floor of a step, in numbers of 4 or 8 bytes, of B sequences; what is read again comes from
// L1:
//
//                         read                                        written
//   forward    LSTM   B (9 H): gates_x, sums, c                   B (3 H): output, h, c
//              GRU    B (7 H): gates_x, sums, h                   B (2 H): output, h
//              training                                           and B (10 H + 2), GRU B (7 H + 2)
//   backward   LSTM   B (13 H + 2): reserve but c, c before,      B (10 H): dgates, dsums, dnorm_c,
//   dc
//                     dh, dy, dc
//              GRU    B (11 H + 1): reserve, h, dh, direct, dy    B (8 H): dgates, dsums, direct
//
// beside the product's G H^2 of W_hh and 2 B G H^2 operations. The norms take 5 operations a sum
// forward and 9 backward, the cells 30 a unit: nothing beside the product. LSTM, fp32, H = 512,
// B = 32: 0.8 MB forward, 1.5 MB backward, and 4 MB of W_hh, which an L2 keeps. Each norm adds two
// barriers of a block forward, one backward.
//
// All else is as in stepwise.cuh. float and double alone.
#pragma once

#include "cuda/stepwise/stepwise.cuh"

namespace birnn::cuda::stepwise {

// Sums over the threads of a block, each in the same order in every run. One barrier each: partial
// sums lie in two buffers in turn, and who writes to one again has passed the barrier of the sum
// between, to which everybody came who had read it.
template <class Real>
class BlockSums {
 public:
  explicit BIRNN_DEVICE BlockSums(Smem& memory)
      : partial_(memory.alloc<Real>(kSumBuffers * kMostSums * kMaxRowWarps)) {}

  // Each value becomes its sum over all threads.
  template <int kCount>
  BIRNN_DEVICE void add_up(Real (&values)[kCount]) {
    static_assert(kCount <= kMostSums);
    const int warp = static_cast<int>(warp_id()), num_warps = static_cast<int>(block_dim() / 32);
    Real* const buffer = partial_ + (count_ & 1) * kMostSums * kMaxRowWarps;
    ++count_;
    for (Real& value : values) {
      for (int mask = 16; mask > 0; mask /= 2) value += shfl_xor(value, mask);
    }
    if (lane_id() == 0) {
      for (int i = 0; i < kCount; ++i) buffer[i * kMaxRowWarps + warp] = values[i];
    }
    sync_threads();  // publishes the sums of all warps
    for (int i = 0; i < kCount; ++i) {
      values[i] = buffer[i * kMaxRowWarps];
      for (int other = 1; other < num_warps; ++other) values[i] += buffer[i * kMaxRowWarps + other];
    }
  }

 private:
  Real* partial_;
  uint32_t count_ = 0;
};

// Calls body(b, at) for the sequences b of this block.
template <class Body>
BIRNN_DEVICE void for_each_row(const Step& step, const Body& body) {
  for (int64_t b = block_idx().x; b < step.batch_size; b += grid_dim().x)
    body(b, position_of(step, b));
}

// Calls body(u) for this thread's units u of a sequence.
template <class Body>
BIRNN_DEVICE void for_each_own(int64_t width, const Body& body) {
  for (int64_t u = thread_idx(); u < width; u += block_dim()) body(u);
}

template <class Real>
struct Norm {
  Real mean, scale;
  BIRNN_DEVICE Real of(Real x) const {
    return LayerNorm<ScalarMath<Real>>::forward(x, mean, scale);
  }
};

// Of the kBlocks * H numbers that x(block, u) gives.
template <int kBlocks, class Real, class Numbers>
BIRNN_DEVICE Norm<Real> norm_of(BlockSums<Real>& sums, int64_t H, Real eps, const Numbers& x) {
  const Real count = static_cast<Real>(kBlocks * H);
  Real own[1] = {Real(0)};
  for_each_own(H, [&](int64_t u) {
    for (int block = 0; block < kBlocks; ++block) own[0] += x(block, u);
  });
  sums.add_up(own);
  const Real mean = own[0] / count;
  own[0] = Real(0);
  for_each_own(H, [&](int64_t u) {
    for (int block = 0; block < kBlocks; ++block) {
      const Real deviation = x(block, u) - mean;
      own[0] += deviation * deviation;
    }
  });
  sums.add_up(own);
  return {mean, Real(1) / sqrt_precise(own[0] / count + eps)};
}

template <class Real>
struct NormBackward {
  Real mean_d, mean_product, scale;
  BIRNN_DEVICE Real of(Real d, Real normalised) const {
    return LayerNorm<ScalarMath<Real>>::backward(d, normalised, mean_d, mean_product, scale);
  }
};

// d(block, u): the gradients of the normalised numbers x(block, u).
template <int kBlocks, class Real, class Gradients, class Numbers>
BIRNN_DEVICE NormBackward<Real> norm_backward_of(BlockSums<Real>& sums, int64_t H, Real scale,
                                                 const Gradients& d, const Numbers& x) {
  const Real count = static_cast<Real>(kBlocks * H);
  Real own[2] = {Real(0), Real(0)};
  for_each_own(H, [&](int64_t u) {
    for (int block = 0; block < kBlocks; ++block) {
      own[0] += d(block, u);
      own[1] += d(block, u) * x(block, u);
    }
  });
  sums.add_up(own);
  return {own[0] / count, own[1] / count, scale};
}

// Of a row of the reserve, where W_hh h is normalised, and where the scales lie.
template <Cell kCell>
constexpr int kScalesBlock = kNormalisedBlock<kCell> + kNumGates<kCell>;

// sums [B, G*H], null where h_prev is zero.
template <Cell kCell, class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxRowThreads,
                                 1) void normalised_forward_kernel(Step step,
                                                                   NormalisedDirection dir,
                                                                   const T* sums) {
  using Math = ScalarMath<T>;
  constexpr int kGates = kNumGates<kCell>;
  const int64_t H = step.hidden_size;
  const bool is_first = step.index == 0;
  const T eps = static_cast<T>(dir.eps);
  const T* const norm_hh = static_cast<const T*>(dir.norm_hh);
  const T* const bias_hh = static_cast<const T*>(dir.bias_hh);
  Smem memory;
  BlockSums<T> block(memory);

  for_each_row(step, [&](int64_t b, const Position& at) {
    T* const output = static_cast<T*>(dir.output) + at.row * dir.output_stride;
    T* const hy = static_cast<T*>(dir.hy) + b * H;
    T* const cy = static_cast<T*>(dir.cy) + b * H;
    T* const saved =
        dir.reserve ? static_cast<T*>(dir.reserve) + at.row * dir.reserve_stride : nullptr;
    if (!at.active) {
      for_each_own(H, [&](int64_t u) {
        output[u] = T(0);
        if (is_first) hy[u] = load_or_zero<T>(dir.hx, b * H + u);
        if constexpr (kCell == Cell::kLstm) {
          if (is_first) cy[u] = load_or_zero<T>(dir.cx, b * H + u);
        }
      });
      if (saved) {  // zeros, which the sums over all rows meet
        for_each_own(kScalesBlock<kCell> * H + 2, [&](int64_t i) { saved[i] = T(0); });
      }
      return;
    }

    const bool anew = begins_anew(step, dir.resets, at);
    const auto sum = [&](int gate, int64_t u) {
      return sums && !anew ? sums[(b * kGates + gate) * H + u] : T(0);
    };
    const Norm<T> norm = norm_of<kGates>(block, H, eps, sum);
    const T* const gates_x = static_cast<const T*>(dir.gates_x) + at.row * dir.gates_x_stride;
    for_each_own(H, [&](int64_t u) {
      const auto of_x = [&](int gate) { return gates_x[gate * H + u]; };
      const auto keep = [&](int of, T value) {
        if (saved) saved[of * H + u] = value;
      };
      const auto of_h = [&](int gate) {
        const T normalised = norm.of(sum(gate, u));
        keep(kNormalisedBlock<kCell> + gate, normalised);
        return norm_hh[gate * H + u] * normalised + bias_hh[gate * H + u];
      };
      if constexpr (kCell == Cell::kGru) {
        const T carried = is_first ? load_or_zero<T>(dir.hx, b * H + u) : hy[u];
        const T h_prev = anew ? T(0) : carried;
        const T q = of_h(2);
        typename GruCell<Math>::Activations act;
        const T h =
            GruCell<Math>::forward(of_x(0) + of_h(0), of_x(1) + of_h(1), of_x(2), q, h_prev, act);
        keep(0, act.r);
        keep(1, act.z);
        keep(2, act.n);
        keep(3, q);
        output[u] = h;
        hy[u] = h;
      } else {
        const T carried = is_first ? load_or_zero<T>(dir.cx, b * H + u) : cy[u];
        typename LstmCell<Math>::Activations act;
        const T c = LstmCell<Math>::update(of_x(0) + of_h(0), of_x(1) + of_h(1), of_x(2) + of_h(2),
                                           of_x(3) + of_h(3), anew ? T(0) : carried, act);
        cy[u] = c;
        output[u] = act.o;  // until c is normalised
        keep(0, act.i);
        keep(1, act.f);
        keep(2, act.g);
        keep(3, act.o);
        keep(4, c);
      }
    });
    T scale_c(0);  // a GRU has no other
    if constexpr (kCell == Cell::kLstm) {
      const T* const norm_c = static_cast<const T*>(dir.norm_c);
      const T* const bias_c = static_cast<const T*>(dir.bias_c);
      const Norm<T> of_c = norm_of<1>(block, H, eps, [&](int, int64_t u) { return cy[u]; });
      scale_c = of_c.scale;
      for_each_own(H, [&](int64_t u) {
        const T normalised = of_c.of(cy[u]);
        if (saved) saved[5 * H + u] = normalised;
        const T h = LstmCell<Math>::output(output[u], norm_c[u] * normalised + bias_c[u]);
        output[u] = h;
        hy[u] = h;
      });
    }
    if (saved && thread_idx() == 0) {
      saved[kScalesBlock<kCell> * H] = norm.scale;
      saved[kScalesBlock<kCell> * H + 1] = scale_c;
    }
  });
}

// product [B, H] and dhx: see carried_dh. Writes the step's dsums [B, G*H] to their rows and, where
// that is not null, to step_dsums in the order of the sequences.
template <Cell kCell, class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kMaxRowThreads, 1) void normalised_backward_kernel(
    Step step, NormalisedDirection dir, const T* product, T* step_dsums) {
  using Math = ScalarMath<T>;
  constexpr int kGates = kNumGates<kCell>, kBlocks = kDgatesBlocks<kCell>;
  const int64_t H = step.hidden_size;
  const bool is_first = step.index == 0;
  const T* const norm_hh = static_cast<const T*>(dir.norm_hh);
  Smem memory;
  BlockSums<T> block(memory);

  for_each_row(step, [&](int64_t b, const Position& at) {
    T* const dgates = static_cast<T*>(dir.dgates) + at.row * kBlocks * H;
    T* const dsums = static_cast<T*>(dir.dsums) + at.row * kGates * H;
    T* const dnorm_c = static_cast<T*>(dir.dnorm_c) + at.row * H;
    const auto emit_dsum = [&](int64_t i, T value) {
      dsums[i] = value;
      if (step_dsums) step_dsums[b * kGates * H + i] = value;
    };
    if (!at.active) {
      for_each_own(kBlocks * H, [&](int64_t i) { dgates[i] = T(0); });
      for_each_own(kGates * H, [&](int64_t i) { emit_dsum(i, T(0)); });
      if constexpr (kCell == Cell::kLstm) for_each_own(H, [&](int64_t u) { dnorm_c[u] = T(0); });
      return;
    }

    const bool is_last = step.index + 1 == at.length;
    const bool is_cut = ends_before_next(step, dir.resets, at);
    const bool anew = begins_anew(step, dir.resets, at);
    const T* const saved = static_cast<const T*>(dir.reserve) + at.row * dir.reserve_stride;
    const T* const scales = saved + kScalesBlock<kCell> * H;
    const auto dh_of = [&](int64_t u) {
      return carried_dh<T>(dir, Regularisers{}, is_last, is_cut, kCell == Cell::kGru, product,
                           b * H + u) +
             load_or_zero<T>(dir.dy, at.row * dir.dy_stride + u);
    };
    if constexpr (kCell == Cell::kGru) {
      T* const direct = static_cast<T*>(dir.dhx) + b * H;
      const T* const before =
          static_cast<const T*>(dir.output) + at.previous_row * dir.output_stride;
      for_each_own(H, [&](int64_t u) {
        const T continued = is_first ? load_or_zero<T>(dir.hx, b * H + u) : before[u];
        const typename GruCell<Math>::Activations act{saved[u], saved[H + u], saved[2 * H + u]};
        const auto d =
            GruCell<Math>::backward(dh_of(u), act, saved[3 * H + u], anew ? T(0) : continued);
        dgates[u] = d.n;
        dgates[H + u] = d.r;
        dgates[2 * H + u] = d.z;
        dgates[3 * H + u] = d.n_recurrent;
        direct[u] = d.h_direct;
      });
    } else {
      const T* const norm_c = static_cast<const T*>(dir.norm_c);
      const T* const bias_c = static_cast<const T*>(dir.bias_c);
      const T* const normalised_c = saved + 5 * H;
      for_each_own(H, [&](int64_t u) {
        const auto d = LstmCell<Math>::output_backward(dh_of(u), saved[3 * H + u],
                                                       norm_c[u] * normalised_c[u] + bias_c[u]);
        dgates[3 * H + u] = d.o;
        dnorm_c[u] = d.c;
      });
      const auto d_normalised = [&](int, int64_t u) { return dnorm_c[u] * norm_c[u]; };
      const NormBackward<T> norm = norm_backward_of<1>(
          block, H, scales[1], d_normalised, [&](int, int64_t u) { return normalised_c[u]; });
      T* const dcx = static_cast<T*>(dir.dcx) + b * H;
      const T* const before = saved + (at.previous_row - at.row) * dir.reserve_stride + 4 * H;
      for_each_own(H, [&](int64_t u) {
        const T continued = is_first ? load_or_zero<T>(dir.cx, b * H + u) : before[u];
        const typename LstmCell<Math>::Activations act{saved[u], saved[H + u], saved[2 * H + u],
                                                       T(0)};
        const T dc = dcx[u] + norm.of(d_normalised(0, u), normalised_c[u]) +
                     load_or_zero<T>(dir.dc, at.row * dir.dc_stride + u);
        const auto d = LstmCell<Math>::update_backward(dc, act, anew ? T(0) : continued);
        dgates[u] = d.i;
        dgates[H + u] = d.f;
        dgates[2 * H + u] = d.g;
        dcx[u] = anew ? T(0) : d.c;
      });
    }
    // The last G blocks of dgates are those of the recurrent side.
    const T* const recurrent = dgates + (kBlocks - kGates) * H;
    const T* const normalised = saved + kNormalisedBlock<kCell> * H;
    const auto d_normalised = [&](int gate, int64_t u) {
      return recurrent[gate * H + u] * norm_hh[gate * H + u];
    };
    const auto x = [&](int gate, int64_t u) { return normalised[gate * H + u]; };
    const NormBackward<T> norm = norm_backward_of<kGates>(block, H, scales[0], d_normalised, x);
    for_each_own(H, [&](int64_t u) {
      for (int gate = 0; gate < kGates; ++gate)
        emit_dsum(gate * H + u, norm.of(d_normalised(gate, u), x(gate, u)));
    });
  });
}

}  // namespace birnn::cuda::stepwise
