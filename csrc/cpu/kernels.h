// The recurrence on CPU cores, for one instruction set. Included inside that set's namespace, after
// vector.h.
//
// One step of a direction is x W_ih^T + h W_hh^T for all active sequences, then the cell. The
// weights are packed once a call into panels of kColumns vectors, [panel][k][column][lane], so that
// the product streams them without strides; a panel holds all gates of the same units. Panels are
// the outer loop: a panel is read once for the whole batch. Every other step walks the panels
// backwards, so that the part of W_hh that the cache still holds is used first.
//
// The input projection belongs to the step, although all of it could be one product beforehand: its
// sums are where those of h start, in the first-level cache, and no array of T * B * G*H numbers is
// written, read again and paged in. Against a BLAS product of a few steps at a time this measured
// 1.1 to 1.4 times as fast over all shapes (AVX2, 2 cores). Few sequences project several steps at
// once, so that W_ih is not streamed for every single one.
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
constexpr int kMaxPanelGroup = 4;              // panels that a single row takes at a time
constexpr size_t kLargeWeightBytes = 1 << 20;  // more do not stay in the second-level cache

template <class Real>
inline int64_t num_panels(int64_t units, int gates) {
  const int64_t units_per_panel = unit_vectors(gates) * Math<Real>::kLanes;
  return (units + units_per_panel - 1) / units_per_panel;
}

// ---- packing -------------------------------------------------------------------------------

// Transposes the kLanes x kLanes numbers at `from` (rows `stride` apart) to `to`.
template <class Real>
inline void transpose_block(const Real* from, int64_t stride, Real* to, int64_t to_stride) {
  using M = Math<Real>;
  constexpr int kLanes = M::kLanes;
#if defined(__GNUC__) && !defined(__clang__)
  typename M::Value v[kLanes];
  for (int i = 0; i < kLanes; ++i) v[i] = M::load(from + i * stride);
  // Swaps the off-diagonal quarters of ever larger squares.
#pragma GCC unroll 4
  for (int half = 1; half < kLanes; half *= 2) {
    typename M::Bits low, high;
    for (int lane = 0; lane < kLanes; ++lane) {
      low[lane] = lane & half ? kLanes + lane - half : lane;
      high[lane] = lane & half ? kLanes + lane : lane + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & half) continue;
      const typename M::Value a = v[i], b = v[i + half];
      v[i] = __builtin_shuffle(a, b, low);
      v[i + half] = __builtin_shuffle(a, b, high);
    }
  }
  for (int i = 0; i < kLanes; ++i) M::store(to + i * to_stride, v[i]);
#else
  for (int k = 0; k < kLanes; ++k)
    for (int lane = 0; lane < kLanes; ++lane) to[k * to_stride + lane] = from[lane * stride + k];
#endif
}

// Panels of W^T for W [gates*units, depth]: column (gate, unit) of the product is row gate*units +
// unit of W. Columns past the last unit are zero.
template <class Real>
void pack_rows(const Real* w, int gates, int64_t units, int64_t depth, Real* panels) {
  constexpr int kLanes = Math<Real>::kLanes;
  const int columns = panel_columns(gates);
  const int64_t width = columns * kLanes;
  for (int64_t p = 0; p < num_panels<Real>(units, gates); ++p) {
    for (int c = 0; c < columns; ++c) {
      Real* out = panels + p * depth * width + c * kLanes;
      const int64_t unit = gates == 1 ? (p * columns + c) * kLanes : p * kLanes;
      const Real* rows = w + ((gates == 1 ? 0 : c * units) + unit) * depth;
      const int64_t valid = std::clamp<int64_t>(units - unit, 0, kLanes);
      int64_t k = 0;
      if (valid == kLanes)
        for (; k + kLanes <= depth; k += kLanes)
          transpose_block(rows + k, depth, out + k * width, width);
      for (; k < depth; ++k) {
        for (int64_t lane = 0; lane < valid; ++lane) out[k * width + lane] = rows[lane * depth + k];
        for (int64_t lane = valid; lane < kLanes; ++lane) out[k * width + lane] = Real(0);
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
// distance is panel_stride; sums of one panel follow those of the one before. With kAskAhead as
// much as is read of the panel is asked for from `next` on.
template <class Real, int kColumns, int kRows, int kPanels, bool kAskAhead = false>
inline void multiply_tile(const Real* const* rows, const Real* panel, int64_t panel_stride,
                          int64_t k_begin, int64_t k_end, Real* sums, int64_t sums_panel_stride,
                          bool accumulate, [[maybe_unused]] const Real* next = nullptr) {
  using M = Math<Real>;
  typename M::Value acc[kRows][kPanels][kColumns];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int q = 0; q < kPanels; ++q)
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c)
        acc[r][q][c] = accumulate
                           ? M::load(sums + q * sums_panel_stride + (r * kColumns + c) * M::kLanes)
                           : typename M::Value{};
  const Real* a[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) a[r] = rows[r];
  for (int64_t k = k_begin; k < k_end; ++k) {
    const Real* w = panel + k * kColumns * M::kLanes;
    if constexpr (kAskAhead) {
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c)
        __builtin_prefetch(next + ((k - k_begin) * kColumns + c) * M::kLanes, 0, 2);
    }
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
      multiply_rest<Real, kColumns, kRows - 1>(rest, rows, panel, k_begin, k_end, sums, accumulate);
  }
}

// sums [num_rows][kColumns][lane] (+)= rows times one panel. If next_panel is not null, the last
// full tile of each part of the panel asks for the part that comes after it, so that the first tile
// there does not wait for the third-level cache: 1.05 times as fast where W is larger than the
// second, 0.97 times where it is not. Tiles of nearly equal numbers of rows instead of full ones
// and a rest gained nothing, nor did parts of 24 to 64 KB.
template <class Real, int kColumns>
void multiply_panel(const Real* const* rows, int64_t num_rows, const Real* panel, int64_t depth,
                    Real* sums, bool accumulate, const Real* next_panel = nullptr) {
  constexpr int kTile = kNumAccumulators / kColumns;
  constexpr int kWidth = kColumns * Math<Real>::kLanes;
  // With several row tiles, the part of a panel in use stays in the first-level cache.
  const int64_t block = num_rows <= kTile ? depth : (int64_t)(16384 / (kWidth * sizeof(Real)));
  for (int64_t k0 = 0; k0 < depth; k0 += block) {
    const int64_t k1 = k0 + block < depth ? k0 + block : depth;
    int64_t r = 0;
    for (; r + kTile <= num_rows; r += kTile)
      if (next_panel && r + 2 * kTile > num_rows)
        multiply_tile<Real, kColumns, kTile, 1, true>(
            rows + r, panel, 0, k0, k1, sums + r * kWidth, 0, accumulate || k0 > 0,
            k1 < depth ? panel + k1 * kWidth : next_panel);
      else
        multiply_tile<Real, kColumns, kTile, 1>(rows + r, panel, 0, k0, k1, sums + r * kWidth, 0,
                                                accumulate || k0 > 0);
    multiply_rest<Real, kColumns, kTile - 1>(num_rows - r, rows + r, panel, k0, k1,
                                             sums + r * kWidth, accumulate || k0 > 0);
  }
}

// Where the sums of the panels go: to a place of their own each, or, with panel_stride 0, all to
// the same, which consume must have read before the next.
template <class Real>
struct Sums {
  Real* base;
  int64_t panel_stride;
  bool accumulate;  // add to what is there
};

// Calls consume(panel, sums) for every panel, from the last to the first if backwards. A single row
// takes several panels at a time: its sums are otherwise too few to hide the latency of an FMA.
template <class Real, int kColumns, class Consume>
inline void for_each_panel(const Real* const* rows, int64_t num_rows, const Real* panels,
                           int64_t count, int64_t depth, bool backwards, const Sums<Real>& sums,
                           const Consume& consume) {
  constexpr int kWidth = kColumns * Math<Real>::kLanes;
  const int64_t stride = depth * kWidth;
  int64_t done = 0;
  if (num_rows == 1) {
    const int64_t sums_stride = sums.panel_stride ? sums.panel_stride : kWidth;
    const auto take_groups_of = [&](auto group) {
      constexpr int kGroup = decltype(group)::value;
      if constexpr (kGroup * kColumns <= kNumAccumulators) {
        for (; done + kGroup <= count; done += kGroup) {
          const int64_t p = backwards ? count - done - kGroup : done;
          Real* to = sums.base + p * sums.panel_stride;
          multiply_tile<Real, kColumns, 1, kGroup>(rows, panels + p * stride, stride, 0, depth, to,
                                                   sums_stride, sums.accumulate);
          for (int q = 0; q < kGroup; ++q) consume(p + q, to + q * sums_stride);
        }
      }
    };
    take_groups_of(std::integral_constant<int, kMaxPanelGroup>{});
    take_groups_of(std::integral_constant<int, kMaxPanelGroup / 2>{});
  }
  const bool is_large =
      num_rows > kNumAccumulators / kColumns && count * stride * sizeof(Real) > kLargeWeightBytes;
  for (; done < count; ++done) {
    const int64_t p = backwards ? count - 1 - done : done;
    Real* to = sums.base + p * sums.panel_stride;
    // The last panel is followed by itself: the next step begins there.
    const int64_t following = done + 1 == count ? p : backwards ? p - 1 : p + 1;
    multiply_panel<Real, kColumns>(rows, num_rows, panels + p * stride, depth, to, sums.accumulate,
                                   is_large ? panels + following * stride : nullptr);
    consume(p, to);
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

// The memory of one task, carved from its scratch for the sequences it owns.
template <class Real>
struct Scratch {
  const Real** rows;    // [B] rows of h that a step multiplies
  Real** targets;       // [B] rows that it writes
  const Real** x_rows;  // [rows projected at once]
  Real* sums;           // [max(B, kMaxPanelGroup)][kMaxColumns][lane]
  // Sums of x W_ih^T: of all panels, [panel][row][kColumns][lane], or of one, like `sums`.
  Real* projection;
  Real* wide;  // [B, H]: unprojected h, or its gradient (projection only)

  static constexpr int64_t kCacheBytes = 256 << 10;  // half of a usual second-level cache
  // 0.25 MB is 0.8 times as fast for an LSTM of H = 512; 1 and 4 MB make no difference.
  static constexpr int64_t kProjectionBytes = 2 << 20;

  static int64_t projected_row_bytes(const RecurrenceShape& shape) {
    const int gates = num_gates(shape.cell);
    return num_panels<Real>(shape.hidden_size, gates) * panel_columns(gates) * kVectorBytes;
  }
  // How many steps of `rows` sequences are projected at once. One, in the same breath as the
  // product with h, if W_ih stays in the cache from step to step or the batch is large; else so
  // many that W_ih is streamed for a few hundred rows.
  static int64_t steps_at_once(const RecurrenceShape& shape, int64_t input_size, int64_t rows) {
    const int64_t row_bytes = projected_row_bytes(shape);
    if (rows >= 16 && row_bytes * input_size <= kCacheBytes) return 1;
    return std::clamp<int64_t>(kProjectionBytes / (row_bytes * rows), 1, shape.seq_len);
  }

  static constexpr int64_t align(int64_t bytes) { return (bytes + 63) & ~int64_t(63); }
  static int64_t sums_bytes(int64_t rows) {
    return (rows < kMaxPanelGroup ? kMaxPanelGroup : rows) * kMaxColumns * kVectorBytes;
  }
  static int64_t max_x_rows(const RecurrenceShape& shape, int64_t rows) {
    const int64_t chunk = kProjectionBytes / projected_row_bytes(shape);
    return std::max(rows, std::min(chunk, shape.seq_len * rows));
  }
  // Enough for any part of `rows` sequences.
  static int64_t bytes(const RecurrenceShape& shape, int64_t rows) {
    const int64_t projection =
        std::min(kProjectionBytes, shape.seq_len * rows * projected_row_bytes(shape));
    return 2 * align(rows * sizeof(void*)) + align(max_x_rows(shape, rows) * sizeof(void*)) +
           sums_bytes(rows) + std::max(projection, sums_bytes(rows)) +
           (shape.proj_size ? align(rows * shape.hidden_size * sizeof(Real)) : 0);
  }
  Scratch(void* memory, const RecurrenceShape& shape, int64_t num_rows) {
    char* p = static_cast<char*>(memory);
    const auto take = [&](int64_t bytes) {
      char* taken = p;
      p += align(bytes);
      return taken;
    };
    rows = reinterpret_cast<const Real**>(take(num_rows * sizeof(void*)));
    targets = reinterpret_cast<Real**>(take(num_rows * sizeof(void*)));
    x_rows = reinterpret_cast<const Real**>(take(max_x_rows(shape, num_rows) * sizeof(void*)));
    sums = reinterpret_cast<Real*>(take(sums_bytes(num_rows)));
    wide = reinterpret_cast<Real*>(
        take(shape.proj_size ? num_rows * shape.hidden_size * sizeof(Real) : 0));
    projection = reinterpret_cast<Real*>(p);
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
  constexpr int kWidth = kColumns * kLanes;
  constexpr int kVectors = unit_vectors(kGates);
  // The sums of h continue those of x, but for the GRU: its new gate needs them apart.
  constexpr bool kOneSum = kCell != Cell::kGru;
  const RecurrenceShape& shape = *task.shape;
  const SequenceRows& sequences = *task.sequences;
  const ForwardDirection& dir = *task.direction;
  const Real* panels = static_cast<const Real*>(task.panels);
  const Real* panels_ih = static_cast<const Real*>(task.panels_ih);
  const Real* panels_hr = static_cast<const Real*>(task.panels_hr);
  const Real* zeros = static_cast<const Real*>(task.zeros);
  const int64_t b_begin = task.b_begin, b_end = task.b_end;
  const Scratch<Real> scratch(task.scratch, shape, b_end - b_begin);
  const int64_t H = shape.hidden_size, T = shape.seq_len, S = shape.state_size();
  const int64_t I = task.input->size;
  const int64_t count = num_panels<Real>(H, kGates);
  const Real* x = static_cast<const Real*>(task.input->x);
  const Real* bias_ih = static_cast<const Real*>(dir.bias_ih);
  const Real* bias_hh = static_cast<const Real*>(dir.bias_hh);
  Real* reserve = task.save_reserve ? static_cast<Real*>(dir.gates) : nullptr;
  Real* output = static_cast<Real*>(dir.output);
  Real* cy = static_cast<Real*>(dir.cy);
  const PreviousState<Real> previous_h{dir.hx ? static_cast<const Real*>(dir.hx) : zeros,
                                       dir.hx ? S : 0, output, dir.output_stride};
  const int64_t at_once = Scratch<Real>::steps_at_once(shape, I, b_end - b_begin);
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
    for (int64_t j = 0; j < active; ++j)
      scratch.x_rows[count_before + j] = x + (first_row + j) * task.input->stride;
    return count_before + active;
  };

  for (int64_t chunk = 0; chunk < T; chunk += at_once) {
    const int64_t chunk_end = std::min(chunk + at_once, T);
    int64_t projected = 0, projected_before = 0;  // rows: in the chunk, before the current step
    if (!fused) {
      for (int64_t step = chunk; step < chunk_end; ++step) projected = add_x_rows(step, projected);
      for_each_panel<Real, kColumns>(scratch.x_rows, projected, panels_ih, count, I, false,
                                     {scratch.projection, projected * kWidth, false},
                                     [](int64_t, Real*) {});
    }
    for (int64_t step = chunk; step < chunk_end; ++step) {
      const int64_t active = active_at(step), first_row = first_row_at(step);
      if (active == 0) continue;
      for (int64_t j = 0; j < active; ++j) {
        scratch.rows[j] = previous_h(sequences, shape, dir.reverse, time_of(step), b_begin + j);
        scratch.targets[j] =
            shape.proj_size ? scratch.wide + j * H : output + (first_row + j) * dir.output_stride;
      }

      // One vector of units of one sequence, in two halves with all sequences between them: one
      // after the other they are a chain of operations too long to overlap with the next vector's.
      // What the second half needs is left in the sums. `full` says at compile time that all lanes
      // are units.
      const auto first_half = [&](int64_t j, int64_t u, const Real* x_sum, Real* sum, auto full) {
        const int n = full ? kLanes : int(H - u);
        Real* saved = reserve ? reserve + (first_row + j) * dir.gates_stride + u : nullptr;
        const auto of_gate = [&](const Real* values) {
          return [=](int gate) { return M::load(values + gate * H + u, n); };
        };
        const auto bias = [&](int of) {
          return bias_ih ? bias_of_sum<kCell>(of, of_gate(bias_ih), of_gate(bias_hh)) : V{};
        };
        const auto preactivation = [&](int gate) {
          const V a = M::load(sum + gate * kLanes) + bias(gate);
          return kOneSum ? a : a + M::load(x_sum + gate * kLanes);
        };
        if constexpr (kGates == 1) {
          const V a = preactivation(0);
          M::store(scratch.targets[j] + u,
                   kCell == Cell::kTanh ? TanhCell<M>::forward(a) : ReluCell<M>::forward(a), n);
        } else if constexpr (kCell == Cell::kGru) {
          typename GruCell<M>::Activations act;
          const V q = M::load(sum + 2 * kLanes) + bias(3);
          const V new_gate = GruCell<M>::gates(preactivation(0), preactivation(1),
                                               M::load(x_sum + 2 * kLanes) + bias(2), q, act);
          M::store(sum, new_gate);
          M::store(sum + kLanes, act.z);
          if (saved) {
            M::store(saved, act.r, n);
            M::store(saved + H, act.z, n);
            M::store(saved + 3 * H, q, n);
          }
        } else {
          typename LstmCell<M>::Activations act;
          Real* state = cy + (b_begin + j) * H + u;
          const V c = LstmCell<M>::update(preactivation(0), preactivation(1), preactivation(2),
                                          preactivation(3), M::load(state, n), act);
          M::store(state, c, n);
          M::store(sum, act.o);
          M::store(sum + kLanes, c);
          if (saved) {
            M::store(saved, act.i, n);
            M::store(saved + H, act.f, n);
            M::store(saved + 2 * H, act.g, n);
            M::store(saved + 3 * H, act.o, n);
            M::store(saved + 4 * H, c, n);
          }
        }
      };
      const auto second_half = [&](int64_t j, int64_t u, const Real* sum, auto full) {
        const int n = full ? kLanes : int(H - u);
        if constexpr (kCell == Cell::kGru) {
          typename GruCell<M>::Activations act;
          act.z = M::load(sum + kLanes);
          const V h = GruCell<M>::output(M::load(sum), M::load(scratch.rows[j] + u, n), act);
          if (reserve) M::store(reserve + (first_row + j) * dir.gates_stride + 2 * H + u, act.n, n);
          M::store(scratch.targets[j] + u, h, n);
        } else if constexpr (kCell == Cell::kLstm) {
          M::store(scratch.targets[j] + u, LstmCell<M>::output(M::load(sum), M::load(sum + kLanes)),
                   n);
        }
      };
      const auto apply_cell = [&](int64_t panel, const Real* x_sums, Real* sums) {
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
        Real* sums = kOneSum ? scratch.projection : scratch.sums;
        for (int64_t done = 0; done < count; ++done) {
          const int64_t p = backwards ? count - 1 - done : done;
          multiply_panel<Real, kColumns>(scratch.x_rows, active, panels_ih + p * I * kWidth, I,
                                         scratch.projection, false);
          multiply_panel<Real, kColumns>(scratch.rows, active, panels + p * S * kWidth, S, sums,
                                         kOneSum);
          apply_cell(p, scratch.projection, sums);
        }
      } else {
        Real* x_sums = scratch.projection + projected_before * kWidth;
        const int64_t x_stride = projected * kWidth;
        const Sums<Real> sums =
            kOneSum ? Sums<Real>{x_sums, x_stride, true} : Sums<Real>{scratch.sums, 0, false};
        for_each_panel<Real, kColumns>(scratch.rows, active, panels, count, S, backwards, sums,
                                       [&](int64_t panel, Real* panel_sums) {
                                         apply_cell(panel, x_sums + panel * x_stride, panel_sums);
                                       });
        projected_before += active;
      }

      if (shape.proj_size) {
        for (int64_t j = 0; j < active; ++j) scratch.rows[j] = scratch.wide + j * H;
        const auto store_state = [&](int64_t panel, const Real* sums) {
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
                                               num_panels<Real>(S, 1), H, backwards,
                                               {scratch.sums, 0, false}, store_state);
      }
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
  const Scratch<Real> scratch(task.scratch, shape, b_end - b_begin);
  const int64_t H = shape.hidden_size, T = shape.seq_len, S = shape.state_size();
  const Real* output = static_cast<const Real*>(dir.output);
  const Real* reserve = static_cast<const Real*>(dir.reserve);
  const Real* dy = static_cast<const Real*>(dir.dy);
  const Real* dc_steps = static_cast<const Real*>(dir.dc);
  Real* dgates = static_cast<Real*>(dir.dgates);
  Real* carry = static_cast<Real*>(dir.dhx);
  Real* carry_c = static_cast<Real*>(dir.dcx);
  const PreviousState<Real> previous_h{dir.hx ? static_cast<const Real*>(dir.hx) : zeros,
                                       dir.hx ? S : 0, output, dir.output_stride};
  const PreviousState<Real> previous_c{dir.cx ? static_cast<const Real*>(dir.cx) : zeros,
                                       dir.cx ? H : 0, reserve + 4 * H, dir.reserve_stride};

  for (int64_t step = task.step_end - 1; step >= task.step_begin; --step) {
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
                                   step & 1, {scratch.sums, 0, false}, store_wide);
    }

    // The cell: gradients of the pre-activations.
    for (int64_t j = 0; j < active; ++j) {
      const int64_t b = b_begin + j, row = first_row + j;
      const Real* saved = reserve + row * dir.reserve_stride;
      Real* d = dgates + (row - dir.dgates_first_row) * dir.dgates_stride;
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
          M::store(carry + b * S + u, grad.h_direct, n);
        } else {
          const typename LstmCell<M>::Activations act{
              M::load(saved + u, n), M::load(saved + H + u, n), M::load(saved + 2 * H + u, n),
              M::load(saved + 3 * H + u, n)};
          V dc = M::load(carry_c + b * H + u, n);
          if (dc_steps) dc += M::load(dc_steps + row * dir.dc_stride + u, n);
          const auto grad = LstmCell<M>::backward(dh, dc, act, M::load(saved + 4 * H + u, n),
                                                  M::load(c_old + u, n));
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
                                 step & 1, {scratch.sums, 0, false}, store_carry);
  }
}

// ---- the table -----------------------------------------------------------------------------

template <class Real>
void run_forward_cell(const ForwardTask& task) {
  switch (task.shape->cell) {
    case Cell::kTanh:
      return run_forward<Real, Cell::kTanh>(task);
    case Cell::kRelu:
      return run_forward<Real, Cell::kRelu>(task);
    case Cell::kGru:
      return run_forward<Real, Cell::kGru>(task);
    case Cell::kLstm:
      return run_forward<Real, Cell::kLstm>(task);
  }
}

template <class Real>
void run_backward_cell(const BackwardTask& task) {
  switch (task.shape->cell) {
    case Cell::kTanh:
      return run_backward<Real, Cell::kTanh>(task);
    case Cell::kRelu:
      return run_backward<Real, Cell::kRelu>(task);
    case Cell::kGru:
      return run_backward<Real, Cell::kGru>(task);
    case Cell::kLstm:
      return run_backward<Real, Cell::kLstm>(task);
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
            pack_rows(static_cast<const Real*>(w), gates, units, depth, static_cast<Real*>(panels));
          },
          [](const void* w, int64_t units, int64_t depth, void* panels) {
            pack_columns(static_cast<const Real*>(w), units, depth, static_cast<Real*>(panels));
          },
          Scratch<Real>::bytes,
          run_forward_cell<Real>,
          run_backward_cell<Real>};
}
