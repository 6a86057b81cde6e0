// Weights packed into panels of kColumns vectors.
//
// Plain and widened numbers: [panel][k][column][lane].
// Words: [panel][block of kWordsPerBlock words of k][column][word][lane], so that the 16 x 16 words
// of a column of a block are a tile where lanes are 16; depth is padded with zeros to whole blocks.
// With an offset each panel begins with [column][lane] of it.
//
// Or not packed at all: a product of few rows, as of one step of one sequence, reads a panel of W^T
// from W itself (in_place.h).

// Vectors of columns in a panel: one for each gate of the same units, or two of plain columns.
constexpr int panel_columns(int gates) { return gates == 1 ? 2 : gates; }
constexpr int unit_vectors(int gates) { return gates == 1 ? 2 : 1; }
constexpr int kMaxColumns = 4;
constexpr int kWordsPerBlock = 16;
constexpr int64_t kWordBytes = 4;

template <class N>
inline int64_t num_panels(int64_t units, int gates) {
  const int64_t units_per_panel = unit_vectors(gates) * Math<typename N::Real>::kLanes;
  return (units + units_per_panel - 1) / units_per_panel;
}

template <class N>
inline int64_t num_blocks(int64_t depth) {
  constexpr int64_t kBlock = kWordsPerBlock * N::kPerWord;
  return (depth + kBlock - 1) / kBlock;
}

// Numbers of a packed row.
template <class N>
inline int64_t padded_depth(int64_t depth) {
  return num_blocks<N>(depth) * kWordsPerBlock * N::kPerWord;
}

template <class N>
constexpr int64_t offset_bytes(int columns) {
  if constexpr (N::kPacks) return N::kHasOffset ? int64_t(columns) * kVectorBytes : 0;
  return 0;
}

template <class N>
inline int64_t panel_bytes(int columns, int64_t depth) {
  if constexpr (N::kPacks)
    return offset_bytes<N>(columns) +
           num_blocks<N>(depth) * kWordsPerBlock * columns * kVectorBytes;
  else
    return columns * Math<typename N::Real>::kLanes * depth * int64_t(sizeof(typename N::Weight));
}

template <class N>
int64_t packed_bytes(int64_t units, int gates, int64_t depth) {
  return num_panels<N>(units, gates) * panel_bytes<N>(panel_columns(gates), depth);
}

struct PanelRange {
  int64_t begin, end;
};

inline PanelRange panel_range(int64_t panels, const UnitShare& share) {
  return {panels * share.begin / share.count, panels * share.end / share.count};
}

template <class N>
int64_t first_unit(int64_t units, int gates, int64_t index, int64_t count) {
  const int64_t panel = num_panels<N>(units, gates) * index / count;
  return std::min(panel * unit_vectors(gates) * Math<typename N::Real>::kLanes, units);
}

// The panels of W^T for W [gates*units, depth], packed or not.
template <class N, int kColumns>
struct Panels {
  const char* base;
  int64_t units, depth;
  bool in_place;  // base is W

  // Whether a panel's columns are units of one gate, or gates of the same units.
  static constexpr bool kOneGate = kColumns == panel_columns(1);

  int64_t stride() const { return panel_bytes<N>(kColumns, depth); }
  const char* packed(int64_t panel) const { return base + panel * stride(); }
  // The first unit of a panel's column, and the row of W that holds its weights.
  static int64_t unit(int64_t panel, int column) {
    return (kOneGate ? panel * kColumns + column : panel) * Math<typename N::Real>::kLanes;
  }
  const typename N::Weight* row(int64_t panel, int column) const {
    const int64_t row = (kOneGate ? 0 : column * units) + unit(panel, column);
    return reinterpret_cast<const typename N::Weight*>(base) + row * depth;
  }
};

// Transposes the kLanes x kLanes numbers at `from` (rows `stride` bytes apart) to `to`, whose
// numbers are as large.
template <class Real, class Number>
inline void transpose_block(const char* from, int64_t stride, Number* to, int64_t to_stride) {
  using M = Math<Real>;
  constexpr int kLanes = M::kLanes;
#if defined(__GNUC__) && !defined(__clang__)
  typename M::Value v[kLanes];
  for (int i = 0; i < kLanes; ++i)
    v[i] = M::load(reinterpret_cast<const Number*>(from + i * stride));
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
    for (int lane = 0; lane < kLanes; ++lane)
      std::memcpy(to + k * to_stride + lane, from + lane * stride + k * sizeof(Number),
                  sizeof(Number));
#endif
}

// One column of a panel of W^T: `valid` rows of W, `depth` numbers each, become lanes.
template <class N>
void pack_column(const typename N::Weight* rows, int64_t valid, int64_t depth, int columns,
                 typename N::Weight* out) {
  using Weight = typename N::Weight;
  constexpr int kLanes = Math<typename N::Real>::kLanes;
  const int64_t width = columns * kLanes;
  int64_t k = 0;
  if constexpr (N::kReadsInPlace) {
    using M = Math<typename N::Real>;
    using Block = LaneBlock<typename N::Real>;
    constexpr int64_t kLine = 64 / sizeof(Weight);
    for (; valid == kLanes && k + Block::kDepth <= depth; k += Block::kDepth) {
      if (k % kLine == 0)
        for (int lane = 0; lane < kLanes; ++lane)  // of the next panel
          __builtin_prefetch(rows + (lane + kLanes) * depth + k, 0, 2);
      typename M::Value v[Block::kDepth];
      Block::load([&](int lane) { return rows + lane * depth + k; }, v);
#pragma GCC unroll 4
      for (int i = 0; i < Block::kDepth; ++i) M::store(out + (k + i) * width, v[i]);
    }
  } else {
    for (; valid == kLanes && k + kLanes <= depth; k += kLanes)
      transpose_block<typename N::Real>(reinterpret_cast<const char*>(rows + k),
                                        depth * sizeof(Weight), out + k * width, width);
  }
  for (; k < depth; ++k) {
    for (int64_t lane = 0; lane < valid; ++lane) out[k * width + lane] = rows[lane * depth + k];
    for (int64_t lane = valid; lane < kLanes; ++lane) out[k * width + lane] = Weight{};
  }
}

// The same in words: `out` is the column's place in the panel's first block.
template <class N>
void pack_word_column(const typename N::Weight* rows, int64_t valid, int64_t depth, int columns,
                      char* out) {
  constexpr int kLanes = Math<float>::kLanes;
  // Words taken at a time, of kLanes rows.
  constexpr int kAtOnce = kHasLaneBlocks ? 4 : kLanes;
  const int64_t row_bytes = depth * sizeof(typename N::Weight);
  const auto* from = reinterpret_cast<const char*>(rows);
  for (int64_t block = 0; block < num_blocks<N>(depth); ++block) {
    char* to = out + block * columns * kWordsPerBlock * kVectorBytes;
    const int64_t first_byte = block * kWordsPerBlock * kWordBytes;  // a line of memory
    for (int lane = 0; lane < kLanes; ++lane)                        // of the next panel
      __builtin_prefetch(from + (lane + kLanes) * row_bytes + first_byte, 0, 2);
    for (int first = 0; first < kWordsPerBlock; first += kAtOnce) {
      const int64_t byte = first_byte + first * kWordBytes;
      char* words = to + first * kVectorBytes;
      if (valid == kLanes && byte + kAtOnce * kWordBytes <= row_bytes) {
        if constexpr (kHasLaneBlocks) {
          using M = Math<typename N::Real>;
          using Block = LaneBlock<typename N::Real>;
          typename M::Value v[kAtOnce];
          const auto row = [&](int lane) {
            return reinterpret_cast<const float*>(from + lane * row_bytes + byte);
          };
          Block::load(row, v);
#pragma GCC unroll 4
          for (int i = 0; i < kAtOnce; ++i)
            M::store(reinterpret_cast<float*>(words) + i * kLanes, v[i]);
        } else {
          transpose_block<float>(from + byte, row_bytes, reinterpret_cast<float*>(words), kLanes);
        }
        continue;
      }
      std::memset(words, 0, kAtOnce * kVectorBytes);
      for (int64_t lane = 0; lane < valid; ++lane)
        for (int k = 0; k < kAtOnce; ++k) {
          const int64_t left = row_bytes - (byte + k * kWordBytes);
          if (left > 0)
            std::memcpy(words + k * kVectorBytes + lane * kWordBytes,
                        from + lane * row_bytes + byte + k * kWordBytes,
                        std::min(left, kWordBytes));
        }
    }
  }
}

// Panels of W^T for W [gates*units, depth]: column (gate, unit) of the product is row gate*units +
// unit of W. Columns past the last unit are zero.
template <class N>
void pack_rows(const void* weights, int gates, int64_t units, int64_t depth, const UnitShare& share,
               void* panels) {
  using Weight = typename N::Weight;
  const auto* w = static_cast<const Weight*>(weights);
  constexpr int kLanes = Math<typename N::Real>::kLanes;
  const int columns = panel_columns(gates);
  const PanelRange range = panel_range(num_panels<N>(units, gates), share);
  for (int64_t p = range.begin; p < range.end; ++p) {
    char* panel = static_cast<char*>(panels) + p * panel_bytes<N>(columns, depth);
    for (int c = 0; c < columns; ++c) {
      const int64_t unit = gates == 1 ? (p * columns + c) * kLanes : p * kLanes;
      const Weight* rows = w + ((gates == 1 ? 0 : c * units) + unit) * depth;
      const int64_t valid = std::clamp<int64_t>(units - unit, 0, kLanes);
      if constexpr (!N::kPacks) {
        pack_column<N>(rows, valid, depth, columns, reinterpret_cast<Weight*>(panel) + c * kLanes);
      } else {
        pack_word_column<N>(rows, valid, depth, columns,
                            panel + offset_bytes<N>(columns) + c * kWordsPerBlock * kVectorBytes);
        if constexpr (N::kHasOffset) {
          auto* offset = reinterpret_cast<int32_t*>(panel) + c * kLanes;
          for (int64_t lane = 0; lane < kLanes; ++lane) {
            int32_t sum = 0;
            if (lane < valid)
              for (int64_t k = 0; k < depth; ++k) sum += rows[lane * depth + k];
            offset[lane] = -128 * sum;
          }
        }
      }
    }
  }
}

// Panels of W for W [depth, units]: the product with W itself instead of its transpose.
template <class N>
void pack_columns(const void* weights, int64_t units, int64_t depth, const UnitShare& share,
                  void* panels) {
  using Weight = typename N::Weight;
  const auto* w = static_cast<const Weight*>(weights);
  constexpr int kColumns = panel_columns(1);
  constexpr int kLanes = Math<typename N::Real>::kLanes;
  constexpr int kWidth = kColumns * kLanes;
  const PanelRange range = panel_range(num_panels<N>(units, 1), share);
  for (int64_t p = range.begin; p < range.end; ++p) {
    char* panel = static_cast<char*>(panels) + p * panel_bytes<N>(kColumns, depth);
    const int64_t first = p * kWidth;
    const int64_t valid = units - first < kWidth ? units - first : kWidth;
    if constexpr (!N::kPacks) {
      auto* to = reinterpret_cast<Weight*>(panel);
      for (int64_t k = 0; k < depth; ++k, to += kWidth) {
        std::memcpy(to, w + k * units + first, valid * sizeof(Weight));
        for (int64_t lane = valid; lane < kWidth; ++lane) to[lane] = Weight{};
      }
    } else {
      static_assert(sizeof(Weight) == 2, "only bf16 is multiplied by W itself");
      const Weight none[kWidth] = {};
      for (int64_t word = 0; word < num_blocks<N>(depth) * kWordsPerBlock; ++word) {
        Weight low[kWidth] = {}, high[kWidth] = {};
        const int64_t k = 2 * word;
        std::memcpy(low, k < depth ? w + k * units + first : none, valid * sizeof(Weight));
        std::memcpy(high, k + 1 < depth ? w + (k + 1) * units + first : none,
                    valid * sizeof(Weight));
        for (int c = 0; c < kColumns; ++c) {
          auto* to = reinterpret_cast<uint32_t*>(
              panel +
              ((word / kWordsPerBlock * kColumns + c) * kWordsPerBlock + word % kWordsPerBlock) *
                  kVectorBytes);
          for (int lane = 0; lane < kLanes; ++lane)
            to[lane] = uint32_t(low[c * kLanes + lane].bits) |
                       uint32_t(high[c * kLanes + lane].bits) << 16;
        }
      }
    }
  }
}
