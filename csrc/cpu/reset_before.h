// The recurrence of a GRU whose reset gate comes before the product (cells.h).
//
// A step has two products with h, one after the other: r and z of h, then n of r * h, which is in
// memory by then. Each gate has panels of its own, of units alone, so that a unit's r is there
// where its h is; their sums continue those of W_ih x, of some steps at once. `gates` is the
// reserve, r z n and r * h of every step, or in inference r * h and z of a step, [B, 2 * H]. Plain
// numbers only. Threads that share units meet twice a step.

template <class N>
void run_reset_before_forward(const ForwardTask& task) {
  constexpr Cell kCell = Cell::kGruResetBefore;
  using Real = typename N::Real;
  using M = Math<Real>;
  using V = typename M::Value;
  constexpr int kLanes = M::kLanes, kPlain = panel_columns(1);
  const RecurrenceShape& shape = *task.shape;
  const SequenceRows& sequences = *task.sequences;
  const ForwardDirection& dir = *task.direction;
  const Real* zeros = static_cast<const Real*>(task.zeros);
  const int64_t H = shape.hidden_size, T = shape.seq_len, b_begin = task.b_begin;
  const Scratch<N> scratch(task.scratch, shape, task.input->size, task.b_end - b_begin);
  const int64_t I = task.input->size;
  const auto panels_of_gate = [&](const Weights& weights, int gate, int64_t depth) {
    const char* base = static_cast<const char*>(weights.data);
    return panels_of<N, kPlain>({base + gate * packed_bytes<N>(H, 1, depth), false}, H, depth);
  };
  const PanelRange range = panel_range(num_panels<N>(H, 1), task.units);
  const Real* x = static_cast<const Real*>(task.input->x);
  const Real* bias_ih = static_cast<const Real*>(dir.bias_ih);
  const Real* bias_hh = static_cast<const Real*>(dir.bias_hh);
  Real* gates = static_cast<Real*>(dir.gates);
  Real* output = static_cast<Real*>(dir.output);
  const bool keeps = dir.gates_stride >= reserve_blocks(kCell) * H;
  const int64_t reset_column = keeps ? 3 * H : 0;
  const PreviousState<Real> previous_h{dir.hx ? static_cast<const Real*>(dir.hx) : zeros,
                                       dir.hx ? H : 0, output, dir.output_stride, zeros};
  const RegulariserRows<Real> regularisers(task.regularisers);
  const Real* const* rows_of_h = regularisers.recurrent_mask ? scratch.masked_rows : scratch.rows;

  constexpr int kWidth = kPlain * kLanes;
  const int64_t at_once = Scratch<N>::steps_at_once(shape, I, task.b_end - b_begin);
  const auto time_of = [&](int64_t step) { return dir.reverse ? T - 1 - step : step; };
  const auto active_at = [&](int64_t step) {
    return count_active(sequences, T, time_of(step), b_begin, task.b_end);
  };
  const auto first_row_at = [&](int64_t step) {
    return row_offset(sequences, shape.batch_size, time_of(step)) + b_begin;
  };
  // W_ih x of the steps that are projected at once: by gate, by panel of the range, by row.
  int64_t projected = 0, projected_before = 0;  // rows: of these steps, before the current one
  const auto projection_of = [&](int gate) {
    return scratch.projection + gate * (range.end - range.begin) * projected * kWidth;
  };
  const auto project = [&](int64_t first_step) {
    projected = projected_before = 0;
    for (int64_t step = first_step; step < std::min(first_step + at_once, T); ++step)
      for (int64_t j = 0; j < active_at(step); ++j)
        scratch.x_rows[projected++] = x + (first_row_at(step) + j) * task.input->stride;
    for (int gate = 0; gate < 3; ++gate)
      for_each_panel<N, kPlain>(scratch.x_rows, projected, panels_of_gate(task.weight_ih, gate, I),
                                range, false, {projection_of(gate), projected * kWidth, false},
                                [](int64_t, Real*) {});
  };

  for (int64_t step = 0; step < T; ++step) {
    if (step % at_once == 0) project(step);
    const int64_t t = time_of(step), active = active_at(step), first_row = first_row_at(step);
    if (active == 0) continue;
    const auto gates_of = [&](int64_t j) {
      return gates + (keeps ? first_row + j : b_begin + j) * dir.gates_stride;
    };
    for (int64_t j = 0; j < active; ++j) {
      scratch.rows[j] = previous_h(sequences, shape, dir.reverse, t, b_begin + j);
      scratch.targets[j] = gates_of(j) + reset_column;
      if (!regularisers.recurrent_mask) continue;
      const Real* mask = regularisers.recurrent_mask + (b_begin + j) * H;
      Real* masked = scratch.masked + j * H;
      for (int64_t u = 0; u < H; u += kLanes) {
        const int n = int(std::min<int64_t>(kLanes, H - u));
        M::store(masked + u, M::load(scratch.rows[j] + u, n) * M::load(mask + u, n), n);
      }
      scratch.masked_rows[j] = masked;
    }
    // leave(row, j, u, n, a) for each vector of units, a the gate's sum of both products and
    // biases.
    const auto each_sum = [&](int gate, const Real* const* rows, const auto& leave) {
      const auto consume = [&](int64_t panel, Real* sums) {
        for (int64_t j = 0; j < active; ++j)
          for (int v = 0; v < kPlain; ++v) {
            const int64_t u = (panel * kPlain + v) * kLanes;
            if (u >= H) break;
            const int n = int(std::min<int64_t>(kLanes, H - u));
            const auto of_gate = [&](const Real* values) {
              return [=](int of) { return M::load(values + of * H + u, n); };
            };
            V a = M::load(sums + (j * kPlain + v) * kLanes);
            if (bias_ih) a += bias_of_sum<kCell>(gate, of_gate(bias_ih), of_gate(bias_hh));
            leave(gates_of(j) + u, j, u, n, a);
          }
      };
      Real* sums = projection_of(gate) + projected_before * kWidth;
      for_each_panel<N, kPlain>(rows, active, panels_of_gate(task.weight_hh, gate, H), range,
                                step & 1, {sums, projected * kWidth, true}, consume);
    };
    const auto meet = [&] {
      if (task.barrier) task.barrier->arrive_and_wait(task.units.end - task.units.begin);
    };
    each_sum(0, rows_of_h, [&](Real* row, int64_t j, int64_t u, int n, V a) {
      const V r = ResetBefore<M>::gate(a);
      if (keeps) M::store(row, r, n);
      M::store(row + reset_column, ResetBefore<M>::reset(r, M::load(rows_of_h[j] + u, n)), n);
    });
    each_sum(1, rows_of_h, [&](Real* row, int64_t, int64_t, int n, V a) {
      M::store(row + H, ResetBefore<M>::gate(a), n);
    });
    meet();
    each_sum(2, scratch.targets, [&](Real* row, int64_t j, int64_t u, int n, V a) {
      const V before = M::load(scratch.rows[j] + u, n);
      typename GruCell<M>::Activations act;
      act.z = M::load(row + H, n);
      V h = GruCell<M>::output(a, before, act);
      if (keeps) M::store(row + 2 * H, act.n, n);
      if (regularisers.zoneout_h)
        h = Zoneout<M>::mix(h, before, M::load(regularisers.share_h(first_row + j) + u, n));
      M::store(output + (first_row + j) * dir.output_stride + u, h, n);
    });
    projected_before += active;
    if (step + 1 < T) meet();
  }
}

template <class N>
void run_reset_before_backward(const BackwardTask& task) {
  using Real = typename N::Real;
  using M = Math<Real>;
  using V = typename M::Value;
  constexpr int kLanes = M::kLanes, kPlain = panel_columns(1);
  const RecurrenceShape& shape = *task.shape;
  const SequenceRows& sequences = *task.sequences;
  const BackwardDirection& dir = *task.direction;
  const Real* zeros = static_cast<const Real*>(task.zeros);
  const int64_t H = shape.hidden_size, T = shape.seq_len, b_begin = task.b_begin;
  const Scratch<N> scratch(task.scratch, shape, 0, task.b_end - b_begin);
  const char* packed = static_cast<const char*>(task.panels);
  const Panels<N, kPlain> panels_rz = panels_of<N, kPlain>({packed, false}, H, 2 * H);
  const Panels<N, kPlain> panels_n =
      panels_of<N, kPlain>({packed + packed_bytes<N>(H, 1, 2 * H), false}, H, H);
  const PanelRange range = panel_range(num_panels<N>(H, 1), task.units);
  const int64_t u_begin = std::min(range.begin * kPlain * kLanes, H);
  const int64_t u_end = std::min(range.end * kPlain * kLanes, H);
  const Real* reserve = static_cast<const Real*>(dir.reserve);
  const Real* dy = static_cast<const Real*>(dir.dy);
  Real* carry = static_cast<Real*>(dir.dhx);
  const PreviousState<Real> previous_h{dir.hx ? static_cast<const Real*>(dir.hx) : zeros,
                                       dir.hx ? H : 0, static_cast<const Real*>(dir.output),
                                       dir.output_stride, zeros};
  const RegulariserRows<Real> regularisers(task.regularisers);

  for (int64_t step = task.step_end - 1; step >= task.step_begin; --step) {
    const int64_t t = dir.reverse ? T - 1 - step : step;
    const int64_t active = count_active(sequences, T, t, b_begin, task.b_end);
    if (active == 0) continue;
    const int64_t first_row = row_offset(sequences, shape.batch_size, t) + b_begin;
    const auto dgates_of = [&](int64_t j) {
      return static_cast<Real*>(dir.dgates) +
             (first_row + j - dir.dgates_first_row) * dir.dgates_stride;
    };
    // take(j, u, n, sum, to) for each vector of the product, `to` what is carried of its units.
    const auto each_sum = [&](const Panels<N, kPlain>& panels, const auto& take) {
      if (task.barrier) task.barrier->arrive_and_wait(task.units.end - task.units.begin);
      const auto consume = [&](int64_t panel, Real* sums) {
        for (int64_t j = 0; j < active; ++j)
          for (int v = 0; v < kPlain; ++v) {
            const int64_t u = (panel * kPlain + v) * kLanes;
            if (u >= H) break;
            const int n = int(std::min<int64_t>(kLanes, H - u));
            V d = take(j, u, n, M::load(sums + (j * kPlain + v) * kLanes));
            if (regularisers.recurrent_mask)
              d = d * M::load(regularisers.recurrent_mask + (b_begin + j) * H + u, n);
            Real* to = carry + (b_begin + j) * H + u;
            M::store(to, M::load(to, n) + d, n);
          }
      };
      for_each_panel<N, kPlain>(scratch.rows, active, panels, range, step & 1,
                                {scratch.sums, 0, false}, consume);
    };

    for (int64_t j = 0; j < active; ++j) {
      const int64_t b = b_begin + j, row = first_row + j;
      const Real* saved = reserve + row * dir.reserve_stride;
      const Real* h_old = previous_h(sequences, shape, dir.reverse, t, b);
      for (int64_t u = u_begin; u < u_end; u += kLanes) {
        const int n = int(std::min<int64_t>(kLanes, H - u));
        V dh = M::load(carry + b * H + u, n), direct{};
        if (dy) dh += M::load(dy + row * dir.dy_stride + u, n);
        if (regularisers.zoneout_h)
          direct = Zoneout<M>::backward(dh, M::load(regularisers.share_h(row) + u, n));
        const auto d = GruCell<M>::output_backward(
            dh, M::load(saved + H + u, n), M::load(saved + 2 * H + u, n), M::load(h_old + u, n));
        M::store(dgates_of(j) + H + u, d.z, n);
        M::store(dgates_of(j) + 2 * H + u, d.n, n);
        M::store(carry + b * H + u, d.h_direct + direct, n);
      }
      scratch.rows[j] = dgates_of(j) + 2 * H;
    }
    each_sum(panels_n, [&](int64_t j, int64_t u, int n, V sum) {
      const Real* saved = reserve + (first_row + j) * dir.reserve_stride + u;
      const auto d = ResetBefore<M>::backward(sum, M::load(saved, n), M::load(saved + 3 * H, n));
      M::store(dgates_of(j) + u, d.r, n);
      return d.h;
    });
    for (int64_t j = 0; j < active; ++j) scratch.rows[j] = dgates_of(j);
    each_sum(panels_rz, [&](int64_t, int64_t, int, V sum) { return sum; });
    for (int64_t j = 0; j < active; ++j)
      if (begins_anew(sequences, shape, dir.reverse, t, b_begin + j))
        std::fill(carry + (b_begin + j) * H + u_begin, carry + (b_begin + j) * H + u_end, Real(0));
  }
}
