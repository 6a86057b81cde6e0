// The product of rows that are read where they lie with panels of plain or widened numbers.

// sums[row][column] (+)= rows[row][k] * panel[k][column] for kRows rows and kPanels panels whose
// distance is panel_stride; sums of one panel follow those of the one before. With kAskAhead as
// much as is read of the panel is asked for from `next` on.
template <class N, int kColumns, int kRows, int kPanels, bool kAskAhead = false>
inline void multiply_tile(const typename N::Real* const* rows, const typename N::Weight* panel,
                          int64_t panel_stride, int64_t k_begin, int64_t k_end,
                          typename N::Real* sums, int64_t sums_panel_stride, bool accumulate,
                          [[maybe_unused]] const typename N::Weight* next = nullptr) {
  using Real = typename N::Real;
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
    const typename N::Weight* w = panel + k * kColumns * M::kLanes;
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

template <class N, int kColumns, int kRows>
inline void multiply_rest(int64_t rest, const typename N::Real* const* rows,
                          const typename N::Weight* panel, int64_t k_begin, int64_t k_end,
                          typename N::Real* sums, bool accumulate) {
  if constexpr (kRows > 0) {
    if (rest == kRows)
      multiply_tile<N, kColumns, kRows, 1>(rows, panel, 0, k_begin, k_end, sums, 0, accumulate);
    else
      multiply_rest<N, kColumns, kRows - 1>(rest, rows, panel, k_begin, k_end, sums, accumulate);
  }
}

// sums [num_rows][kColumns][lane] (+)= rows times one panel. If next_panel is not null, the last
// full tile of each part of the panel asks for the part that comes after it, so that the first tile
// there does not wait for the third-level cache: 1.05 times as fast where W is larger than the
// second, 0.97 times where it is not. Tiles of nearly equal numbers of rows instead of full ones
// and a rest gained nothing, nor did parts of 24 to 64 KB.
template <class N, int kColumns>
void multiply_panel(const typename N::Real* const* rows, int64_t num_rows, const char* panel_memory,
                    int64_t depth, typename N::Real* sums, bool accumulate,
                    const char* next_panel_memory = nullptr) {
  using Real = typename N::Real;
  const auto* panel = reinterpret_cast<const typename N::Weight*>(panel_memory);
  const auto* next_panel = reinterpret_cast<const typename N::Weight*>(next_panel_memory);
  constexpr int kTile = kNumAccumulators / kColumns;
  constexpr int kWidth = kColumns * Math<Real>::kLanes;
  // With several row tiles, the part of a panel in use stays in the first-level cache.
  const int64_t block =
      num_rows <= kTile ? depth : (int64_t)(16384 / (kWidth * sizeof(typename N::Weight)));
  for (int64_t k0 = 0; k0 < depth; k0 += block) {
    const int64_t k1 = k0 + block < depth ? k0 + block : depth;
    int64_t r = 0;
    for (; r + kTile <= num_rows; r += kTile)
      if (next_panel && r + 2 * kTile > num_rows)
        multiply_tile<N, kColumns, kTile, 1, true>(rows + r, panel, 0, k0, k1, sums + r * kWidth, 0,
                                                   accumulate || k0 > 0,
                                                   k1 < depth ? panel + k1 * kWidth : next_panel);
      else
        multiply_tile<N, kColumns, kTile, 1>(rows + r, panel, 0, k0, k1, sums + r * kWidth, 0,
                                             accumulate || k0 > 0);
    multiply_rest<N, kColumns, kTile - 1>(num_rows - r, rows + r, panel, k0, k1, sums + r * kWidth,
                                          accumulate || k0 > 0);
  }
}

// The same for one row and kGroup panels.
template <class N, int kColumns, int kGroup>
inline void multiply_group(const typename N::Real* const* rows, const char* panels, int64_t depth,
                           typename N::Real* sums, int64_t sums_panel_stride, bool accumulate) {
  multiply_tile<N, kColumns, 1, kGroup>(rows, reinterpret_cast<const typename N::Weight*>(panels),
                                        depth * kColumns * Math<typename N::Real>::kLanes, 0, depth,
                                        sums, sums_panel_stride, accumulate);
}
