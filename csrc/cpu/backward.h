// The backward pass: gradients of the pre-activations, and of the state that is carried back.

template <class N, Cell kCell>
void run_backward(const BackwardTask& task) {
  using Real = typename N::Real;
  using Row = typename N::Row;
  using M = Math<Real>;
  using V = typename M::Value;
  constexpr int kLanes = M::kLanes;
  constexpr int kGates = num_gates(kCell);
  constexpr int kPlain = panel_columns(1);
  const RecurrenceShape& shape = *task.shape;
  const SequenceRows& sequences = *task.sequences;
  const BackwardDirection& dir = *task.direction;
  const Row* zeros = static_cast<const Row*>(task.zeros);
  const int64_t b_begin = task.b_begin, b_end = task.b_end;
  const Scratch<N> scratch(task.scratch, shape, 0, b_end - b_begin);
  [[maybe_unused]] const typename N::Registers registers;
  const int64_t H = shape.hidden_size, T = shape.seq_len, S = shape.state_size();
  const Panels<N, kPlain> panels = panels_of<N, kPlain>({task.panels, false}, S, kGates * H);
  const Panels<N, kPlain> panels_hr = panels_of<N, kPlain>({task.panels_hr, false}, H, S);
  // Shared units are those of the columns of W_hh that carry their gradients.
  const PanelRange range = panel_range(num_panels<N>(S, 1), task.units);
  const int64_t u_begin = task.barrier ? range.begin * kPlain * kLanes : 0;
  const int64_t u_end = task.barrier ? std::min(range.end * kPlain * kLanes, H) : H;
  [[maybe_unused]] const int c_block = output_c_block(shape);
  const Row* output = static_cast<const Row*>(dir.output);
  const Real* reserve = static_cast<const Real*>(dir.reserve);
  const Row* dy = static_cast<const Row*>(dir.dy);
  const Row* dc_steps = static_cast<const Row*>(dir.dc);
  Row* dgates = static_cast<Row*>(dir.dgates);
  Real* carry = static_cast<Real*>(dir.dhx);
  Real* carry_c = static_cast<Real*>(dir.dcx);
  const PreviousState<Row> previous_h{dir.hx ? static_cast<const Row*>(dir.hx) : zeros,
                                      dir.hx ? S : 0, output, dir.output_stride, zeros};
  const PreviousState<Real> previous_c{static_cast<const Real*>(dir.cx ? dir.cx : task.zeros),
                                       dir.cx ? H : 0, reserve + 4 * H, dir.reserve_stride,
                                       static_cast<const Real*>(task.zeros)};
  const RegulariserRows<Real> regularisers(task.regularisers);
  const ProductRows<N> product_rows = [&] {
    if constexpr (N::kPacks)
      return scratch.packed.at(0);
    else
      return scratch.rows;
  }();

  for (int64_t step = task.step_end - 1; step >= task.step_begin; --step) {
    const int64_t t = dir.reverse ? T - 1 - step : step;
    const int64_t active = count_active(sequences, T, t, b_begin, b_end);
    if (active == 0) continue;
    const int64_t first_row = row_offset(sequences, shape.batch_size, t) + b_begin;

    if (shape.proj_size) {
      // dproj = dy + carry; the gradient of the unprojected h is dproj W_hr.
      for (int64_t j = 0; j < active; ++j) {
        Real* dh = carry + (b_begin + j) * S;
        Row* to = static_cast<Row*>(dir.dproj) + (first_row + j) * S;
        for (int64_t u = 0; u < S; u += kLanes) {
          const int n = S - u < kLanes ? int(S - u) : kLanes;
          V sum = M::load(dh + u, n);
          if (dy) sum += M::load(dy + (first_row + j) * dir.dy_stride + u, n);
          if (regularisers.zoneout_h)
            M::store(dh + u,
                     Zoneout<M>::backward(sum, M::load(regularisers.share_h(first_row + j) + u, n)),
                     n);
          M::store(to + u, sum, n);
        }
        if constexpr (N::kPacks)
          scratch.packed.put(j, to, S);
        else
          scratch.rows[j] = to;
      }
      const auto store_wide = [&](int64_t panel, Real* sums) {
        for (int64_t j = 0; j < active; ++j)
          for (int v = 0; v < kPlain; ++v) {
            const int64_t u = (panel * kPlain + v) * kLanes;
            if (u >= H) break;
            M::store(scratch.wide + j * H + u, M::load(sums + (j * kPlain + v) * kLanes),
                     H - u < kLanes ? int(H - u) : kLanes);
          }
      };
      for_each_panel<N, kPlain>(product_rows, active, panels_hr, {0, num_panels<N>(H, 1)}, step & 1,
                                {scratch.sums, 0, false}, store_wide);
    }

    // The cell: gradients of the pre-activations.
    for (int64_t j = 0; j < active; ++j) {
      const int64_t b = b_begin + j, row = first_row + j;
      const Real* saved = reserve + row * dir.reserve_stride;
      Row* d = dgates + (row - dir.dgates_first_row) * dir.dgates_stride;
      const Row* h_old =
          kCell == Cell::kGru ? previous_h(sequences, shape, dir.reverse, t, b) : nullptr;
      const Real* c_old =
          kIsLstm<kCell> ? previous_c(sequences, shape, dir.reverse, t, b) : nullptr;
      for (int64_t u = u_begin; u < u_end; u += kLanes) {
        const int n = H - u < kLanes ? int(H - u) : kLanes;
        V dh;
        if (shape.proj_size) {
          dh = M::load(scratch.wide + j * H + u, n);
        } else {
          dh = M::load(carry + b * S + u, n);
          if (dy) dh += M::load(dy + row * dir.dy_stride + u, n);
        }
        V direct{};  // of the state before, past the cell
        if (regularisers.zoneout_h && !shape.proj_size) {
          direct = Zoneout<M>::backward(dh, M::load(regularisers.share_h(row) + u, n));
          if (kCell != Cell::kGru) M::store(carry + b * S + u, direct, n);
        }
        if constexpr (kGates == 1) {
          const V y = shape.zoneout ? M::load(saved + u, n)
                                    : M::load(output + row * dir.output_stride + u, n);
          M::store(
              d + u,
              kCell == Cell::kTanh ? TanhCell<M>::backward(dh, y) : ReluCell<M>::backward(dh, y),
              n);
        } else if constexpr (kCell == Cell::kGru) {
          const typename GruCell<M>::Activations act{
              M::load(saved + u, n), M::load(saved + H + u, n), M::load(saved + 2 * H + u, n)};
          const auto grad =
              GruCell<M>::backward(dh, act, M::load(saved + 3 * H + u, n), M::load(h_old + u, n));
          M::store(d + u, grad.n, n);
          M::store(d + H + u, grad.r, n);
          M::store(d + 2 * H + u, grad.z, n);
          M::store(d + 3 * H + u, grad.n_recurrent, n);
          M::store(carry + b * S + u,
                   regularisers.zoneout_h ? grad.h_direct + direct : grad.h_direct, n);
        } else {
          const typename LstmCell<M>::Activations act{
              M::load(saved + u, n), M::load(saved + H + u, n), M::load(saved + 2 * H + u, n),
              M::load(saved + 3 * H + u, n)};
          V dc = M::load(carry_c + b * H + u, n);
          if (dc_steps) dc += M::load(dc_steps + row * dir.dc_stride + u, n);
          V direct_c{};
          if (regularisers.zoneout_c)
            direct_c = Zoneout<M>::backward(dc, M::load(regularisers.share_c(row) + u, n));
          const V c_new = M::load(saved + c_block * H + u, n), c_before = M::load(c_old + u, n);
          typename LstmCell<M>::Gradients grad;
          if constexpr (kCell == Cell::kLstmPeepholes)
            grad = PeepholeLstmCell<M>::backward(dh, dc, act, c_new, c_before,
                                                 peepholes_of<N>(dir.weight_ch, H, u, n));
          else
            grad = LstmCell<M>::backward(dh, dc, act, c_new, c_before);
          M::store(d + u, grad.i, n);
          M::store(d + H + u, grad.f, n);
          M::store(d + 2 * H + u, grad.g, n);
          M::store(d + 3 * H + u, grad.o, n);
          M::store(carry_c + b * H + u, regularisers.zoneout_c ? grad.c + direct_c : grad.c, n);
        }
      }
      const Row* recurrent = d + (kCell == Cell::kGru ? H : 0);
      if constexpr (N::kPacks)
        scratch.packed.put(j, recurrent, kGates * H);
      else
        scratch.rows[j] = recurrent;
    }

    // The carried gradient: dgates W_hh, beside the direct paths of GRU and zoneout.
    if (task.barrier) task.barrier->arrive_and_wait(task.units.end - task.units.begin);
    const auto store_carry = [&](int64_t panel, Real* sums) {
      for (int64_t j = 0; j < active; ++j)
        for (int v = 0; v < kPlain; ++v) {
          const int64_t u = (panel * kPlain + v) * kLanes;
          if (u >= S) break;
          const int n = S - u < kLanes ? int(S - u) : kLanes;
          Real* to = carry + (b_begin + j) * S + u;
          V dh = M::load(sums + (j * kPlain + v) * kLanes);
          if (regularisers.recurrent_mask)
            dh = dh * M::load(regularisers.recurrent_mask + (b_begin + j) * S + u, n);
          if (kCell == Cell::kGru || regularisers.zoneout_h) dh += M::load(to, n);
          M::store(to, dh, n);
        }
    };
    for_each_panel<N, kPlain>(product_rows, active, panels, range, step & 1,
                              {scratch.sums, 0, false}, store_carry);

    // Nothing is handed back from a sequence to the one before it.
    if (!any_begins_anew(sequences, T, dir.reverse, t)) continue;
    const int64_t state_begin = std::min(range.begin * kPlain * kLanes, S);
    const int64_t state_end = std::min(range.end * kPlain * kLanes, S);
    for (int64_t j = 0; j < active; ++j) {
      const int64_t b = b_begin + j;
      if (!begins_anew(sequences, shape, dir.reverse, t, b)) continue;
      std::fill(carry + b * S + state_begin, carry + b * S + state_end, Real(0));
      if constexpr (kIsLstm<kCell>)
        std::fill(carry_c + b * H + u_begin, carry_c + b * H + u_end, Real(0));
    }
  }
}
