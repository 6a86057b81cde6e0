// The product of packed rows with panels of words: one instruction multiplies the two bf16 or four
// int8 of a word of the row by those of a word of each lane, and adds them to the lane's sum.

struct PackedRows {
  const char* base;
  int64_t stride;  // bytes
};

constexpr int kRowsOfTile = 16;

// Rows are padded to whole tiles in memory, whether tiles are used or not.
inline int64_t padded_rows(int64_t rows) {
  return (rows + kRowsOfTile - 1) / kRowsOfTile * kRowsOfTile;
}

// Blocks [begin, end) of kRows rows and kPanels panels whose distance is panel_stride bytes.
template <class N, int kColumns, int kRows, int kPanels>
inline void multiply_words(const PackedRows& rows, const char* panel, int64_t panel_stride,
                           int64_t begin, int64_t end, typename N::Sum* sums,
                           int64_t sums_panel_stride) {
  using M = Math<float>;
  using Words = typename M::Bits;
  using Accumulator = typename N::Multiply::Accumulator;
  Accumulator acc[kRows][kPanels][kColumns];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int q = 0; q < kPanels; ++q)
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) {
        const void* from = nullptr;
        if (begin > 0)
          from = sums + q * sums_panel_stride + (r * kColumns + c) * M::kLanes;
        else if constexpr (N::kHasOffset)
          from = panel + q * panel_stride + c * kVectorBytes;
        acc[r][q][c] = Accumulator{};
        if (from) std::memcpy(&acc[r][q][c], from, sizeof(Accumulator));
      }
  const char* first = panel + offset_bytes<N>(kColumns);
  for (int64_t block = begin; block < end; ++block) {
    const char* w = first + block * kColumns * kWordsPerBlock * kVectorBytes;
    const char* a = rows.base + block * kWordsPerBlock * kWordBytes;
#pragma GCC unroll 2
    for (int word = 0; word < kWordsPerBlock; ++word) {
      typename N::Multiply::Row av[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        int32_t numbers;
        std::memcpy(&numbers, a + r * rows.stride + word * kWordBytes, sizeof(numbers));
        av[r] = N::Multiply::broadcast(numbers);
      }
#pragma GCC unroll 8
      for (int q = 0; q < kPanels; ++q)
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) {
          Words wv;
          std::memcpy(&wv, w + q * panel_stride + (c * kWordsPerBlock + word) * kVectorBytes,
                      sizeof(wv));
          const auto prepared = N::Multiply::prepare(wv);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r)
            acc[r][q][c] = N::Multiply::multiply_add(acc[r][q][c], prepared, av[r]);
        }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int q = 0; q < kPanels; ++q)
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c)
        std::memcpy(sums + q * sums_panel_stride + (r * kColumns + c) * M::kLanes, &acc[r][q][c],
                    sizeof(Accumulator));
}

template <class N, int kColumns, int kRows>
inline void multiply_rest_of_words(int64_t rest, const PackedRows& rows, const char* panel,
                                   int64_t begin, int64_t end, typename N::Sum* sums) {
  if constexpr (kRows > 0) {
    if (rest == kRows)
      multiply_words<N, kColumns, kRows, 1>(rows, panel, 0, begin, end, sums, 0);
    else
      multiply_rest_of_words<N, kColumns, kRows - 1>(rest, rows, panel, begin, end, sums);
  }
}

// sums [num_rows][kColumns][lane] = rows times one panel.
template <class N, int kColumns>
void multiply_word_panel(const PackedRows& rows, int64_t num_rows, const char* panel, int64_t depth,
                         typename N::Sum* sums) {
  constexpr int kTile = N::Multiply::kAccumulators / kColumns;
  constexpr int kWidth = kColumns * Math<float>::kLanes;
  const int64_t blocks = num_blocks<N>(depth);
  // With several row tiles, the part of a panel in use stays in the first-level cache.
  constexpr int64_t kPart = std::max(16384 / (kColumns * kWordsPerBlock * kVectorBytes), 1);
  const int64_t part = num_rows <= kTile ? blocks : kPart;
  for (int64_t begin = 0; begin < blocks; begin += part) {
    const int64_t end = std::min(begin + part, blocks);
    int64_t r = 0;
    for (; r + kTile <= num_rows; r += kTile)
      multiply_words<N, kColumns, kTile, 1>({rows.base + r * rows.stride, rows.stride}, panel, 0,
                                            begin, end, sums + r * kWidth, 0);
    multiply_rest_of_words<N, kColumns, kTile - 1>(num_rows - r,
                                                   {rows.base + r * rows.stride, rows.stride},
                                                   panel, begin, end, sums + r * kWidth);
  }
}
