// What the passes share: panels one after the other, rows of a step, the memory of a task.

constexpr int kMaxPanelGroup = 4;              // panels that a single row takes at a time
constexpr size_t kLargeWeightBytes = 1 << 20;  // more do not stay in the second-level cache

// ---- panels --------------------------------------------------------------------------------

// The rows of a product: where each lies, or all of them packed.
template <class N>
using ProductRows = std::conditional_t<N::kPacks, PackedRows, const typename N::Real* const*>;

template <class N>
constexpr bool uses_tiles() {
  if constexpr (N::kPacks) return N::Multiply::kTiles;
  return false;
}

// How many panels are taken at a time by at most kFewRows rows: these have too few sums to hide the
// latency of an instruction. 1: never several.
template <class N, int kColumns>
constexpr int panel_group() {
  if (uses_tiles<N>()) return kColumns == 2 ? 2 : 1;
  return kMaxPanelGroup * kColumns <= kNumAccumulators ? kMaxPanelGroup : kMaxPanelGroup / 2;
}
template <class N>
constexpr int kFewRows = uses_tiles<N>() ? kRowsOfTile : 1;

// Rows that a product of num_rows writes sums for.
template <class N>
inline int64_t rows_of_sums(int64_t num_rows) {
  return uses_tiles<N>() ? padded_rows(num_rows) : num_rows;
}

// Where the sums of the panels go: to a place of their own each, or, with panel_stride 0, all to
// the same, which consume must have read before the next.
template <class N>
struct Sums {
  typename N::Sum* base;
  int64_t panel_stride;
  bool accumulate;  // add to what is there; not for packed rows
};

template <class N, int kColumns>
inline Panels<N, kColumns> panels_of(const Weights& weights, int64_t units, int64_t depth) {
  return {static_cast<const char*>(weights.data), units, depth, weights.in_place};
}

// sums = rows times panel, and to what it was if accumulate. The packed panel `next` is wanted
// after it, if not negative.
template <class N, int kColumns>
inline void multiply(const ProductRows<N>& rows, int64_t num_rows,
                     const Panels<N, kColumns>& panels, int64_t panel, typename N::Sum* sums,
                     bool accumulate, int64_t next = -1) {
  if constexpr (N::kReadsInPlace) {
    if (panels.in_place)
      return multiply_panel_in_place<N, kColumns>(rows, num_rows, panels, panel, sums, accumulate);
  }
  const char* packed = panels.packed(panel);
  if constexpr (uses_tiles<N>())
    multiply_tile_panels<N, kColumns, 1>(rows, num_rows, packed, 0, panels.depth, sums, 0);
  else if constexpr (N::kPacks)
    multiply_word_panel<N, kColumns>(rows, num_rows, packed, panels.depth, sums);
  else
    multiply_panel<N, kColumns>(rows, num_rows, packed, panels.depth, sums, accumulate,
                                next < 0 ? nullptr : panels.packed(next));
}

// Calls consume(panel, sums) for every panel of a range, from the last to the first if backwards.
template <class N, int kColumns, class Consume>
inline void for_each_panel(const ProductRows<N>& rows, int64_t num_rows,
                           const Panels<N, kColumns>& panels, const PanelRange& range,
                           bool backwards, const Sums<N>& sums, const Consume& consume) {
  constexpr int kWidth = kColumns * Math<typename N::Real>::kLanes;
  const int64_t count = range.end - range.begin;
  const auto panel_at = [&](int64_t index, int64_t group = 1) {
    return backwards ? range.end - index - group : range.begin + index;
  };
  int64_t done = 0;
  if (num_rows <= kFewRows<N> && !panels.in_place) {
    const int64_t sums_stride =
        sums.panel_stride ? sums.panel_stride : rows_of_sums<N>(num_rows) * kWidth;
    const auto take_groups_of = [&](auto group) {
      constexpr int kGroup = decltype(group)::value;
      if constexpr (kGroup > 1) {
        for (; done + kGroup <= count; done += kGroup) {
          const int64_t p = panel_at(done, kGroup);
          typename N::Sum* to = sums.base + (p - range.begin) * sums.panel_stride;
          const char* first = panels.packed(p);
          if constexpr (uses_tiles<N>())
            multiply_tile_panels<N, kColumns, kGroup>(rows, num_rows, first, panels.stride(),
                                                      panels.depth, to, sums_stride);
          else if constexpr (N::kPacks)
            multiply_words<N, kColumns, 1, kGroup>(rows, first, panels.stride(), 0,
                                                   num_blocks<N>(panels.depth), to, sums_stride);
          else
            multiply_group<N, kColumns, kGroup>(rows, first, panels.depth, to, sums_stride,
                                                sums.accumulate);
          for (int q = 0; q < kGroup; ++q) consume(p + q, to + q * sums_stride);
        }
      }
    };
    take_groups_of(std::integral_constant<int, panel_group<N, kColumns>()>{});
    take_groups_of(std::integral_constant<int, panel_group<N, kColumns>() / 2>{});
  }
  const bool is_large = num_rows > kNumAccumulators / kColumns &&
                        count * panels.stride() > int64_t(kLargeWeightBytes);
  for (; done < count; ++done) {
    const int64_t p = panel_at(done);
    typename N::Sum* to = sums.base + (p - range.begin) * sums.panel_stride;
    // The last panel is followed by itself: the next step begins there.
    const int64_t following = panel_at(std::min(done + 1, count - 1));
    multiply<N, kColumns>(rows, num_rows, panels, p, to, sums.accumulate,
                          is_large ? following : -1);
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

// The step at whose beginning lies what is between step t and the one that it continues.
inline int64_t border_of(bool reverse, int64_t t) { return reverse ? t + 1 : t; }

// Whether step t continues nothing, in any row or in that of sequence b.
inline bool any_begins_anew(const SequenceRows& rows, int64_t seq_len, bool reverse, int64_t t) {
  const int64_t border = border_of(reverse, t);
  return rows.resets && border < seq_len && rows.step_resets[border];
}
inline bool begins_anew(const SequenceRows& rows, const RecurrenceShape& shape, bool reverse,
                        int64_t t, int64_t b) {
  const int64_t border = border_of(reverse, t);
  return rows.resets && border < length_of(rows, shape.seq_len, b) &&
         rows.resets[row_offset(rows, shape.batch_size, border) + b];
}

// The state before the first step of its direction, or the row that a step continues.
template <class Number>
struct PreviousState {
  const Number* initial;   // [B, S]
  int64_t initial_stride;  // 0 where one row of zeros stands for all
  const Number* output;    // [N, S]
  int64_t output_stride;
  const Number* zeros;  // [S]

  const Number* operator()(const SequenceRows& rows, const RecurrenceShape& shape, bool reverse,
                           int64_t t, int64_t b) const {
    if (begins_anew(rows, shape, reverse, t, b)) return zeros;
    const int64_t from = reverse ? t + 1 : t - 1;
    const bool first = reverse ? from >= length_of(rows, shape.seq_len, b) : from < 0;
    if (first) return initial + b * initial_stride;
    return output + (row_offset(rows, shape.batch_size, from) + b) * output_stride;
  }
};

// An LSTM's peepholes [3*H] of the units from u on.
template <class N>
inline auto peepholes_of(const void* weight_ch, int64_t hidden_size, int64_t u, int n) {
  using M = Math<typename N::Real>;
  const auto* w = static_cast<const typename N::Real*>(weight_ch) + u;
  return typename PeepholeLstmCell<M>::Peepholes{M::load(w, n), M::load(w + hidden_size, n),
                                                 M::load(w + 2 * hidden_size, n)};
}

// A direction's regularisers, by the rows of its steps.
template <class Real>
struct RegulariserRows {
  const Real* recurrent_mask = nullptr;  // [B, S]
  const Real* zoneout_h = nullptr;       // [N, S]
  const Real* zoneout_c = nullptr;       // [N, H]
  int64_t zoneout_h_stride = 0, zoneout_c_stride = 0;

  explicit RegulariserRows(const Regularisers* given) {
    if (!given) return;
    recurrent_mask = static_cast<const Real*>(given->recurrent_mask);
    zoneout_h = static_cast<const Real*>(given->zoneout_h);
    zoneout_c = static_cast<const Real*>(given->zoneout_c);
    zoneout_h_stride = given->zoneout_h_stride, zoneout_c_stride = given->zoneout_c_stride;
  }
  const Real* share_h(int64_t row) const { return zoneout_h + row * zoneout_h_stride; }
  const Real* share_c(int64_t row) const { return zoneout_c + row * zoneout_c_stride; }
};

// Rows packed for a product.
template <class N>
struct PackedBuffer {
  typename N::Operand* rows;
  int64_t stride;  // numbers
  float* scales;   // int8: of each row

  template <class From>
  void put(int64_t row, const From* from, int64_t size) const {
    N::pack(from, size, rows + row * stride, padded_depth<N>(size), scales + row);
  }
  PackedRows at(int64_t row) const {
    return {reinterpret_cast<const char*>(rows + row * stride),
            stride * int64_t(sizeof(typename N::Operand))};
  }
};
template <class N>
  requires(!N::kPacks)
struct PackedBuffer<N> {};

// The memory of one task, laid out in its scratch for the sequences it owns.
template <class N>
struct Scratch {
  using Real = typename N::Real;
  using Sum = typename N::Sum;

  const Real** rows;    // [B] rows of h that a step multiplies
  Real** targets;       // [B] rows that it writes
  const Real** x_rows;  // [rows projected at once]
  Sum* sums;            // [rows, or a group's][kMaxColumns][lane]
  // Sums of x W_ih^T: of all panels, [panel][row][kColumns][lane], or of one, like `sums`.
  Sum* projection;
  Real* wide;  // [B, H]: unprojected h, or its gradient (projection only)
  // Recurrent dropout only: h as it enters its product, and where the rows of it lie.
  Real* masked;              // [B, S]
  const Real** masked_rows;  // [B]
  // Packed rows only: h as it is, and what products read of h or dgates, of x, and of what the
  // projection reads.
  Real* state;  // [B, S]
  PackedBuffer<N> packed, packed_x, packed_wide;
  int64_t bytes;

  static constexpr int64_t kCacheBytes = 256 << 10;  // half of a usual second-level cache
  // 0.25 MB is 0.8 times as fast for an LSTM of H = 512; 1 and 4 MB make no difference.
  static constexpr int64_t kProjectionBytes = 2 << 20;

  static int64_t projected_row_bytes(const RecurrenceShape& shape) {
    const int gates = num_gates(shape.cell);
    if (shape.cell == Cell::kGruResetBefore)  // gates have panels of their own
      return gates * num_panels<N>(shape.hidden_size, 1) * panel_columns(1) * kVectorBytes;
    return num_panels<N>(shape.hidden_size, gates) * panel_columns(gates) * kVectorBytes;
  }
  // How many steps of `rows` sequences are projected at once. One, in the same breath as the
  // product with h, if W_ih stays in the cache from step to step or the batch is large; else so
  // many that W_ih is streamed for a few hundred rows.
  static int64_t steps_at_once(const RecurrenceShape& shape, int64_t input_size, int64_t rows) {
    const int64_t row_bytes = projected_row_bytes(shape);
    if (rows >= 16 &&
        packed_bytes<N>(shape.hidden_size, num_gates(shape.cell), input_size) <= kCacheBytes)
      return 1;
    return std::clamp<int64_t>(kProjectionBytes / (row_bytes * rows), 1, shape.seq_len);
  }

  // For `num_rows` sequences; with no memory, only to know how many bytes that takes.
  Scratch(void* memory, const RecurrenceShape& shape, int64_t input_size, int64_t num_rows) {
    char* p = static_cast<char*>(memory);
    const auto take = [&](auto*& pointer, int64_t count) {
      using Number = std::remove_reference_t<decltype(*pointer)>;
      pointer = reinterpret_cast<Number*>(p);
      p += (count * int64_t(sizeof(Number)) + 63) & ~int64_t(63);
    };
    const int64_t lanes = Math<Real>::kLanes, H = shape.hidden_size, S = shape.state_size();
    const int64_t row_bytes = projected_row_bytes(shape);
    const int64_t x_rows_at_once =
        std::max(num_rows, std::min(kProjectionBytes / row_bytes, shape.seq_len * num_rows));
    const int64_t sums_count =
        std::max<int64_t>(N::kPacks ? 2 * padded_rows(num_rows) : num_rows, kMaxPanelGroup) *
        kMaxColumns * lanes;
    take(rows, num_rows);
    take(targets, num_rows);
    take(x_rows, x_rows_at_once);
    take(sums, sums_count);
    take(wide, shape.proj_size ? num_rows * H : 0);
    take(masked, shape.recurrent_dropout ? num_rows * S : 0);
    take(masked_rows, shape.recurrent_dropout ? num_rows : 0);
    if constexpr (N::kPacks) {
      const auto take_packed = [&](PackedBuffer<N>& buffer, int64_t rows, int64_t depth) {
        // Rows at a distance of a power of two would share few sets of the cache.
        buffer.stride = padded_depth<N>(depth) + kWordsPerBlock * N::kPerWord;
        take(buffer.rows, padded_rows(rows) * buffer.stride);
        take(buffer.scales, padded_rows(rows));
      };
      take(state, num_rows * S);
      take_packed(packed, num_rows, std::max(S, num_gates(shape.cell) * H));
      take_packed(packed_x, x_rows_at_once, input_size);
      take_packed(packed_wide, shape.proj_size ? num_rows : 0, std::max(S, H));
    }
    const int64_t projected = x_rows_at_once * row_bytes / int64_t(sizeof(Sum));
    const int64_t overhang = N::kPacks ? kRowsOfTile * kMaxColumns * lanes : 0;
    take(projection, std::max(projected + overhang, sums_count));
    bytes = p - static_cast<char*>(memory);
  }
  // Enough for any part of `rows` sequences.
  static int64_t bytes_for(const RecurrenceShape& shape, int64_t input_size, int64_t rows) {
    return Scratch(nullptr, shape, input_size, rows).bytes;
  }
};
