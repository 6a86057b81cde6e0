// The recurrence of a layer-normalised GRU or LSTM, whose input is projected and normalised
// already.
//
// A norm needs all sums of a row before the cell reads the first, so a step is a product of all
// panels, then the rows one after the other; no thread shares units. Plain numbers only.

// The sum of n numbers that `term(first, count)` gives a vector of, zeros behind them.
template <class Real, class Term>
inline Real sum_of(int64_t n, const Term& term) {
  using M = Math<Real>;
  typename M::Value sums{};
  for (int64_t i = 0; i < n; i += M::kLanes)
    sums += term(i, int(std::min<int64_t>(M::kLanes, n - i)));
  Real sum = 0;
  for (int lane = 0; lane < M::kLanes; ++lane) sum += sums[lane];
  return sum;
}

// normalised [n] of x [n], which may be the same memory; returns what deviations were multiplied
// by.
template <class Real>
inline Real normalise(const Real* x, int64_t n, Real eps, Real* normalised) {
  using M = Math<Real>;
  const Real mean =
      sum_of<Real>(n, [&](int64_t i, int count) { return M::load(x + i, count); }) / n;
  const auto deviation = [&](int64_t i, int count) {
    return M::load(x + i, count) - M::broadcast(mean);
  };
  const Real squares = sum_of<Real>(n, [&](int64_t i, int count) {
    typename M::Value d{};
    const auto all = deviation(i, count);
    std::memcpy(&d, &all, count * sizeof(Real));  // past the count they are not of numbers
    return d * d;
  });
  const Real scale = Real(1) / Real(__builtin_sqrt(double(squares / n + eps)));
  for (int64_t i = 0; i < n; i += M::kLanes) {
    const int count = int(std::min<int64_t>(M::kLanes, n - i));
    M::store(normalised + i,
             LayerNorm<M>::forward(M::load(x + i, count), M::broadcast(mean), M::broadcast(scale)),
             count);
  }
  return scale;
}

// d [n], the gradient of weight * normalised, becomes that of what was normalised.
template <class Real>
inline void normalise_backward(Real* d, const Real* weight, const Real* normalised, Real scale,
                               int64_t n) {
  using M = Math<Real>;
  const auto scaled = [&](int64_t i, int count) {
    return M::load(d + i, count) * M::load(weight + i, count);
  };
  const Real mean = sum_of<Real>(n, scaled) / n;
  const Real product = sum_of<Real>(n,
                                    [&](int64_t i, int count) {
                                      return scaled(i, count) * M::load(normalised + i, count);
                                    }) /
                       n;
  for (int64_t i = 0; i < n; i += M::kLanes) {
    const int count = int(std::min<int64_t>(M::kLanes, n - i));
    const auto x = M::load(normalised + i, count);
    M::store(d + i,
             LayerNorm<M>::backward(scaled(i, count), x, M::broadcast(mean), M::broadcast(product),
                                    M::broadcast(scale)),
             count);
  }
}

// The memory of one task.
template <class N>
struct NormalisedScratch {
  using Real = typename N::Real;
  const Real** rows;  // [B] rows that a step multiplies
  Real* sums;         // [panel][B][kColumns][lane]
  Real* row;          // [G*H] of one row, by gate
  Real* cell;         // [H]
  int64_t bytes;

  NormalisedScratch(void* memory, const RecurrenceShape& shape, int64_t num_rows) {
    char* p = static_cast<char*>(memory);
    const auto take = [&](auto*& pointer, int64_t count) {
      using Number = std::remove_reference_t<decltype(*pointer)>;
      pointer = reinterpret_cast<Number*>(p);
      p += (count * int64_t(sizeof(Number)) + 63) & ~int64_t(63);
    };
    const int64_t lanes = Math<Real>::kLanes, H = shape.hidden_size;
    const int gates = num_gates(shape.cell);
    const int64_t all_panels = num_panels<N>(H, gates) * std::max<int64_t>(num_rows, 4);
    take(rows, num_rows);
    take(sums, std::max<int64_t>(all_panels, kMaxPanelGroup) * kMaxColumns * lanes);
    take(row, gates * H);
    take(cell, H);
    bytes = p - static_cast<char*>(memory);
  }
  static int64_t bytes_for(const RecurrenceShape& shape, int64_t rows) {
    return NormalisedScratch(nullptr, shape, rows).bytes;
  }
};

template <class N, Cell kCell>
void run_normalised_forward(const NormalisedTask& task) {
  using Real = typename N::Real;
  using M = Math<Real>;
  using V = typename M::Value;
  constexpr int kLanes = M::kLanes, kGates = num_gates(kCell);
  constexpr int kColumns = panel_columns(kGates), kWidth = kColumns * kLanes;
  const RecurrenceShape& shape = *task.shape;
  const SequenceRows& sequences = *task.sequences;
  const NormalisedDirection& dir = *task.direction;
  const int64_t H = shape.hidden_size, T = shape.seq_len, b_begin = task.b_begin;
  const Real* zeros = static_cast<const Real*>(task.zeros);
  const NormalisedScratch<N> scratch(task.scratch, shape, task.b_end - b_begin);
  const Panels<N, kColumns> panels = panels_of<N, kColumns>({task.panels, false}, H, H);
  const int64_t num = num_panels<N>(H, kGates);
  const Real* gates_x = static_cast<const Real*>(dir.gates_x);
  const Real* norm_hh = static_cast<const Real*>(dir.norm_hh);
  const Real* bias_hh = static_cast<const Real*>(dir.bias_hh);
  const Real* norm_c = static_cast<const Real*>(dir.norm_c);
  const Real* bias_c = static_cast<const Real*>(dir.bias_c);
  Real* output = static_cast<Real*>(dir.output);
  Real* reserve = static_cast<Real*>(dir.reserve);
  Real* cy = static_cast<Real*>(dir.cy);
  const Real eps = Real(dir.eps);
  const PreviousState<Real> previous_h{dir.hx ? static_cast<const Real*>(dir.hx) : zeros,
                                       dir.hx ? H : 0, output, dir.output_stride, zeros};

  for (int64_t step = 0; step < T; ++step) {
    const int64_t t = dir.reverse ? T - 1 - step : step;
    const int64_t active = count_active(sequences, T, t, b_begin, task.b_end);
    if (active == 0) continue;
    const int64_t first_row = row_offset(sequences, shape.batch_size, t) + b_begin;
    for (int64_t j = 0; j < active; ++j) {
      scratch.rows[j] = previous_h(sequences, shape, dir.reverse, t, b_begin + j);
      if (kCell == Cell::kLstm && begins_anew(sequences, shape, dir.reverse, t, b_begin + j))
        std::fill_n(cy + (b_begin + j) * H, H, Real(0));
    }
    for_each_panel<N, kColumns>(scratch.rows, active, panels, {0, num}, step & 1,
                                {scratch.sums, active * kWidth, false}, [](int64_t, Real*) {});
    for (int64_t j = 0; j < active; ++j) {
      const int64_t row = first_row + j;
      const Real* x = gates_x + row * dir.gates_x_stride;
      Real* saved = reserve ? reserve + row * dir.reserve_stride : nullptr;
      Real* normalised = saved ? saved + kNormalisedBlock<kCell> * H : scratch.row;
      for (int64_t p = 0; p < num; ++p)
        for (int gate = 0; gate < kGates; ++gate) {
          const int n = int(std::min<int64_t>(kLanes, H - p * kLanes));
          M::store(scratch.row + gate * H + p * kLanes,
                   M::load(scratch.sums + (p * active + j) * kWidth + gate * kLanes), n);
        }
      const Real scale = normalise(scratch.row, kGates * H, eps, normalised);
      if (saved) {
        saved[dir.reserve_stride - 2] = scale;
        saved[dir.reserve_stride - 1] = 0;  // a GRU has no other
      }
      const auto each = [&](const auto& body) {
        for (int64_t u = 0; u < H; u += kLanes) body(u, int(std::min<int64_t>(kLanes, H - u)));
      };
      each([&](int64_t u, int n) {
        const auto of_x = [&](int gate) { return M::load(x + gate * H + u, n); };
        const auto of_h = [&](int gate) {
          const int64_t at = gate * H + u;
          return M::load(norm_hh + at, n) * M::load(normalised + at, n) + M::load(bias_hh + at, n);
        };
        if constexpr (kCell == Cell::kGru) {
          typename GruCell<M>::Activations act;
          const V q = of_h(2);
          const V h = GruCell<M>::forward(of_x(0) + of_h(0), of_x(1) + of_h(1), of_x(2), q,
                                          M::load(scratch.rows[j] + u, n), act);
          if (saved) {
            M::store(saved + u, act.r, n);
            M::store(saved + H + u, act.z, n);
            M::store(saved + 2 * H + u, act.n, n);
            M::store(saved + 3 * H + u, q, n);
          }
          M::store(output + row * dir.output_stride + u, h, n);
        } else {
          typename LstmCell<M>::Activations act;
          Real* state = cy + (b_begin + j) * H + u;
          const V c = LstmCell<M>::update(of_x(0) + of_h(0), of_x(1) + of_h(1), of_x(2) + of_h(2),
                                          of_x(3) + of_h(3), M::load(state, n), act);
          M::store(state, c, n);
          M::store(output + row * dir.output_stride + u, act.o, n);  // until c is normalised
          if (saved) {
            M::store(saved + u, act.i, n);
            M::store(saved + H + u, act.f, n);
            M::store(saved + 2 * H + u, act.g, n);
            M::store(saved + 3 * H + u, act.o, n);
            M::store(saved + 4 * H + u, c, n);
          }
        }
      });
      if constexpr (kCell == Cell::kLstm) {
        Real* normalised_c = saved ? saved + 5 * H : scratch.cell;
        const Real scale_c = normalise(cy + (b_begin + j) * H, H, eps, normalised_c);
        if (saved) saved[dir.reserve_stride - 1] = scale_c;
        each([&](int64_t u, int n) {
          Real* h = output + row * dir.output_stride + u;
          const V c =
              M::load(norm_c + u, n) * M::load(normalised_c + u, n) + M::load(bias_c + u, n);
          M::store(h, LstmCell<M>::output(M::load(h, n), c), n);
        });
      }
    }
  }
}

template <class N, Cell kCell>
void run_normalised_backward(const NormalisedTask& task) {
  using Real = typename N::Real;
  using M = Math<Real>;
  using V = typename M::Value;
  constexpr int kLanes = M::kLanes, kGates = num_gates(kCell), kPlain = panel_columns(1);
  const RecurrenceShape& shape = *task.shape;
  const SequenceRows& sequences = *task.sequences;
  const NormalisedDirection& dir = *task.direction;
  const int64_t H = shape.hidden_size, T = shape.seq_len, b_begin = task.b_begin;
  const Real* zeros = static_cast<const Real*>(task.zeros);
  const NormalisedScratch<N> scratch(task.scratch, shape, task.b_end - b_begin);
  const Panels<N, kPlain> panels = panels_of<N, kPlain>({task.panels, false}, H, kGates * H);
  const Real* norm_hh = static_cast<const Real*>(dir.norm_hh);
  const Real* norm_c = static_cast<const Real*>(dir.norm_c);
  const Real* bias_c = static_cast<const Real*>(dir.bias_c);
  const Real* reserve = static_cast<const Real*>(dir.reserve);
  const Real* dy = static_cast<const Real*>(dir.dy);
  const Real* dc_steps = static_cast<const Real*>(dir.dc);
  Real* carry = static_cast<Real*>(dir.dhx);
  Real* carry_c = static_cast<Real*>(dir.dcx);
  const PreviousState<Real> previous_h{dir.hx ? static_cast<const Real*>(dir.hx) : zeros,
                                       dir.hx ? H : 0, static_cast<const Real*>(dir.output),
                                       dir.output_stride, zeros};
  const PreviousState<Real> previous_c{dir.cx ? static_cast<const Real*>(dir.cx) : zeros,
                                       dir.cx ? H : 0, reserve + 4 * H, dir.reserve_stride, zeros};

  for (int64_t step = T - 1; step >= 0; --step) {
    const int64_t t = dir.reverse ? T - 1 - step : step;
    const int64_t active = count_active(sequences, T, t, b_begin, task.b_end);
    if (active == 0) continue;
    const int64_t first_row = row_offset(sequences, shape.batch_size, t) + b_begin;
    for (int64_t j = 0; j < active; ++j) {
      const int64_t b = b_begin + j, row = first_row + j;
      const Real* saved = reserve + row * dir.reserve_stride;
      Real* d = static_cast<Real*>(dir.dgates) + row * dgates_blocks(kCell) * H;
      Real* dsums = static_cast<Real*>(dir.dsums) + row * kGates * H;
      const auto each = [&](const auto& body) {
        for (int64_t u = 0; u < H; u += kLanes) body(u, int(std::min<int64_t>(kLanes, H - u)));
      };
      const auto dh_at = [&](int64_t u, int n) {
        V dh = M::load(carry + b * H + u, n);
        if (dy) dh += M::load(dy + row * dir.dy_stride + u, n);
        return dh;
      };
      if constexpr (kCell == Cell::kGru) {
        const Real* h_old = previous_h(sequences, shape, dir.reverse, t, b);
        each([&](int64_t u, int n) {
          const typename GruCell<M>::Activations act{
              M::load(saved + u, n), M::load(saved + H + u, n), M::load(saved + 2 * H + u, n)};
          const auto grad = GruCell<M>::backward(dh_at(u, n), act, M::load(saved + 3 * H + u, n),
                                                 M::load(h_old + u, n));
          M::store(d + u, grad.n, n);
          M::store(d + H + u, grad.r, n);
          M::store(d + 2 * H + u, grad.z, n);
          M::store(d + 3 * H + u, grad.n_recurrent, n);
          M::store(carry + b * H + u, grad.h_direct, n);
        });
        std::copy_n(d + H, 3 * H, dsums);
      } else {
        Real* dnorm_c = static_cast<Real*>(dir.dnorm_c) + row * H;
        const Real* normalised_c = saved + 5 * H;
        each([&](int64_t u, int n) {
          const V c =
              M::load(norm_c + u, n) * M::load(normalised_c + u, n) + M::load(bias_c + u, n);
          const auto grad =
              LstmCell<M>::output_backward(dh_at(u, n), M::load(saved + 3 * H + u, n), c);
          M::store(d + 3 * H + u, grad.o, n);
          M::store(dnorm_c + u, grad.c, n);
          M::store(scratch.cell + u, grad.c, n);
        });
        normalise_backward(scratch.cell, norm_c, normalised_c, saved[dir.reserve_stride - 1], H);
        const Real* c_old = previous_c(sequences, shape, dir.reverse, t, b);
        each([&](int64_t u, int n) {
          const typename LstmCell<M>::Activations act{
              M::load(saved + u, n), M::load(saved + H + u, n), M::load(saved + 2 * H + u, n), V{}};
          V dc = M::load(carry_c + b * H + u, n) + M::load(scratch.cell + u, n);
          if (dc_steps) dc += M::load(dc_steps + row * dir.dc_stride + u, n);
          const auto grad = LstmCell<M>::update_backward(dc, act, M::load(c_old + u, n));
          M::store(d + u, grad.i, n);
          M::store(d + H + u, grad.f, n);
          M::store(d + 2 * H + u, grad.g, n);
          M::store(carry_c + b * H + u, grad.c, n);
        });
        std::copy_n(d, 4 * H, dsums);
      }
      normalise_backward(dsums, norm_hh, saved + kNormalisedBlock<kCell> * H,
                         saved[dir.reserve_stride - 2], kGates * H);
      scratch.rows[j] = dsums;
    }
    const auto store_carry = [&](int64_t panel, Real* sums) {
      for (int64_t j = 0; j < active; ++j)
        for (int v = 0; v < kPlain; ++v) {
          const int64_t u = (panel * kPlain + v) * kLanes;
          if (u >= H) break;
          const int n = int(std::min<int64_t>(kLanes, H - u));
          Real* to = carry + (b_begin + j) * H + u;
          V dh = M::load(sums + (j * kPlain + v) * kLanes);
          if (kCell == Cell::kGru) dh += M::load(to, n);
          M::store(to, dh, n);
        }
    };
    for_each_panel<N, kPlain>(scratch.rows, active, panels, {0, num_panels<N>(H, 1)}, step & 1,
                              {scratch.sums, 0, false}, store_carry);
    for (int64_t j = 0; j < active; ++j) {
      if (!begins_anew(sequences, shape, dir.reverse, t, b_begin + j)) continue;
      std::fill_n(carry + (b_begin + j) * H, H, Real(0));
      if (kCell == Cell::kLstm) std::fill_n(carry_c + (b_begin + j) * H, H, Real(0));
    }
  }
}
