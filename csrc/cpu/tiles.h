// The product of packed rows with panels of words by AMX: a tile of 16 rows times one of 16
// columns, 16 words deep. Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1,
// chapter 18.
//
// Tiles 0 to 3 hold sums, 4 and 5 rows, 6 and 7 weights (5 to 7 where there is one tile of rows).
// Rows are read, and sums written, in whole tiles: both are padded in memory.

// Sets up all eight tiles as 16 rows of 64 bytes, for as long as it lives.
struct TileRegisters {
  struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };
  TileRegisters() {
    Configuration configuration;
    for (int tile = 0; tile < 8; ++tile) {
      configuration.row_bytes[tile] = 64;
      configuration.rows[tile] = kRowsOfTile;
    }
    asm volatile("ldtilecfg %0" : : "m"(configuration) : "memory");
  }
  ~TileRegisters() { asm volatile("tilerelease" : : : "memory"); }
  TileRegisters(const TileRegisters&) = delete;
};

template <int kTile>
BIRNN_VECTOR_FN void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kTile>
BIRNN_VECTOR_FN void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(kTile), "r"(from), "r"(stride) : "memory");
}
template <int kTile>
BIRNN_VECTOR_FN void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(kTile), "r"(to), "r"(stride) : "memory");
}

// Calls body(integral_constant) for 0 to kCount - 1.
template <int kCount, class Body>
BIRNN_VECTOR_FN void for_each_constant(const Body& body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, kIndex>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

// kRowTiles tiles of rows times kWide columns of each of kPanels panels: at most four sums.
// `w` is the first of the columns in the first panel's first block.
template <class N, int kColumns, int kRowTiles, int kWide, int kPanels>
inline void multiply_tiles(const PackedRows& rows, const char* w, int64_t panel_stride,
                           int64_t blocks, typename N::Sum* sums, int64_t sums_panel_stride) {
  static_assert(kRowTiles * kWide * kPanels <= 4);
  constexpr int kWeightTile = kRowTiles == 1 ? 5 : 6, kNumWeightTiles = kRowTiles == 1 ? 3 : 2;
  constexpr int kTileBytes = kRowsOfTile * kVectorBytes;
  constexpr int64_t kSumsStride = kColumns * kVectorBytes;
  for_each_constant<kRowTiles * kWide * kPanels>([&](auto i) { zero_tile<decltype(i)::value>(); });
  for (int64_t block = 0; block < blocks; ++block) {
    const char* a = rows.base + block * kWordsPerBlock * kWordBytes;
    for_each_constant<kRowTiles>([&](auto r) {
      constexpr int kR = decltype(r)::value;
      load_tile<4 + kR>(a + kR * kRowsOfTile * rows.stride, rows.stride);
    });
    for_each_constant<kWide * kPanels>([&](auto i) {
      constexpr int kI = decltype(i)::value;
      constexpr int kPanel = kI / kWide, kColumn = kI % kWide;
      constexpr int kTile = kWeightTile + kI % kNumWeightTiles;
      load_tile<kTile>(w + kPanel * panel_stride + (block * kColumns + kColumn) * kTileBytes,
                       kVectorBytes);
      for_each_constant<kRowTiles>([&](auto r) {
        constexpr int kR = decltype(r)::value;
        N::Multiply::template multiply_tile<kI * kRowTiles + kR, 4 + kR, kTile>();
      });
    });
  }
  for_each_constant<kWide * kPanels>([&](auto i) {
    constexpr int kI = decltype(i)::value;
    constexpr int kPanel = kI / kWide, kColumn = kI % kWide;
    for_each_constant<kRowTiles>([&](auto r) {
      constexpr int kR = decltype(r)::value;
      store_tile<kI * kRowTiles + kR>(
          sums + kPanel * sums_panel_stride +
              (kR * kRowsOfTile * kColumns + kColumn) * Math<float>::kLanes,
          kSumsStride);
    });
  });
}

// sums [num_rows, padded][kColumns][lane] = rows times kPanels panels.
template <class N, int kColumns, int kPanels>
void multiply_tile_panels(const PackedRows& rows, int64_t num_rows, const char* panel,
                          int64_t panel_stride, int64_t depth, typename N::Sum* sums,
                          int64_t sums_panel_stride) {
  constexpr int kTileBytes = kRowsOfTile * kVectorBytes;
  constexpr int kWidth = kColumns * Math<float>::kLanes;
  const int64_t blocks = num_blocks<N>(depth);
  int64_t r = 0;
  if constexpr (kPanels == 1) {
    for (; r + kRowsOfTile < num_rows; r += 2 * kRowsOfTile) {
      const PackedRows two{rows.base + r * rows.stride, rows.stride};
      multiply_tiles<N, kColumns, 2, 2, 1>(two, panel, 0, blocks, sums + r * kWidth, 0);
      if constexpr (kColumns > 2)
        multiply_tiles<N, kColumns, 2, kColumns - 2, 1>(
            two, panel + 2 * kTileBytes, 0, blocks, sums + r * kWidth + 2 * Math<float>::kLanes, 0);
    }
  }
  if (r < num_rows)
    multiply_tiles<N, kColumns, 1, kColumns, kPanels>({rows.base + r * rows.stride, rows.stride},
                                                      panel, panel_stride, blocks,
                                                      sums + r * kWidth, sums_panel_stride);
}
