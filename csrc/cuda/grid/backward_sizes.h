// How the grid backward kernel divides a shape, and what it asks of the device: plain host code
// that the kernel's launcher and the plan share.
#pragma once

#include <cstdint>

#include "cuda/device/device_types.h"
#include "cuda/persistent/backward_arguments.h"
#include "cuda/persistent/sizes.h"
#include "cuda/recurrence_cuda.h"
#include "recurrence.h"

namespace birnn::cuda::gather_reduce {

using namespace persistent;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxBlocks = 256;     // of a direction
constexpr int kMaxBatchTiles = 16;  // of 8 sequences

// What is compiled: the row tiles and chunks of weights that a warp holds in registers, whether
// more chunks lie in shared memory, the pairs of units of a thread, and the bytes of the largest
// element: operands in fp32 take twice the registers.
struct Instance {
  int row_tiles, chunks;
  bool rest;
  int pairs;
  int64_t element_bytes;
  Cells cells = kAll;  // others would spill
  constexpr bool is_compiled(Cell cell, int64_t bytes) const {
    return bytes <= element_bytes && has_cell(cells, cell);
  }
};
#if defined(BIRNN_ONE_INSTANCE)  // for tests that build the kernel many times
constexpr Instance kInstances[] = {{2, 1, true, 1, 4}};
#elif defined(BIRNN_SMALL_INSTANCES)  // for tests on small shapes, which take the same path
constexpr Instance kInstances[] = {{1, 2, false, 1, 4}, {4, 1, true, 2, 4}};
#else
constexpr Instance kInstances[] = {
    {2, 4, false, 1, 4}, {2, 6, false, 1, 2}, {4, 4, false, 1, 2, kRnn | kLstm},
    {8, 2, false, 1, 2}, {6, 1, true, 1, 4},  {3, 4, true, 1, 2},
    {4, 2, true, 2, 4},  {3, 1, true, 4, 2}};
#endif
constexpr int kNumInstances = sizeof kInstances / sizeof kInstances[0];

// Whether the threads' sums of the biases are in shared memory, for want of registers: of two pairs
// of units to a thread they have some, and weights take the shared memory.
constexpr bool biases_in_shared(int pairs) { return pairs != 2; }
template <int kPairs>
constexpr bool kBiasesInShared = biases_in_shared(kPairs);

using Tiling = GridBackwardTiling;

struct Sizes {
  int row_teams = 0;       // P
  int column_teams = 0;    // Q
  int units = 0;           // U of a block, even
  int tile_batch = 0;      // NB
  int num_tiles = 0;       // m16 tiles of a row team's Q * U rows of W_hh^T
  int num_chunks = 0;      // of 64 bytes, of a column team's P * G * U columns
  int warp_chunks = 0;     // of a warp, at most
  int instance = -1;       // -1: none is large enough
  int64_t num_blocks = 0;  // of the launch
  int64_t num_threads = kThreads;
  int64_t shared_bytes = 0;
  // Of the workspace, one direction.
  int64_t fragment_bytes = 0, gates_bytes = 0, sums_bytes = 0, bias_sums_bytes = 0;
  int64_t workspace_bytes = 0;

  Sizes(const RecurrenceShape& shape, const Tiling& tiling, int num_directions) {
    if (!takes(shape) || tiling.num_blocks < 1 || tiling.num_blocks > kMaxBlocks) return;
    if (tiling.batch_tiles < 1 || tiling.batch_tiles > kMaxBatchTiles) return;
    if (num_directions < 1 || num_directions > 2) return;
    double least = 0;
    for (int Q = 1; Q <= tiling.num_blocks; ++Q) {
      if (tiling.num_blocks % Q != 0) continue;
      if (tiling.column_teams != 0 && tiling.column_teams != Q) continue;
      for (int i = 0; i < kNumInstances; ++i) {
        Sizes candidate;
        const double cycles = candidate.divide(shape, tiling, num_directions, Q, kInstances[i]);
        if (cycles == 0 || (instance >= 0 && cycles >= least)) continue;
        least = cycles;
        *this = candidate;
        instance = i;
      }
    }
  }

 private:
  Sizes() = default;

  // Returns an estimate of the cycles of a step's exchange, 0 if the instance does not hold it.
  double divide(const RecurrenceShape& shape, const Tiling& tiling, int num_directions, int Q,
                const Instance& held) {
    const int64_t bytes = element_bytes(shape.element);
    const int64_t blocks = tiling.num_blocks, P = blocks / Q, G = num_gates(shape.cell);
    const int64_t U = ceil_div(ceil_div(shape.hidden_size, blocks), 2) * 2;
    row_teams = static_cast<int>(P);
    column_teams = Q;
    units = static_cast<int>(U);
    tile_batch = 8 * tiling.batch_tiles;
    num_tiles = static_cast<int>(ceil_div(Q * U, kMatrixRows));
    num_chunks = static_cast<int>(ceil_div(P * G * U * bytes, kChunkBytes));
    warp_chunks = static_cast<int>(ceil_div(num_chunks, kWarps));
    num_blocks = num_directions * blocks;
    if (!held.is_compiled(shape.cell, bytes)) return 0;
    if (num_tiles > held.row_tiles || U / 2 * tile_batch > int64_t{held.pairs} * kThreads) return 0;

    const int64_t warp_rest = warp_chunks > held.chunks ? warp_chunks - held.chunks : 0;
    if (warp_rest > 0 && !held.rest) return 0;
    const int64_t rest_bytes = warp_rest * kWarps * num_tiles * kFragmentBytes;
    const int64_t sums_of_warps = int64_t{kWarps} * num_tiles * kSumsBytes;
    const int64_t bias_slots = biases_in_shared(held.pairs)
                                   ? int64_t{held.pairs} * dgates_blocks(shape.cell) * kThreads * 8
                                   : 0;
    shared_bytes = 2 * sums_of_warps + rest_bytes + bias_slots + shared_size(tile_batch * 4) + 16 +
                   shared_size(sizeof(BackwardArguments)) +
                   shared_bytes_of_given(shape, held.pairs, kThreads);
    if (shared_bytes > kMaxSharedBytes) return 0;
    fragment_bytes = blocks * num_tiles * num_chunks * kFragmentBytes;
    gates_bytes = int64_t{2} * Q * tiling.batch_tiles * num_chunks * kFragmentBytes;
    sums_bytes = Q > 1 ? int64_t{2} * blocks * Q * tile_batch * U * 8 : 0;
    bias_sums_bytes = dgates_blocks(shape.cell) * shape.hidden_size * 4;
    workspace_bytes = num_directions * (fragment_bytes + gates_bytes + sums_bytes +
                                        bias_sums_bytes + reset_bytes(shape));

    // Cycles at 1.75 GHz: of L2 5.5 TB/s in all and 64 B a cycle of a block, of shared memory 128 B
    // a cycle, 0.6 us a hop.
    const double from_all = 5.5e12 / 1.75e9 / static_cast<double>(num_blocks);
    const double rate = from_all < 64 ? from_all : 64;
    const double through_l2 =
        static_cast<double>(num_chunks * kFragmentBytes + (Q > 1 ? 2 * Q * U * 8 * 8 : 0)) / rate;
    const double through_shared = static_cast<double>(2 * sums_of_warps + rest_bytes) / 128;
    const double hop = 0.6e-6 * 1.75e9;
    return (Q > 1 ? 2 : 1) * hop + tiling.batch_tiles * (through_l2 + through_shared);
  }
};

}  // namespace birnn::cuda::gather_reduce
