// The forward pass.

// The sum of an int8 product is in units of its row's scale times its column's.
template <class N>
inline typename Math<typename N::Real>::Value product_of(const typename N::Sum* sum,
                                                         [[maybe_unused]] float row_scale,
                                                         [[maybe_unused]] const float* scales,
                                                         [[maybe_unused]] int64_t column,
                                                         [[maybe_unused]] int n) {
  using M = Math<typename N::Real>;
  if constexpr (std::is_same_v<typename N::Sum, int32_t>) {
    typename M::Bits v;
    std::memcpy(&v, sum, sizeof(v));
    return __builtin_convertvector(v, typename M::Value) *
           (M::load(scales + column, n) * M::broadcast(row_scale));
  } else {
    return M::load(sum);
  }
}

template <class N, Cell kCell>
void run_forward(const ForwardTask& task) {
  using Real = typename N::Real;
  using Row = typename N::Row;
  using Sum = typename N::Sum;
  using M = Math<Real>;
  using V = typename M::Value;
  constexpr int kLanes = M::kLanes;
  constexpr int kGates = num_gates(kCell);
  constexpr int kColumns = panel_columns(kGates);
  constexpr int kWidth = kColumns * kLanes;
  constexpr int kVectors = unit_vectors(kGates);
  // The sums of h continue those of x, but for the GRU, whose new gate needs them apart, and for
  // packed rows, where scales differ and whole tiles of sums are written.
  constexpr bool kOneSum = kCell != Cell::kGru && !N::kPacks;
  const RecurrenceShape& shape = *task.shape;
  const SequenceRows& sequences = *task.sequences;
  const ForwardDirection& dir = *task.direction;
  const Row* zeros = static_cast<const Row*>(task.zeros);
  const int64_t b_begin = task.b_begin, b_end = task.b_end;
  const Scratch<N> scratch(task.scratch, shape, task.input->size, b_end - b_begin);
  [[maybe_unused]] const typename N::Registers registers;
  const int64_t H = shape.hidden_size, T = shape.seq_len, S = shape.state_size();
  const int64_t I = task.input->size;
  const Panels<N, kColumns> panels = panels_of<N, kColumns>(task.weight_hh, H, S);
  const Panels<N, kColumns> panels_ih = panels_of<N, kColumns>(task.weight_ih, H, I);
  constexpr int kPlain = panel_columns(1);
  const Panels<N, kPlain> panels_hr = panels_of<N, kPlain>(task.weight_hr, S, H);
  const PanelRange range = panel_range(num_panels<N>(H, kGates), task.units);
  const Row* x = static_cast<const Row*>(task.input->x);
  const Real* bias_ih = static_cast<const Real*>(dir.bias_ih);
  const Real* bias_hh = static_cast<const Real*>(dir.bias_hh);
  Real* reserve = task.save_reserve ? static_cast<Real*>(dir.gates) : nullptr;
  Row* output = static_cast<Row*>(dir.output);
  Real* cy = static_cast<Real*>(dir.cy);
  const PreviousState<Row> previous_h{dir.hx ? static_cast<const Row*>(dir.hx) : zeros,
                                      dir.hx ? S : 0, output, dir.output_stride, zeros};
  const RegulariserRows<Real> regularisers(task.regularisers);
  const int64_t at_once = Scratch<N>::steps_at_once(shape, I, b_end - b_begin);
  const bool fused = at_once == 1;
  const auto time_of = [&](int64_t step) { return dir.reverse ? T - 1 - step : step; };
  const auto active_at = [&](int64_t step) {
    return count_active(sequences, T, time_of(step), b_begin, b_end);
  };
  const auto first_row_at = [&](int64_t step) {
    return row_offset(sequences, shape.batch_size, time_of(step)) + b_begin;
  };
  const auto add_x_rows = [&](int64_t step, int64_t count_before) {
    const int64_t active = active_at(step), first_row = first_row_at(step);
    for (int64_t j = 0; j < active; ++j) {
      const Row* row = x + (first_row + j) * task.input->stride;
      if constexpr (N::kPacks)
        scratch.packed_x.put(count_before + j, row, I);
      else
        scratch.x_rows[count_before + j] = row;
    }
    return count_before + active;
  };
  const auto [rows_of_x, rows_of_h, rows_of_wide] = [&] {
    if constexpr (N::kPacks)
      return std::array{scratch.packed_x.at(0), scratch.packed.at(0), scratch.packed_wide.at(0)};
    else
      return std::array<ProductRows<N>, 3>{
          scratch.x_rows, regularisers.recurrent_mask ? scratch.masked_rows : scratch.rows,
          scratch.rows};
  }();
  // The row of h that sequence b_begin + j's product reads.
  const auto mask_state = [&](int64_t j, const auto* h) {
    Real* to = scratch.masked + j * S;
    const Real* mask = regularisers.recurrent_mask + (b_begin + j) * S;
    for (int64_t u = 0; u < S; u += kLanes) {
      const int n = int(std::min<int64_t>(kLanes, S - u));
      M::store(to + u, M::load(h + u, n) * M::load(mask + u, n), n);
    }
  };
  [[maybe_unused]] const auto pack_state = [&](int64_t j, const auto* h) {
    if constexpr (N::kPacks) {
      if (!regularisers.recurrent_mask) return scratch.packed.put(j, h, S);
      mask_state(j, h);
      scratch.packed.put(j, scratch.masked + j * S, S);
    }
  };
  if (regularisers.recurrent_mask)
    for (int64_t j = 0; j < b_end - b_begin; ++j) scratch.masked_rows[j] = scratch.masked + j * S;
  if constexpr (N::kPacks) {
    // Every sequence's first state; the rows of those that have not begun stay as they are.
    for (int64_t j = 0; j < b_end - b_begin; ++j) {
      const Row* initial = previous_h.initial + (b_begin + j) * previous_h.initial_stride;
      for (int64_t u = 0; u < S; u += kLanes) {
        const int n = int(std::min<int64_t>(kLanes, S - u));
        M::store(scratch.state + j * S + u, M::load(initial + u, n), n);
      }
      pack_state(j, scratch.state + j * S);
    }
  }

  // Forgets the states that were carried to sequences which begin at this step; h as it was written
  // is passed over by previous_h.
  const auto forget_states = [&](int64_t step, int64_t active) {
    const int64_t unit_begin = std::min(range.begin * kVectors * kLanes, H);
    const int64_t unit_end = std::min(range.end * kVectors * kLanes, H);
    for (int64_t j = 0; j < active; ++j) {
      if (!begins_anew(sequences, shape, dir.reverse, time_of(step), b_begin + j)) continue;
      if constexpr (kIsLstm<kCell>) {
        Real* state = cy + (b_begin + j) * H;
        std::fill(state + unit_begin, state + unit_end, Real(0));
      }
      if constexpr (N::kPacks) {
        std::fill_n(scratch.state + j * S, S, Real(0));
        scratch.packed.put(j, scratch.state + j * S, S);
      }
    }
  };

  for (int64_t chunk = 0; chunk < T; chunk += at_once) {
    const int64_t chunk_end = std::min(chunk + at_once, T);
    int64_t projected = 0, projected_before = 0;  // rows: in the chunk, before the current step
    if (!fused) {
      for (int64_t step = chunk; step < chunk_end; ++step) projected = add_x_rows(step, projected);
      for_each_panel<N, kColumns>(rows_of_x, projected, panels_ih, range, false,
                                  {scratch.projection, projected * kWidth, false},
                                  [](int64_t, Sum*) {});
    }
    for (int64_t step = chunk; step < chunk_end; ++step) {
      const int64_t active = active_at(step), first_row = first_row_at(step);
      if (active == 0) continue;
      if (any_begins_anew(sequences, T, dir.reverse, time_of(step))) forget_states(step, active);
      for (int64_t j = 0; j < active; ++j) {
        if constexpr (N::kPacks) {
          scratch.rows[j] = scratch.state + j * S;
          scratch.targets[j] = shape.proj_size ? scratch.wide + j * H : scratch.state + j * S;
        } else {
          scratch.rows[j] = previous_h(sequences, shape, dir.reverse, time_of(step), b_begin + j);
          if (regularisers.recurrent_mask) mask_state(j, scratch.rows[j]);
          scratch.targets[j] =
              shape.proj_size ? scratch.wide + j * H : output + (first_row + j) * dir.output_stride;
        }
      }
      const float* x_scales = nullptr;
      const float* h_scales = nullptr;
      if constexpr (N::kPacks) {
        x_scales = scratch.packed_x.scales + (fused ? 0 : projected_before);
        h_scales = scratch.packed.scales;
      }

      // One vector of units of one sequence, in two halves with all sequences between them: one
      // after the other they are a chain of operations too long to overlap with the next vector's.
      // What the second half needs is left in the sums. `full` says at compile time that all lanes
      // are units.
      const auto first_half = [&](int64_t j, int64_t u, const Sum* x_sum, Sum* sums, auto full) {
        const int n = full ? kLanes : int(H - u);
        Real* saved = reserve ? reserve + (first_row + j) * dir.gates_stride + u : nullptr;
        const auto of_gate = [&](const Real* values) {
          return [=](int gate) { return M::load(values + gate * H + u, n); };
        };
        const auto bias = [&](int of) {
          return bias_ih ? bias_of_sum<kCell>(of, of_gate(bias_ih), of_gate(bias_hh)) : V{};
        };
        const auto h_product = [&](int gate) {
          return product_of<N>(sums + gate * kLanes, h_scales ? h_scales[j] : 0.0f, task.scales.hh,
                               gate * H + u, n);
        };
        const auto x_product = [&](int gate) {
          return product_of<N>(x_sum + gate * kLanes, x_scales ? x_scales[j] : 0.0f, task.scales.ih,
                               gate * H + u, n);
        };
        const auto preactivation = [&](int gate) {
          const V a = h_product(gate) + bias(gate);
          return kOneSum ? a : a + x_product(gate);
        };
        Real* kept = reinterpret_cast<Real*>(sums);  // for the second half
        [[maybe_unused]] const int64_t row = first_row + j;
        if constexpr (kGates == 1) {
          const V a = preactivation(0);
          V h = kCell == Cell::kTanh ? TanhCell<M>::forward(a) : ReluCell<M>::forward(a);
          if (regularisers.zoneout_h) {
            if (saved) M::store(saved, h, n);
            h = Zoneout<M>::mix(h, M::load(scratch.rows[j] + u, n),
                                M::load(regularisers.share_h(row) + u, n));
          }
          M::store(scratch.targets[j] + u, h, n);
        } else if constexpr (kCell == Cell::kGru) {
          typename GruCell<M>::Activations act;
          const V q = h_product(2) + bias(3);
          const V new_gate =
              GruCell<M>::gates(preactivation(0), preactivation(1), x_product(2) + bias(2), q, act);
          M::store(kept, new_gate);
          M::store(kept + kLanes, act.z);
          if (saved) {
            M::store(saved, act.r, n);
            M::store(saved + H, act.z, n);
            M::store(saved + 3 * H, q, n);
          }
        } else {
          typename LstmCell<M>::Activations act;
          Real* state = cy + (b_begin + j) * H + u;
          const V c_before = M::load(state, n);
          V c;
          if constexpr (kCell == Cell::kLstmPeepholes)
            c = PeepholeLstmCell<M>::update(preactivation(0), preactivation(1), preactivation(2),
                                            preactivation(3), c_before,
                                            peepholes_of<N>(dir.weight_ch, H, u, n), act);
          else
            c = LstmCell<M>::update(preactivation(0), preactivation(1), preactivation(2),
                                    preactivation(3), c_before, act);
          V c_left = c;
          if (regularisers.zoneout_c)
            c_left = Zoneout<M>::mix(c, c_before, M::load(regularisers.share_c(row) + u, n));
          M::store(state, c_left, n);
          M::store(kept, act.o);
          M::store(kept + kLanes, c);
          if (saved) {
            M::store(saved, act.i, n);
            M::store(saved + H, act.f, n);
            M::store(saved + 2 * H, act.g, n);
            M::store(saved + 3 * H, act.o, n);
            M::store(saved + 4 * H, c_left, n);
            if (shape.zoneout) M::store(saved + 5 * H, c, n);
          }
        }
      };
      const auto second_half = [&](int64_t j, int64_t u, const Sum* sums, auto full) {
        const int n = full ? kLanes : int(H - u);
        const Real* kept = reinterpret_cast<const Real*>(sums);
        const auto leave = [&](V h) {
          if (regularisers.zoneout_h && !shape.proj_size)
            h = Zoneout<M>::mix(h, M::load(scratch.rows[j] + u, n),
                                M::load(regularisers.share_h(first_row + j) + u, n));
          M::store(scratch.targets[j] + u, h, n);
        };
        if constexpr (kCell == Cell::kGru) {
          typename GruCell<M>::Activations act;
          act.z = M::load(kept + kLanes);
          const V h = GruCell<M>::output(M::load(kept), M::load(scratch.rows[j] + u, n), act);
          if (reserve) M::store(reserve + (first_row + j) * dir.gates_stride + 2 * H + u, act.n, n);
          leave(h);
        } else if constexpr (kIsLstm<kCell>) {
          leave(LstmCell<M>::output(M::load(kept), M::load(kept + kLanes)));
        }
      };
      const auto apply_cell = [&](int64_t panel, const Sum* x_sums, Sum* sums) {
        const int64_t panel_unit = panel * kVectors * kLanes;
        const auto all_rows = [&](auto full) {
          for (int64_t j = 0; j < active; ++j)
            for (int v = 0; v < kVectors; ++v)
              if (full || panel_unit + v * kLanes < H)
                first_half(j, panel_unit + v * kLanes, x_sums + j * kWidth + v * kLanes,
                           sums + j * kWidth + v * kLanes, full);
          if constexpr (kGates > 1)
            for (int64_t j = 0; j < active; ++j)
              second_half(j, panel_unit, sums + j * kWidth, full);
        };
        if (panel_unit + kVectors * kLanes <= H)
          all_rows(std::true_type{});
        else
          all_rows(std::false_type{});
      };

      const bool backwards = step & 1;
      if (fused) {
        add_x_rows(step, 0);
        Sum* sums = kOneSum ? scratch.projection : scratch.sums;
        for (int64_t done = range.begin; done < range.end; ++done) {
          const int64_t p = backwards ? range.begin + range.end - 1 - done : done;
          multiply<N, kColumns>(rows_of_x, active, panels_ih, p, scratch.projection, false);
          multiply<N, kColumns>(rows_of_h, active, panels, p, sums, kOneSum);
          apply_cell(p, scratch.projection, sums);
        }
      } else {
        Sum* x_sums = scratch.projection + projected_before * kWidth;
        const int64_t x_stride = projected * kWidth;
        const Sums<N> sums =
            kOneSum ? Sums<N>{x_sums, x_stride, true} : Sums<N>{scratch.sums, 0, false};
        for_each_panel<N, kColumns>(
            rows_of_h, active, panels, range, backwards, sums, [&](int64_t panel, Sum* panel_sums) {
              apply_cell(panel, x_sums + (panel - range.begin) * x_stride, panel_sums);
            });
        projected_before += active;
      }

      if (shape.proj_size) {
        const float* wide_scales = nullptr;
        for (int64_t j = 0; j < active; ++j) {
          if constexpr (N::kPacks) {
            scratch.packed_wide.put(j, scratch.wide + j * H, H);
            wide_scales = scratch.packed_wide.scales;
          } else {
            scratch.rows[j] = scratch.wide + j * H;
          }
        }
        const auto state_before = [&](int64_t j) -> const Real* {
          if constexpr (N::kPacks)
            return scratch.state + j * S;
          else
            return previous_h(sequences, shape, dir.reverse, time_of(step), b_begin + j);
        };
        const auto store_state = [&](int64_t panel, const Sum* sums) {
          for (int64_t j = 0; j < active; ++j)
            for (int v = 0; v < kPlain; ++v) {
              const int64_t u = (panel * kPlain + v) * kLanes;
              if (u >= S) break;
              const int n = S - u < kLanes ? int(S - u) : kLanes;
              V h = product_of<N>(sums + (j * kPlain + v) * kLanes,
                                  wide_scales ? wide_scales[j] : 0.0f, task.scales.hr, u, n);
              if (regularisers.zoneout_h)
                h = Zoneout<M>::mix(h, M::load(state_before(j) + u, n),
                                    M::load(regularisers.share_h(first_row + j) + u, n));
              if constexpr (N::kPacks)
                M::store(scratch.state + j * S + u, h, n);
              else
                M::store(output + (first_row + j) * dir.output_stride + u, h, n);
            }
        };
        for_each_panel<N, kPlain>(rows_of_wide, active, panels_hr, {0, num_panels<N>(S, 1)},
                                  backwards, {scratch.sums, 0, false}, store_state);
      }
      if constexpr (N::kPacks) {
        for (int64_t j = 0; j < active; ++j) {
          const Real* state = scratch.state + j * S;
          Row* to = output + (first_row + j) * dir.output_stride;
          for (int64_t u = 0; u < S; u += kLanes) {
            const int n = int(std::min<int64_t>(kLanes, S - u));
            M::store(to + u, M::load(state + u, n), n);
          }
          if constexpr (std::is_same_v<typename N::Operand, Row>)
            pack_state(j, to);  // rounded already
          else
            pack_state(j, state);
        }
      }
      // The next step reads all units. After the last, nobody reads those of others.
      if (task.barrier && step + 1 < T)
        task.barrier->arrive_and_wait(task.units.end - task.units.begin);
    }
  }
}
