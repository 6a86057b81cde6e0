// The recurrence on CPU cores, for one instruction set. Included inside that set's namespace, after
// vector.h.
//
// One step of a direction is h W_hh^T for all active sequences, then the cell. W_hh is packed once a
// call into panels of kColumns vectors, [panel][k][column][lane], so that the product streams it
// without strides; a panel holds all gates of the same units, and its sums stay in the first-level
// cache between product and cell. Panels are the outer loop: a panel is read once for the whole
// batch. Every other step walks the panels backwards, so that the part of W_hh that the cache still
// holds is used first.
//
// Sequences lie in rows sorted by length, longest first, so the active ones are a prefix. A row's
// sums are added in the same order whatever rows are computed beside it: results do not depend on
// how a batch is split over threads. h is read from the output itself; nothing is allocated here.

template <class Real>
using Math = VectorMath<Real>;

// Vectors of columns in a panel: one for each gate of the same units, or two of plain columns.
constexpr int panel_columns(int gates) { return gates == 1 ? 2 : gates; }
constexpr int unit_vectors(int gates) { return gates == 1 ? 2 : 1; }
constexpr int kMaxColumns = 4;
constexpr int kMaxPanelGroup = 4;  // panels that a single row takes at a time

template <class Real>
inline int64_t num_panels(int64_t units, int gates) {
  const int64_t units_per_panel = unit_vectors(gates) * Math<Real>::kLanes;
  return (units + units_per_panel - 1) / units_per_panel;
}

// ---- packing -------------------------------------------------------------------------------

// Panels of W^T for W [gates*units, depth]: column (gate, unit) of the product is row gate*units +
// unit of W. Columns past the last unit are zero.
template <class Real>
void pack_rows(const Real* w, int gates, int64_t units, int64_t depth, Real* panels) {
  constexpr int kLanes = Math<Real>::kLanes;
  const int columns = panel_columns(gates);
  for (int64_t p = 0; p < num_panels<Real>(units, gates); ++p) {
    for (int c = 0; c < columns; ++c) {
      Real* out = panels + p * depth * columns * kLanes + c * kLanes;
      const int64_t unit = gates == 1 ? (p * columns + c) * kLanes : p * kLanes;
      const Real* rows = w + ((gates == 1 ? 0 : c * units) + unit) * depth;
      const int64_t valid = units - unit < kLanes ? (units > unit ? units - unit : 0) : kLanes;
      constexpr int64_t kBlock = 16;  // a cache line of each row at a time
      for (int64_t k0 = 0; k0 < depth; k0 += kBlock) {
        const int64_t k1 = k0 + kBlock < depth ? k0 + kBlock : depth;
        for (int64_t k = k0; k < k1; ++k) {
          Real* to = out + k * columns * kLanes;
          for (int64_t lane = 0; lane < valid; ++lane) to[lane] = rows[lane * depth + k];
          for (int64_t lane = valid; lane < kLanes; ++lane) to[lane] = Real(0);
        }
      }
    }
  }
}

// Panels of W for W [depth, units]: the product with W itself instead of its transpose.
template <class Real>
void pack_columns(const Real* w, int64_t units, int64_t depth, Real* panels) {
  constexpr int kWidth = panel_columns(1) * Math<Real>::kLanes;
  for (int64_t p = 0; p < num_panels<Real>(units, 1); ++p) {
    const int64_t first = p * kWidth;
    const int64_t valid = units - first < kWidth ? units - first : kWidth;
    Real* to = panels + p * depth * kWidth;
    for (int64_t k = 0; k < depth; ++k, to += kWidth) {
      std::memcpy(to, w + k * units + first, valid * sizeof(Real));
      for (int64_t lane = valid; lane < kWidth; ++lane) to[lane] = Real(0);
    }
  }
}

// ---- product -------------------------------------------------------------------------------

// sums[row][column] (+)= rows[row][k] * panel[k][column] for kRows rows and kPanels panels whose
// distance is panel_stride; sums of one panel follow those of the one before.
template <class Real, int kColumns, int kRows, int kPanels>
inline void multiply_tile(const Real* const* rows, const Real* panel, int64_t panel_stride,
                          int64_t k_begin, int64_t k_end, Real* sums, int64_t sums_panel_stride,
                          bool accumulate) {
  using M = Math<Real>;
  typename M::Value acc[kRows][kPanels][kColumns];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int q = 0; q < kPanels; ++q)
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c)
        acc[r][q][c] =
            accumulate
                ? M::load(sums + q * sums_panel_stride + (r * kColumns + c) * M::kLanes)
                : typename M::Value{};
  const Real* a[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) a[r] = rows[r];
  for (int64_t k = k_begin; k < k_end; ++k) {
    const Real* w = panel + k * kColumns * M::kLanes;
    // The fewer operands stay in registers, the others pass through one: with all of them the sums
    // would spill.
    if constexpr (kRows > kPanels * kColumns) {
      typename M::Value wv[kPanels][kColumns];
#pragma GCC unroll 8
      for (int q = 0; q < kPanels; ++q)
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) {
          wv[q][c] = M::load(w + q * panel_stride + c * M::kLanes);
          M::keep_in_register(wv[q][c]);
        }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename M::Value av = M::broadcast(a[r][k]);
#pragma GCC unroll 8
        for (int q = 0; q < kPanels; ++q)
#pragma GCC unroll 8
          for (int c = 0; c < kColumns; ++c) acc[r][q][c] += wv[q][c] * av;
      }
    } else {
      typename M::Value av[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) av[r] = M::broadcast(a[r][k]);
#pragma GCC unroll 8
      for (int q = 0; q < kPanels; ++q)
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) {
          typename M::Value wv = M::load(w + q * panel_stride + c * M::kLanes);
          if (kRows > 1) M::keep_in_register(wv);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) acc[r][q][c] += wv * av[r];
        }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int q = 0; q < kPanels; ++q)
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c)
        M::store(sums + q * sums_panel_stride + (r * kColumns + c) * M::kLanes, acc[r][q][c]);
}

template <class Real, int kColumns, int kRows>
inline void multiply_rest(int64_t rest, const Real* const* rows, const Real* panel, int64_t k_begin,
                          int64_t k_end, Real* sums, bool accumulate) {
  if constexpr (kRows > 0) {
    if (rest == kRows)
      multiply_tile<Real, kColumns, kRows, 1>(rows, panel, 0, k_begin, k_end, sums, 0, accumulate);
    else
      multiply_rest<Real, kColumns, kRows - 1>(rest, rows, panel, k_begin, k_end, sums,
                                               accumulate);
  }
}

// sums [num_rows][kColumns][lane] = rows times one panel.
template <class Real, int kColumns>
void multiply_panel(const Real* const* rows, int64_t num_rows, const Real* panel, int64_t depth,
                    Real* sums) {
  constexpr int kTile = kNumAccumulators / kColumns;
  constexpr int kWidth = kColumns * Math<Real>::kLanes;
  // With several row tiles, the part of a panel in use stays in the first-level cache.
  const int64_t block =
      num_rows <= kTile ? depth : (int64_t)(16384 / (kWidth * sizeof(Real)));
  for (int64_t k0 = 0; k0 < depth; k0 += block) {
    const int64_t k1 = k0 + block < depth ? k0 + block : depth;
    int64_t r = 0;
    for (; r + kTile <= num_rows; r += kTile)
      multiply_tile<Real, kColumns, kTile, 1>(rows + r, panel, 0, k0, k1, sums + r * kWidth, 0,
                                              k0 > 0);
    multiply_rest<Real, kColumns, kTile - 1>(num_rows - r, rows + r, panel, k0, k1,
                                             sums + r * kWidth, k0 > 0);
  }
}

// Calls consume(panel, sums) for every panel, from the last to the first if backwards. A single row
// takes several panels at a time: its sums are otherwise too few to hide the latency of an FMA.
template <class Real, int kColumns, class Consume>
inline void for_each_panel(const Real* const* rows, int64_t num_rows, const Real* panels,
                           int64_t count, int64_t depth, bool backwards, Real* sums,
                           const Consume& consume) {
  constexpr int kWidth = kColumns * Math<Real>::kLanes;
  constexpr int kFit = kNumAccumulators / kColumns;
  constexpr int kGroup = kFit < kMaxPanelGroup ? kFit : kMaxPanelGroup;
  const int64_t stride = depth * kWidth;
  int64_t done = 0;
  if (num_rows == 1) {
    for (; done + kGroup <= count; done += kGroup) {
      const int64_t p = backwards ? count - done - kGroup : done;
      multiply_tile<Real, kColumns, 1, kGroup>(rows, panels + p * stride, stride, 0, depth, sums,
                                               kWidth, false);
      for (int q = 0; q < kGroup; ++q) consume(p + q, sums + q * kWidth);
    }
  }
  for (; done < count; ++done) {
    const int64_t p = backwards ? count - 1 - done : done;
    multiply_panel<Real, kColumns>(rows, num_rows, panels + p * stride, depth, sums);
    consume(p, sums);
  }
}

// ---- rows of a step ------------------------------------------------------------------------

inline int64_t row_offset(const SequenceRows& rows, int64_t batch_size, int64_t t) {
  return rows.row_offsets ? rows.row_offsets[t] : t * batch_size;
}

inline int64_t length_of(const SequenceRows& rows, int64_t seq_len, int64_t b) {
  return rows.lengths ? rows.lengths[b] : seq_len;
}

// How many of the sequences [begin, end), longest first, reach step t.
inline int64_t count_active(const SequenceRows& rows, int64_t seq_len, int64_t t, int64_t begin,
                            int64_t end) {
  if (!rows.lengths) return t < seq_len ? end - begin : 0;
  int64_t n = end - begin;
  while (n > 0 && rows.lengths[begin + n - 1] <= t) --n;
  return n;
}

// The state before the first step of its direction, or the output row that a step continues.
template <class Real>
struct PreviousState {
  const Real* initial;     // [B, S]
  int64_t initial_stride;  // 0 where one row of zeros stands for all
  const Real* output;      // [N, S]
  int64_t output_stride;

  const Real* operator()(const SequenceRows& rows, const RecurrenceShape& shape, bool reverse,
                         int64_t t, int64_t b) const {
    const int64_t from = reverse ? t + 1 : t - 1;
    const bool first = reverse ? from >= length_of(rows, shape.seq_len, b) : from < 0;
    if (first) return initial + b * initial_stride;
    return output + (row_offset(rows, shape.batch_size, from) + b) * output_stride;
  }
};

// The memory of one task, carved from its scratch for the rows it owns.
template <class Real>
struct Scratch {
  const Real** rows;  // [B] rows that a step multiplies
  Real** targets;     // [B] rows that it writes
  Real* sums;         // [max(B, kMaxPanelGroup)][kMaxColumns][lane]
  Real* wide;         // [B, H]: unprojected h, or its gradient (projection only)

  static constexpr int64_t align(int64_t bytes) { return (bytes + 63) & ~int64_t(63); }
  static int64_t sums_bytes(int64_t rows) {
    return (rows < kMaxPanelGroup ? kMaxPanelGroup : rows) * kMaxColumns * kVectorBytes;
  }
  static int64_t bytes(const RecurrenceShape& shape, int64_t rows) {
    return 2 * align(rows * sizeof(void*)) + sums_bytes(rows) +
           (shape.proj_size ? align(rows * shape.hidden_size * sizeof(Real)) : 0);
  }
  Scratch(void* memory, int64_t num_rows) {
    char* p = static_cast<char*>(memory);
    rows = reinterpret_cast<const Real**>(p);
    p += align(num_rows * sizeof(void*));
    targets = reinterpret_cast<Real**>(p);
    p += align(num_rows * sizeof(void*));
    sums = reinterpret_cast<Real*>(p);
    wide = reinterpret_cast<Real*>(p + sums_bytes(num_rows));
  }
};

// ---- forward -------------------------------------------------------------------------------

template <class Real, Cell kCell>
void run_forward(const ForwardTask& task) {
  using M = Math<Real>;
  using V = typename M::Value;
  constexpr int kLanes = M::kLanes;
  constexpr int kGates = num_gates(kCell);
  constexpr int kColumns = panel_columns(kGates);
  const RecurrenceShape& shape = *task.shape;
  const SequenceRows& sequences = *task.sequences;
  const ForwardDirection& dir = *task.direction;
  const Real* panels = static_cast<const Real*>(task.panels);
  const Real* panels_hr = static_cast<const Real*>(task.panels_hr);
  const Real* zeros = static_cast<const Real*>(task.zeros);
  const int64_t b_begin = task.b_begin, b_end = task.b_end;
  const Scratch<Real> scratch(task.scratch, b_end - b_begin);
  const int64_t H = shape.hidden_size, T = shape.seq_len, S = shape.state_size();
  const int64_t count = num_panels<Real>(H, kGates);
  const Real* bias = static_cast<const Real*>(dir.bias);
  Real* gates = static_cast<Real*>(dir.gates);
  Real* output = static_cast<Real*>(dir.output);
  Real* cy = static_cast<Real*>(dir.cy);
  const PreviousState<Real> previous_h{dir.hx ? static_cast<const Real*>(dir.hx) : zeros,
                                       dir.hx ? S : 0, output, dir.output_stride};

  for (int64_t step = task.step_begin; step < task.step_end; ++step) {
    const int64_t t = dir.reverse ? T - 1 - step : step;
    const int64_t active = count_active(sequences, T, t, b_begin, b_end);
    if (active == 0) continue;
    const int64_t first_row = row_offset(sequences, shape.batch_size, t) + b_begin;
    for (int64_t j = 0; j < active; ++j) {
      scratch.rows[j] = previous_h(sequences, shape, dir.reverse, t, b_begin + j);
      scratch.targets[j] = shape.proj_size ? scratch.wide + j * H
                                           : output + (first_row + j) * dir.output_stride;
    }

    // One vector of units of one sequence, in two halves with all sequences between them: one
    // after the other they are a chain of operations too long to overlap with the next vector's.
    // What the second half needs is left in the sums. `full` says at compile time that all lanes
    // are units.
    const auto row_of = [&](int64_t j) {
      return gates + (first_row + j - dir.gates_first_row) * dir.gates_stride;
    };
    const auto first_half = [&](int64_t j, int64_t u, Real* sum, auto full) {
      const int n = full ? kLanes : int(H - u);
      Real* row = row_of(j) + u;
      const auto biased = [&](int64_t block) {
        return bias ? M::load(bias + block * H + u, n) : V{};
      };
      const auto preactivation = [&](int gate) {
        return M::load(row + gate * H, n) + M::load(sum + gate * kLanes) + biased(gate);
      };
      if constexpr (kGates == 1) {
        const V a = preactivation(0);
        M::store(scratch.targets[j] + u,
                 kCell == Cell::kTanh ? TanhCell<M>::forward(a) : ReluCell<M>::forward(a), n);
      } else if constexpr (kCell == Cell::kGru) {
        typename GruCell<M>::Activations act;
        const V q = M::load(sum + 2 * kLanes) + biased(3);
        const V new_gate = GruCell<M>::gates(preactivation(0), preactivation(1),
                                             M::load(row + 2 * H, n) + biased(2), q, act);
        M::store(sum, new_gate);
        M::store(sum + kLanes, act.z);
        if (task.save_reserve) {
          M::store(row, act.r, n);
          M::store(row + H, act.z, n);
          M::store(row + 3 * H, q, n);
        }
      } else {
        typename LstmCell<M>::Activations act;
        Real* state = cy + (b_begin + j) * H + u;
        const V c = LstmCell<M>::update(preactivation(0), preactivation(1), preactivation(2),
                                        preactivation(3), M::load(state, n), act);
        M::store(state, c, n);
        M::store(sum, act.o);
        M::store(sum + kLanes, c);
        if (task.save_reserve) {
          M::store(row, act.i, n);
          M::store(row + H, act.f, n);
          M::store(row + 2 * H, act.g, n);
          M::store(row + 3 * H, act.o, n);
          M::store(row + 4 * H, c, n);
        }
      }
    };
    const auto second_half = [&](int64_t j, int64_t u, const Real* sum, auto full) {
      const int n = full ? kLanes : int(H - u);
      if constexpr (kCell == Cell::kGru) {
        typename GruCell<M>::Activations act;
        act.z = M::load(sum + kLanes);
        const V h = GruCell<M>::output(M::load(sum), M::load(scratch.rows[j] + u, n), act);
        if (task.save_reserve) M::store(row_of(j) + 2 * H + u, act.n, n);
        M::store(scratch.targets[j] + u, h, n);
      } else if constexpr (kCell == Cell::kLstm) {
        M::store(scratch.targets[j] + u,
                 LstmCell<M>::output(M::load(sum), M::load(sum + kLanes)), n);
      }
    };
    // A panel touches a line or two of each row, and rows are pages apart: no hardware prefetcher
    // follows that, so the lines are asked for a few rows ahead.
    const auto prefetch_row = [&](int64_t j, int64_t u) {
      const Real* row = row_of(j) + u;
      const int blocks = task.save_reserve ? std::max(kGates, reserve_blocks(kCell)) : kGates;
      for (int block = 0; block < blocks; ++block) __builtin_prefetch(row + block * H, 1);
      __builtin_prefetch(scratch.targets[j] + u, 1);
      if (kCell == Cell::kLstm) __builtin_prefetch(cy + (b_begin + j) * H + u, 1);
    };
    const auto apply_cell = [&](int64_t panel, Real* sums) {
      constexpr int kPrefetchRows = 4;
      constexpr int kVectors = unit_vectors(kGates);
      const int64_t panel_unit = panel * kVectors * kLanes;
      const auto all_rows = [&](auto full) {
        for (int64_t j = 0; j < std::min<int64_t>(kPrefetchRows, active); ++j)
          prefetch_row(j, panel_unit);
        for (int64_t j = 0; j < active; ++j) {
          if (j + kPrefetchRows < active) prefetch_row(j + kPrefetchRows, panel_unit);
          for (int v = 0; v < kVectors; ++v)
            if (full || panel_unit + v * kLanes < H)
              first_half(j, panel_unit + v * kLanes, sums + (j * kColumns + v) * kLanes, full);
        }
        if constexpr (kGates > 1)
          for (int64_t j = 0; j < active; ++j)
            second_half(j, panel_unit, sums + j * kColumns * kLanes, full);
      };
      if (panel_unit + kVectors * kLanes <= H)
        all_rows(std::true_type{});
      else
        all_rows(std::false_type{});
    };
    for_each_panel<Real, kColumns>(scratch.rows, active, panels, count, S, step & 1, scratch.sums,
                                   apply_cell);

    if (shape.proj_size) {
      for (int64_t j = 0; j < active; ++j) scratch.rows[j] = scratch.wide + j * H;
      const auto store_state = [&](int64_t panel, Real* sums) {
        for (int64_t j = 0; j < active; ++j)
          for (int v = 0; v < panel_columns(1); ++v) {
            const int64_t u = (panel * panel_columns(1) + v) * kLanes;
            if (u >= S) break;
            M::store(output + (first_row + j) * dir.output_stride + u,
                     M::load(sums + (j * panel_columns(1) + v) * kLanes),
                     S - u < kLanes ? int(S - u) : kLanes);
          }
      };
      for_each_panel<Real, panel_columns(1)>(scratch.rows, active, panels_hr,
                                             num_panels<Real>(S, 1), H, step & 1, scratch.sums,
                                             store_state);
    }
  }
}

// ---- backward ------------------------------------------------------------------------------

template <class Real, Cell kCell>
void run_backward(const BackwardTask& task) {
  using M = Math<Real>;
  using V = typename M::Value;
  constexpr int kLanes = M::kLanes;
  constexpr int kGates = num_gates(kCell);
  constexpr int kPlain = panel_columns(1);
  const RecurrenceShape& shape = *task.shape;
  const SequenceRows& sequences = *task.sequences;
  const BackwardDirection& dir = *task.direction;
  const Real* panels = static_cast<const Real*>(task.panels);
  const Real* panels_hr = static_cast<const Real*>(task.panels_hr);
  const Real* zeros = static_cast<const Real*>(task.zeros);
  const int64_t b_begin = task.b_begin, b_end = task.b_end;
  const Scratch<Real> scratch(task.scratch, b_end - b_begin);
  const int64_t H = shape.hidden_size, T = shape.seq_len, S = shape.state_size();
  const Real* output = static_cast<const Real*>(dir.output);
  const Real* reserve = static_cast<const Real*>(dir.reserve);
  const Real* dy = static_cast<const Real*>(dir.dy);
  Real* dgates = static_cast<Real*>(dir.dgates);
  Real* carry = static_cast<Real*>(dir.dhx);
  Real* carry_c = static_cast<Real*>(dir.dcx);
  const PreviousState<Real> previous_h{dir.hx ? static_cast<const Real*>(dir.hx) : zeros,
                                       dir.hx ? S : 0, output, dir.output_stride};
  const PreviousState<Real> previous_c{dir.cx ? static_cast<const Real*>(dir.cx) : zeros,
                                       dir.cx ? H : 0, reserve + 4 * H, dir.reserve_stride};

  for (int64_t step = T - 1; step >= 0; --step) {
    const int64_t t = dir.reverse ? T - 1 - step : step;
    const int64_t active = count_active(sequences, T, t, b_begin, b_end);
    if (active == 0) continue;
    const int64_t first_row = row_offset(sequences, shape.batch_size, t) + b_begin;

    if (shape.proj_size) {
      // dproj = dy + carry; the gradient of the unprojected h is dproj W_hr.
      for (int64_t j = 0; j < active; ++j) {
        const Real* dh = carry + (b_begin + j) * S;
        Real* to = static_cast<Real*>(dir.dproj) + (first_row + j) * S;
        for (int64_t u = 0; u < S; ++u)
          to[u] = dh[u] + (dy ? dy[(first_row + j) * dir.dy_stride + u] : Real(0));
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
      for_each_panel<Real, kPlain>(scratch.rows, active, panels_hr, num_panels<Real>(H, 1), S,
                                   step & 1, scratch.sums, store_wide);
    }

    // The cell: gradients of the pre-activations.
    for (int64_t j = 0; j < active; ++j) {
      const int64_t b = b_begin + j, row = first_row + j;
      const Real* saved = reserve + row * dir.reserve_stride;
      Real* d = dgates + row * dir.dgates_stride;
      const Real* h_old =
          kCell == Cell::kGru ? previous_h(sequences, shape, dir.reverse, t, b) : nullptr;
      const Real* c_old =
          kCell == Cell::kLstm ? previous_c(sequences, shape, dir.reverse, t, b) : nullptr;
      for (int64_t u = 0; u < H; u += kLanes) {
        const int n = H - u < kLanes ? int(H - u) : kLanes;
        V dh;
        if (shape.proj_size) {
          dh = M::load(scratch.wide + j * H + u, n);
        } else {
          dh = M::load(carry + b * S + u, n);
          if (dy) dh += M::load(dy + row * dir.dy_stride + u, n);
        }
        if constexpr (kGates == 1) {
          const V y = M::load(output + row * dir.output_stride + u, n);
          M::store(d + u,
                   kCell == Cell::kTanh ? TanhCell<M>::backward(dh, y)
                                        : ReluCell<M>::backward(dh, y),
                   n);
        } else if constexpr (kCell == Cell::kGru) {
          const typename GruCell<M>::Activations act{
              M::load(saved + u, n), M::load(saved + H + u, n), M::load(saved + 2 * H + u, n)};
          const auto grad = GruCell<M>::backward(dh, act, M::load(saved + 3 * H + u, n),
                                                 M::load(h_old + u, n));
          M::store(d + u, grad.n, n);
          M::store(d + H + u, grad.r, n);
          M::store(d + 2 * H + u, grad.z, n);
          M::store(d + 3 * H + u, grad.n_recurrent, n);
          M::store(carry + b * S + u, grad.h_direct, n);
        } else {
          const typename LstmCell<M>::Activations act{
              M::load(saved + u, n), M::load(saved + H + u, n), M::load(saved + 2 * H + u, n),
              M::load(saved + 3 * H + u, n)};
          const auto grad =
              LstmCell<M>::backward(dh, M::load(carry_c + b * H + u, n), act,
                                    M::load(saved + 4 * H + u, n), M::load(c_old + u, n));
          M::store(d + u, grad.i, n);
          M::store(d + H + u, grad.f, n);
          M::store(d + 2 * H + u, grad.g, n);
          M::store(d + 3 * H + u, grad.o, n);
          M::store(carry_c + b * H + u, grad.c, n);
        }
      }
      scratch.rows[j] = d + (kCell == Cell::kGru ? H : 0);
    }

    // The carried gradient: dgates W_hh, beside GRU's direct path.
    const auto store_carry = [&](int64_t panel, Real* sums) {
      for (int64_t j = 0; j < active; ++j)
        for (int v = 0; v < kPlain; ++v) {
          const int64_t u = (panel * kPlain + v) * kLanes;
          if (u >= S) break;
          const int n = S - u < kLanes ? int(S - u) : kLanes;
          Real* to = carry + (b_begin + j) * S + u;
          V dh = M::load(sums + (j * kPlain + v) * kLanes);
          if (kCell == Cell::kGru) dh += M::load(to, n);
          M::store(to, dh, n);
        }
    };
    for_each_panel<Real, kPlain>(scratch.rows, active, panels, num_panels<Real>(S, 1), kGates * H,
                                 step & 1, scratch.sums, store_carry);
  }
}

// ---- the table -----------------------------------------------------------------------------

template <class Real>
void run_forward_cell(const ForwardTask& task) {
  switch (task.shape->cell) {
    case Cell::kTanh: return run_forward<Real, Cell::kTanh>(task);
    case Cell::kRelu: return run_forward<Real, Cell::kRelu>(task);
    case Cell::kGru: return run_forward<Real, Cell::kGru>(task);
    case Cell::kLstm: return run_forward<Real, Cell::kLstm>(task);
  }
}

template <class Real>
void run_backward_cell(const BackwardTask& task) {
  switch (task.shape->cell) {
    case Cell::kTanh: return run_backward<Real, Cell::kTanh>(task);
    case Cell::kRelu: return run_backward<Real, Cell::kRelu>(task);
    case Cell::kGru: return run_backward<Real, Cell::kGru>(task);
    case Cell::kLstm: return run_backward<Real, Cell::kLstm>(task);
  }
}

template <class Real>
int64_t packed_elements(int64_t units, int gates, int64_t depth) {
  return num_panels<Real>(units, gates) * panel_columns(gates) * Math<Real>::kLanes * depth;
}

template <class Real>
KernelTable make_table() {
  return {packed_elements<Real>,
          [](const void* w, int gates, int64_t units, int64_t depth, void* panels) {
            pack_rows(static_cast<const Real*>(w), gates, units, depth,
                      static_cast<Real*>(panels));
          },
          [](const void* w, int64_t units, int64_t depth, void* panels) {
            pack_columns(static_cast<const Real*>(w), units, depth, static_cast<Real*>(panels));
          },
          Scratch<Real>::bytes,
          run_forward_cell<Real>,
          run_backward_cell<Real>};
}
