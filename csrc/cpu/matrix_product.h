// C [m, n] (+)= op(A) B, the large products that give the gradients of weights and input, where the
// BLAS behind torch is slower (instruction_set.cpp says where).
//
// A block of B, kDepth rows of kBlockColumns, is packed into panels as wide as a tile of C; it
// stays in the second-level cache, and the tile's rows of A over the same depth in the first. A
// tile of C is added to where it lies once for every kDepth terms. The numbers of C are sums of the
// same terms in the same order wherever a thread's part of C begins.
//
// The floor is a multiply-add of two vectors' numbers a cycle and unit: of a tile, kTileRows
// broadcasts and two loads feed 2 * kTileRows of them. Zen 4, one core, GFLOP/s, best of 25:
//   m, n, k                    here    MKL    oneDNN
//   2048, 512, 3200 (A^T)        95     94     93 (copies A^T: of a copy that is given, 106)
//   1024, 256, 800 (A^T)        102     92     88
//   512, 128, 3200 (A^T)         93     85     73
//   3200, 512, 2048              94     91    103
//   800, 256, 1024              110     98    111
// Vectors of 32 bytes are as fast on Zen 4, whose units are that wide. On Zen 5, with units of 64
// bytes, MKL was reported at 112 and oneDNN at 236 to 261; this kernel has not been measured there.

template <class Real>
struct MatrixProduct {
  using M = Math<Real>;
  using V = typename M::Value;
  static constexpr int kColumns = 2;  // vectors of a tile
  static constexpr int kTileRows = kNumAccumulators / kColumns;
  static constexpr int kWidth = kColumns * M::kLanes;
  static constexpr int64_t kDepth = 1024 / sizeof(Real);
  static constexpr int64_t kBlockColumns = 8 * kWidth;
  static_assert(kTileRows <= M::kLanes);

  // A block of B, and a tile of A^T.
  static int64_t panel_numbers(const GemmShape& s) {
    const int64_t columns = std::min(kBlockColumns, (s.n + kWidth - 1) / kWidth * kWidth);
    return std::min(kDepth, s.k) * columns;
  }
  static int64_t scratch_bytes(const GemmShape& s) {
    const int64_t tile = s.transpose_a ? std::min(kDepth, s.k) * kTileRows + M::kLanes : 0;
    return (panel_numbers(s) + tile) * int64_t(sizeof(Real));
  }

  // Rows of A that lie in memory, or a packed tile of the transpose.
  struct Rows {
    const Real* first;
    int64_t stride, last;
    const Real* operator()(int64_t row) const { return first + std::min(row, last) * stride; }
    static constexpr int64_t kNext = 1;
  };
  struct PackedTile {
    const Real* first;
    const Real* operator()(int64_t row) const { return first + row; }
    static constexpr int64_t kNext = kTileRows;
  };

  // c [rows][columns] (+)= a times kVectors of a panel. Of a tile with fewer rows the rest is
  // computed from some numbers or other, and not stored. Not inlined: its sums take all registers
  // there are.
  template <int kVectors, class Tile>
  static __attribute__((noinline)) void multiply_tile(const Tile& a, const Real* panel,
                                                      int64_t depth, Real* c, int64_t c_stride,
                                                      int64_t rows, int64_t columns,
                                                      bool accumulate) {
    V sums[kTileRows][kVectors]{};
    const Real* from[kTileRows];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) from[r] = a(r);
    for (int64_t k = 0; k < depth; ++k) {
      V first = M::load(panel + k * kWidth), second{};
      M::keep_in_register(first);
      if constexpr (kVectors == 2) {
        second = M::load(panel + k * kWidth + M::kLanes);
        M::keep_in_register(second);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        const V number = M::broadcast(from[r][k * Tile::kNext]);
        sums[r][0] += first * number;
        if constexpr (kVectors == 2) sums[r][1] += second * number;
      }
    }
    constexpr int kStored = kVectors * M::kLanes;
    if (rows == kTileRows && columns >= kStored) {
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          Real* to = c + r * c_stride + v * M::kLanes;
          M::store(to, accumulate ? M::load(to) + sums[r][v] : sums[r][v]);
        }
      return;
    }
    Real tile[kTileRows * kStored];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) M::store(tile + r * kStored + v * M::kLanes, sums[r][v]);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t n = 0; n < std::min<int64_t>(kStored, columns); ++n) {
        Real& to = c[r * c_stride + n];
        to = tile[r * kStored + n] + (accumulate ? to : Real{});
      }
  }

  // Rows [0, depth) of kBlockColumns or fewer columns of B, zeros beyond.
  static void pack_block(const Real* b, int64_t stride, int64_t depth, int64_t columns,
                         Real* panels) {
    for (int64_t n = 0; n < columns; n += kWidth) {
      const int64_t valid = std::min<int64_t>(kWidth, columns - n);
      const Real* from = b + n;
      Real* to = panels + n * depth;
      for (int64_t k = 0; k < depth; ++k, to += kWidth, from += stride) {
        if (valid == kWidth)
          for (int v = 0; v < kColumns; ++v)
            M::store(to + v * M::kLanes, M::load(from + v * M::kLanes));
        else
          for (int i = 0; i < kWidth; ++i) to[i] = i < valid ? from[i] : Real{};
      }
    }
  }

  // Columns [0, rows) of a, which are rows of A^T, to [depth][kTileRows]. Whole vectors where
  // `valid` columns are as many: the next row overwrites what is too much.
  static void pack_tile(const Real* a, int64_t stride, int64_t depth, int64_t rows, int64_t valid,
                        Real* to) {
    if (valid >= M::kLanes) {
      for (int64_t k = 0; k < depth; ++k, a += stride, to += kTileRows)
        for (int r = 0; r < kTileRows; r += M::kLanes) M::store(to + r, M::load(a + r));
    } else {
      for (int64_t k = 0; k < depth; ++k, a += stride, to += kTileRows)
        for (int64_t r = 0; r < rows; ++r) to[r] = a[r];
    }
  }

  static void run(const GemmShape& s, const void* a_memory, const void* b_memory, void* c_memory,
                  void* scratch) {
    const Real* a = static_cast<const Real*>(a_memory);
    const Real* b = static_cast<const Real*>(b_memory);
    Real* c = static_cast<Real*>(c_memory);
    Real* panels = static_cast<Real*>(scratch);
    Real* tile = panels + panel_numbers(s);
    for (int64_t k = 0; k < s.k; k += kDepth) {
      const int64_t depth = std::min(kDepth, s.k - k);
      const bool accumulate = k > 0 || s.beta != 0.0f;
      for (int64_t first = 0; first < s.n; first += kBlockColumns) {
        const int64_t columns = std::min(kBlockColumns, s.n - first);
        pack_block(b + k * s.ldb + first, s.ldb, depth, columns, panels);
        for (int64_t m = 0; m < s.m; m += kTileRows) {
          const int64_t rows = std::min<int64_t>(kTileRows, s.m - m);
          const auto multiply = [&](const auto& numbers) {
            for (int64_t n = 0; n < columns; n += kWidth) {
              const Real* panel = panels + n * depth;
              Real* to = c + m * s.ldc + first + n;
              if (columns - n > M::kLanes)
                multiply_tile<2>(numbers, panel, depth, to, s.ldc, rows, columns - n, accumulate);
              else
                multiply_tile<1>(numbers, panel, depth, to, s.ldc, rows, columns - n, accumulate);
            }
          };
          if (s.transpose_a) {
            pack_tile(a + k * s.lda + m, s.lda, depth, rows, s.m - m, tile);
            multiply(PackedTile{tile});
          } else {
            multiply(Rows{a + m * s.lda + k, s.lda, rows - 1});
          }
        }
      }
    }
  }
};
