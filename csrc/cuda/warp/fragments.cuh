// Weights as operand A of the warp's matrix product, kept in registers for a whole kernel, times
// operand B in shared memory, in three precisions.
//
// A chunk is what one ldmatrix_x4 brings of B: 8 columns of 64 bytes along k, that is two k-steps
// of an mma. The 16 x chunk weights that meet it are eight words of a lane, wherever an element
// has 16 or 32 bits. A kernel holds [row tiles][chunks] of them; a packing kernel has written them
// in this order, padded with zeros, so that ragged sizes cost no masked load.
//
// ieee: fp32 products as three products of tf32 ("3xTF32"): each operand is split into its upper
// part, rounded to tf32, and the rest; of the four products the smallest is left out. Weights are
// split on the fly, for 64 registers of halves would not fit beside 128 of weights. The matrix
// units truncate what they add to a sum (Fasi et al. 2021, peerj-cs 330; Ootomo & Yokota 2022,
// arXiv 2203.03341): a sum that passes through them from the first column to the last drifts
// towards zero by half a unit in the last place for each of its products, which at H = 1024 is
// fifty times the error of fp32 by a model of them. So multiply_warp has them sum up one chunk at a
// time, and an fp32 addition adds it. (In the grid kernels a warp has an eighth of the columns, and
// fp32 additions add the warps' sums: there less than the error of fp32 is left.)
#pragma once

#include <type_traits>

#include "cuda/device/device.h"
#include "cuda/persistent/sizes.h"

namespace birnn::cuda {

using namespace birnn::device;

// The transcendental functions of a cell (cells.h).
struct FastMath {  // to the accuracy of 16-bit elements
  using Value = float;
  static BIRNN_DEVICE float one() { return 1.0f; }
  static BIRNN_DEVICE float tanh(float x) { return tanh_fast(x); }
  static BIRNN_DEVICE float sigmoid(float x) { return sigmoid_fast(x); }
  static BIRNN_DEVICE float zero_where_not_positive(float value, float condition) {
    return condition <= 0.0f ? 0.0f : value;
  }
};
struct PreciseMath {
  using Value = float;
  static BIRNN_DEVICE float one() { return 1.0f; }
  static BIRNN_DEVICE float tanh(float x) { return tanh_precise(x); }
  // exp overflows to infinity and the quotient to its limit 0.
  static BIRNN_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp_precise(-x)); }
  static BIRNN_DEVICE float zero_where_not_positive(float value, float condition) {
    return condition <= 0.0f ? 0.0f : value;
  }
};

template <class T>
struct SixteenBit {
  using Element = T;
  using Math = FastMath;
  static constexpr int kChunkColumns = 32;
  static constexpr bool kSplits = false, kRounds = false;
  // Word i of a k-step: row g + 8 (i & 1), columns column(i, c) and the next, g = lane / 4 and
  // c = lane % 4.
  static constexpr int kStepColumns = 16;
  static constexpr int kWordElements = 2;
  static BIRNN_DEVICE int column(int i, int c) { return 2 * c + i / 2 * 8; }
  static BIRNN_DEVICE uint32_t word(const T (&elements)[2]) {
    return pack2(elements[0], elements[1]);
  }
  // What a state or a gradient is as operand B: who writes it for others to multiply rounds it
  // once, where each of them would have to.
  static BIRNN_DEVICE T operand(T value) { return value; }
  static BIRNN_DEVICE void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1, uint32_t) {
    mma_m16n8k16<T>(sum, a, b0, b1);
  }
};

struct Float32 {
  using Element = float;
  using Math = PreciseMath;
  static constexpr int kChunkColumns = 16;
  static constexpr bool kSplits = false, kRounds = false;
  static constexpr int kStepColumns = 8;
  static constexpr int kWordElements = 1;
  static BIRNN_DEVICE int column(int i, int c) { return c + i / 2 * 4; }
};

struct Tf32 : Float32 {
  static constexpr bool kRounds = true;  // operand() changes a value
  static BIRNN_DEVICE uint32_t word(const float (&elements)[1]) { return to_tf32(elements[0]); }
  static BIRNN_DEVICE float operand(float value) { return bits_float(to_tf32(value)); }
  static BIRNN_DEVICE void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1, uint32_t) {
    mma_m16n8k8_tf32(sum, a, b0, b1);
  }
};

// The bits of an fp32 number that tf32 keeps.
constexpr uint32_t kTf32Mask = 0xffffe000u;

struct Ieee : Float32 {
  static BIRNN_DEVICE uint32_t word(const float (&elements)[1]) { return float_bits(elements[0]); }
  static BIRNN_DEVICE float operand(float value) { return value; }
  static constexpr bool kSplits = true;
  // mask: kTf32Mask.
  static BIRNN_DEVICE void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1, uint32_t mask) {
    uint32_t upper[4], rest[4];
    BIRNN_UNROLL
    for (int i = 0; i < 4; ++i) split(a[i], mask, upper[i], rest[i]);
    uint32_t b_upper[2], b_rest[2];
    split(b0, mask, b_upper[0], b_rest[0]);
    split(b1, mask, b_upper[1], b_rest[1]);
    mma_m16n8k8_tf32(sum, rest, b_upper[0], b_upper[1]);
    mma_m16n8k8_tf32(sum, upper, b_rest[0], b_rest[1]);
    mma_m16n8k8_tf32(sum, upper, b_upper[0], b_upper[1]);
  }

 private:
  static BIRNN_DEVICE void split(uint32_t bits, uint32_t mask, uint32_t& upper, uint32_t& rest) {
    const uint32_t half_unit = (0u - mask) >> 1;  // to nearest
    upper = (bits + half_unit) & mask;
    rest = float_bits(bits_float(bits) - bits_float(upper));
  }
};

using Fp16 = SixteenBit<Half>;
using Bf16 = SixteenBit<BFloat16>;

// A lane's weights of one row tile and chunk: an operand of two k-steps.
struct WeightFragment {
  uint32_t words[2][4] = {};

  // packed: [chunk][k-step][lane] of 16 bytes.
  BIRNN_DEVICE void load(const Bits128* packed, int64_t index, int lane) {
    BIRNN_UNROLL
    for (int step = 0; step < 2; ++step) {
      const Bits128 four = packed[(index * 2 + step) * 32 + lane];
      words[step][0] = four.x;
      words[step][1] = four.y;
      words[step][2] = four.z;
      words[step][3] = four.w;
    }
  }
};

// Packs num_fragments row tiles x chunks. element(fragment, row, column) gives the weight at a row
// of 16 and a column of the chunk; a thread writes the words of one lane.
template <class Precision, class ElementAt>
BIRNN_DEVICE void pack_fragments(Bits128* packed, int64_t num_fragments, const ElementAt& element) {
  const int64_t stride = int64_t{grid_dim().x} * block_dim();
  int64_t at = int64_t{block_idx().x} * block_dim() + thread_idx();
  for (; at < num_fragments * 64; at += stride) {
    const int lane = static_cast<int>(at % 32), step = static_cast<int>(at / 32 % 2);
    uint32_t words[4];
    BIRNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      typename Precision::Element elements[Precision::kWordElements];
      const int row = lane / 4 + i % 2 * 8;
      const int column = step * Precision::kStepColumns + Precision::column(i, lane % 4);
      BIRNN_UNROLL
      for (int j = 0; j < Precision::kWordElements; ++j)
        elements[j] = element(at / 64, row, column + j);
      words[i] = Precision::word(elements);
    }
    packed[at] = Bits128{words[0], words[1], words[2], words[3]};
  }
}

// sum += weights * b, of one tile and chunk, summed up on its own; b as ldmatrix_x4 brings it.
template <class Precision>
BIRNN_DEVICE void add_chunk(float (&sum)[4], const WeightFragment& weights, const uint32_t (&b)[4],
                            uint32_t mask) {
  float chunk[4] = {};
  BIRNN_UNROLL
  for (int step = 0; step < 2; ++step)
    Precision::multiply(chunk, weights.words[step], b[2 * step], b[2 * step + 1], mask);
  BIRNN_UNROLL
  for (int i = 0; i < 4; ++i) sum[i] += chunk[i];
}

constexpr int kChunksToABranch = 4;

// Where a lane reads operand B of multiply_warp, stored column by column at `pitch` elements.
template <class T>
BIRNN_DEVICE int operand_row(int pitch) {
  constexpr int kLoadElements = 16 / sizeof(T);
  const int lane = lane_id();
  return (lane & 7) * pitch + (lane >> 3) * kLoadElements;
}

// sums [batch tile][16 rows of each row tile, 8 columns] += weights * B. base + row: B and
// the lane's operand_row, 8 columns to a batch tile. Chunks past num_chunks, the same in all lanes
// and at least 1, are left out; of row tiles past num_tiles, whose weights are zero, nobody reads
// the sums.
//
// A branch stands only between kChunksToABranch chunks: ptxas waits at a branch for the products
// and loads before it, 45 cycles a chunk where the products take 24 (LSTM in 16 bits). Chunks that
// are left out between two branches, if any are, are multiplied by the 16 bytes of zeros at base +
// zeros: by zero weights alone, what is not finite in another chunk would come in. (A predicate of
// the instructions ptxas turns into branches again.) What a chunk reads of B is asked for two
// products earlier. Few tiles are summed in two chains, whose latencies overlap.
//
// Chunks that are summed up on their own (kSplits) have a branch each: to split weights that are
// left out would take longer. mask points at kTf32Mask in shared memory, and is read anew for each
// chunk: else the compiler would split the weights of all chunks at once, before the loop over the
// steps, and spill the halves.
template <class Precision, int kRowTiles, int kChunks, int kBatchTiles>
BIRNN_DEVICE void multiply_warp(float (&sums)[kBatchTiles][kRowTiles][4],
                                const WeightFragment (&weights)[kRowTiles][kChunks],
                                const typename Precision::Element* base, int row, int pitch,
                                int num_tiles, int num_chunks, int zeros, const uint32_t* mask) {
  const auto source_of = [&](int chunk, int n) {
    return base + (row + n * 8 * pitch + chunk * Precision::kChunkColumns);
  };
  if constexpr (Precision::kSplits && kBatchTiles == 4) {
    // One row tile at a time: the sums and halves of all at once would spill. The branch, which is
    // never taken, keeps the compiler from drawing them together again.
    BIRNN_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (chunk >= num_chunks) break;
      uint32_t all[kBatchTiles][4];
      BIRNN_UNROLL
      for (int n = 0; n < kBatchTiles; ++n) ldmatrix_x4(all[n], source_of(chunk, n));
      BIRNN_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        const uint32_t tile_mask = *static_cast<const volatile uint32_t*>(mask);
        if (m >= num_tiles || tile_mask == 0) continue;
        BIRNN_UNROLL
        for (int n = 0; n < kBatchTiles; ++n)
          add_chunk<Precision>(sums[n][m], weights[m][chunk], all[n], tile_mask);
      }
    }
  } else if constexpr (Precision::kSplits) {
    uint32_t b[2][4];
    ldmatrix_x4(b[0], base + row);
    BIRNN_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (chunk >= num_chunks) break;
      const uint32_t chunk_mask = *mask;
      BIRNN_UNROLL
      for (int n = 0; n < kBatchTiles; ++n) {
        const int now = (chunk * kBatchTiles + n) & 1;
        if (n + 1 < kBatchTiles)
          ldmatrix_x4(b[now ^ 1], source_of(chunk, n + 1));
        else if (chunk + 1 < kChunks && chunk + 1 < num_chunks)
          ldmatrix_x4(b[now ^ 1], source_of(chunk + 1, 0));
        BIRNN_UNROLL
        for (int m = 0; m < kRowTiles; ++m)
          if (m < num_tiles)
            add_chunk<Precision>(sums[n][m], weights[m][chunk], b[now], chunk_mask);
      }
    }
  } else {
    constexpr int kChains = kRowTiles * kBatchTiles < 4 ? 2 : 1;
    constexpr int kLoads = kChunks * kBatchTiles, kAhead = 2, kRing = kAhead + 1;
    float second[kBatchTiles][kRowTiles][4] = {};
    uint32_t b[kRing][4];
    const auto multiply_all = [&](auto in_fours) {
      constexpr bool kInFours = decltype(in_fours)::value;
      const auto load = [&](int i) {
        // In fours there are those behind a branch that are asked for before it to look after.
        const int chunk = i / kBatchTiles, in_four = i % (kChunksToABranch * kBatchTiles);
        const bool is_sure = kInFours ? chunk < kChunksToABranch || in_four >= kAhead : chunk == 0;
        const int place = row + i % kBatchTiles * 8 * pitch + chunk * Precision::kChunkColumns;
        ldmatrix_x4(b[i % kRing], base + (is_sure || chunk < num_chunks ? place : zeros));
      };
      BIRNN_UNROLL
      for (int i = 0; i < kAhead && i < kLoads; ++i) load(i);
      BIRNN_UNROLL
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        if (chunk > 0 && chunk % kChunksToABranch == 0 && chunk >= num_chunks) break;
        BIRNN_UNROLL
        for (int n = 0; n < kBatchTiles; ++n) {
          const int i = chunk * kBatchTiles + n;
          if (i + kAhead < kLoads) load(i + kAhead);
          BIRNN_UNROLL
          for (int step = 0; step < 2; ++step) BIRNN_UNROLL
          for (int m = 0; m < kRowTiles; ++m)
            Precision::multiply(step < kChains - 1 ? second[n][m] : sums[n][m],
                                weights[m][chunk].words[step], b[i % kRing][2 * step],
                                b[i % kRing][2 * step + 1], 0u);
        }
      }
    };
    if (kChunks % kChunksToABranch == 0 && num_chunks % kChunksToABranch == 0)
      multiply_all(std::true_type{});
    else
      multiply_all(std::false_type{});
    if constexpr (kChains == 2) {
      BIRNN_UNROLL
      for (int n = 0; n < kBatchTiles; ++n) BIRNN_UNROLL
      for (int m = 0; m < kRowTiles; ++m) BIRNN_UNROLL
      for (int i = 0; i < 4; ++i) sums[n][m][i] += second[n][m][i];
    }
  }
}

using persistent::kFewColumns;

// Products of few columns of B without the matrix units, whose tiles they would leave empty: by
// multiply-adds of what a lane holds of A, exact to fp32 without a split. What a lane adds up over
// its own columns of A: of each column of B, rows g and g + 8 of each row tile, g = lane / 4.
template <int kRowTiles>
struct LaneSums {
  float sums[kFewColumns][kRowTiles][2] = {};

  // Adds the products of a chunk. columns: B from the chunk's first row on, as in multiply_warp;
  // count of them, at most kFewColumns and the same in all lanes.
  template <int kChunks>
  BIRNN_DEVICE void add(const WeightFragment (&weights)[kRowTiles][kChunks], int chunk,
                        const float* columns, int pitch, int count) {
    const float* const own = columns + lane_id() % 4;
    BIRNN_UNROLL
    for (int n = 0; n < kFewColumns; ++n) {
      if (n >= count) break;
      BIRNN_UNROLL
      for (int four = 0; four < 4; ++four) {
        const float b = own[n * pitch + four * 4];
        BIRNN_UNROLL
        for (int m = 0; m < kRowTiles; ++m) BIRNN_UNROLL
        for (int r = 0; r < 2; ++r)
          sums[n][m][r] += bits_float(weights[m][chunk].words[four / 2][four % 2 * 2 + r]) * b;
      }
    }
  }

  // Adds what the four lanes of a row have, always in the same order, to where multiply_warp puts
  // it: the first two columns are those of the lanes with lane % 4 = 0. The others add the same to
  // columns that are not there.
  BIRNN_DEVICE void add_to(float (&totals)[kRowTiles][4], int count) const {
    BIRNN_UNROLL
    for (int n = 0; n < kFewColumns; ++n) {
      if (n >= count) break;
      BIRNN_UNROLL
      for (int m = 0; m < kRowTiles; ++m) BIRNN_UNROLL
      for (int r = 0; r < 2; ++r) {
        float sum = sums[n][m][r];
        sum += shfl_xor(sum, 1);
        sum += shfl_xor(sum, 2);
        totals[m][r * 2 + n] += sum;
      }
    }
  }
};

}  // namespace birnn::cuda
