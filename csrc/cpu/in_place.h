// The product of few rows with weights that nobody packed: W is read where it lies, a row of it for
// each lane, and turned into the vectors that a panel would hold in registers. What a sum adds, and
// in which order, is the same as with panels, so that the bits are: a sequence that is given a step
// at a time has the results of one that is given whole.
//
// Packing writes all weights and reads them again, which costs about as much as two products of one
// row; a product in place costs a shuffle or two for each vector of weights, which are done while
// it waits for memory.

// sums[row][column] (+)= rows[row][k] * w[column][lane][k] for kColumns of a panel's columns, the
// sums of whose rows are `width` apart. Lanes from `valid` on, of which there is no row of W,
// repeat the last one; nobody reads their sums. `next` is where the weights begin that are wanted
// after these.
template <class N, int kColumns, int kRows>
inline void multiply_in_place(const typename N::Real* const* rows,
                              const typename N::Weight* const* w, const int64_t* valid,
                              int64_t depth, typename N::Real* sums, int64_t width, bool accumulate,
                              int64_t next) {
  using Real = typename N::Real;
  using M = Math<Real>;
  using Block = LaneBlock<Real>;
  typename M::Value acc[kRows][kColumns];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c)
      acc[r][c] = accumulate ? M::load(sums + r * width + c * M::kLanes) : typename M::Value{};
  const auto add = [&](int c, int64_t k, typename M::Value wv) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) acc[r][c] += wv * M::broadcast(rows[r][k]);
  };
  const auto run = [&](auto has_all_lanes) __attribute__((always_inline)) {
    const auto row_of = [&](int c, int lane) {
      return w[c] + (has_all_lanes || lane < valid[c] ? lane : valid[c] - 1) * depth;
    };
    constexpr int64_t kLine = 64 / sizeof(Real);
    for (int64_t begin = 0; begin < depth; begin += kLine) {
      const int64_t end = std::min(begin + kLine, depth);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c)
        for (int lane = 0; lane < M::kLanes; ++lane)
          __builtin_prefetch(w[c] + lane * depth + begin + next, 0, 2);
      int64_t k = begin;
      for (; k + Block::kDepth <= end; k += Block::kDepth)
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) {
          typename M::Value v[Block::kDepth];
          Block::load([&](int lane) { return row_of(c, lane) + k; }, v);
#pragma GCC unroll 4
          for (int i = 0; i < Block::kDepth; ++i) add(c, k + i, v[i]);
        }
      for (; k < end; ++k)
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) {
          typename M::Value v;
          for (int lane = 0; lane < M::kLanes; ++lane) v[lane] = row_of(c, lane)[k];
          add(c, k, v);
        }
    }
  };
  bool has_all_lanes = true;
  for (int c = 0; c < kColumns; ++c) has_all_lanes = has_all_lanes && valid[c] >= M::kLanes;
  if (has_all_lanes)
    run(std::true_type{});
  else
    run(std::false_type{});
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) M::store(sums + r * width + c * M::kLanes, acc[r][c]);
}

// sums [num_rows][kColumns][lane] (+)= rows times one panel of W as it lies.
template <class N, int kColumns>
void multiply_panel_in_place(const typename N::Real* const* rows, int64_t num_rows,
                             const Panels<N, kColumns>& panels, int64_t panel,
                             typename N::Real* sums, bool accumulate) {
  constexpr int kLanes = Math<typename N::Real>::kLanes;
  constexpr int kWidth = kColumns * kLanes;
  const typename N::Weight* w[kColumns];
  int64_t valid[kColumns];
  for (int c = 0; c < kColumns; ++c) {
    valid[c] = panels.units - panels.unit(panel, c);
    // A column without a unit repeats the first one.
    w[c] = panels.row(panel, valid[c] > 0 ? c : 0);
    if (valid[c] <= 0) valid[c] = valid[0];
  }
  const int64_t next = (panels.kOneGate ? kWidth : kLanes) * panels.depth;
  const auto multiply = [&](auto num_rows_at_once, auto columns, int64_t r) {
    constexpr int kRows = decltype(num_rows_at_once)::value, kAtOnce = decltype(columns)::value;
    int c = 0;
    for (; c + kAtOnce <= kColumns; c += kAtOnce)
      multiply_in_place<N, kAtOnce, kRows>(rows + r, w + c, valid + c, panels.depth,
                                           sums + r * kWidth + c * kLanes, kWidth, accumulate,
                                           next);
    if constexpr (kColumns % kAtOnce > 0)
      multiply_in_place<N, kColumns % kAtOnce, kRows>(rows + r, w + c, valid + c, panels.depth,
                                                      sums + r * kWidth + c * kLanes, kWidth,
                                                      accumulate, next);
  };
  constexpr std::integral_constant<int, 1> one;
  int64_t r = 0;
  for (; r + 4 <= num_rows; r += 4) multiply(std::integral_constant<int, 4>{}, one, r);
  if (num_rows - r == 3) multiply(std::integral_constant<int, 3>{}, one, r);
  if (num_rows - r == 2) multiply(std::integral_constant<int, 2>{}, one, r);
  if (num_rows - r == 1) {
    // The sums of one row and column are one chain of additions: two columns, if they can be had,
    // hide its latency. Rows of a large power of two of bytes share few sets of the first-level
    // cache, which would lose their lines before all of a line is read.
    constexpr int64_t kSharesSets = 2048;
    if (panels.depth * int64_t(sizeof(typename N::Weight)) % kSharesSets == 0)
      multiply(one, one, r);
    else
      multiply(one, std::integral_constant<int, kColumns == 3 ? 3 : 2>{}, r);
  }
}
