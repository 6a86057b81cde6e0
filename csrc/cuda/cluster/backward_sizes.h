// How the cluster backward kernel divides a shape, and what it asks of the device: plain host code
// that the kernel's launcher and the plan share.
#pragma once

#include <cstdint>

#include "cuda/device/device_types.h"
#include "cuda/persistent/backward_arguments.h"
#include "cuda/persistent/sizes.h"
#include "cuda/recurrence_cuda.h"
#include "recurrence.h"

namespace birnn::cuda::reduce_scatter {

using namespace persistent;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxCluster = 16;
constexpr int kMaxBatchTiles = 16;  // of 8 sequences

// What is compiled: the row tiles and chunks of weights that a warp holds in registers, and the
// pairs of units of a thread, and of which cells in 16 and in 32 bits. The first one that is large
// enough is taken.
struct Instance {
  int row_tiles, chunks, pairs;
  Cells of_16 = kAll, of_32 = kAll;
  constexpr bool is_compiled(Cell cell, int64_t element_bytes) const {
    return has_cell(element_bytes == 4 ? of_32 : of_16, cell);
  }
};
#if defined(BIRNN_ONE_INSTANCE)  // for tests that build the kernel many times
constexpr Instance kInstances[] = {{2, 8, 2}};
#elif defined(BIRNN_SMALL_INSTANCES)  // for tests on small shapes, which take the same path
constexpr Instance kInstances[] = {{1, 4, 1}, {2, 8, 2}};
#else
constexpr Instance kInstances[] = {{1, 4, 1},
                                   {1, 4, 2},
                                   {2, 8, 1},
                                   {2, 8, 2},
                                   {4, 4, 1, kAll, kRnn | kGru},
                                   {4, 4, 2, kAll, kRnn | kGru},
                                   {1, 16, 1, kNoCell, kGated},
                                   {8, 2, 1, kRnn, kNoCell}};
#endif
constexpr int kNumInstances = sizeof kInstances / sizeof kInstances[0];

// Whether the threads' sums of the biases are in shared memory: products in fp32 leave them no
// registers, nor do four row tiles beside two pairs of units.
constexpr bool biases_in_shared(int64_t element_bytes, int row_tiles, int pairs) {
  return element_bytes == 4 || (row_tiles == 4 && pairs == 2);
}
template <class T, int kRowTiles, int kPairs>
constexpr bool kBiasesInShared = biases_in_shared(sizeof(T), kRowTiles, kPairs);

using Tiling = ClusterBackwardTiling;

struct Sizes {
  int units = 0;       // U of a block, even
  int tile_batch = 0;  // NB
  int num_tiles = 0;   // m16 tiles of the R * U rows of W_hh^T
  int num_chunks = 0;  // of 64 bytes of the G * U columns
  int pitch = 0;       // elements of a row of staged dgates
  int instance = -1;   // -1: none is large enough
  int64_t num_clusters = 0;
  int64_t shared_bytes = 0;
  // Of the workspace, one behind the other: the fragments, the sums of the biases; then the words
  // of resets.
  int64_t fragment_bytes = 0, bias_bytes = 0;
  int64_t workspace_bytes = 0;

  Sizes(const RecurrenceShape& shape, const Tiling& tiling) {
    const int64_t bytes = element_bytes(shape.element);
    const int64_t columns = kChunkBytes / bytes, R = tiling.cluster_size;
    const int64_t G = num_gates(shape.cell);
    if (!takes(shape) || R < 1 || R > kMaxCluster) return;
    if (tiling.batch_tiles < 1 || tiling.batch_tiles > kMaxBatchTiles) return;
    const int64_t U = ceil_div(ceil_div(shape.hidden_size, R), 2) * 2;
    units = static_cast<int>(U);
    tile_batch = 8 * tiling.batch_tiles;
    num_clusters = ceil_div(shape.batch_size, tile_batch);
    num_tiles = static_cast<int>(ceil_div(R * U, kMatrixRows));
    num_chunks = static_cast<int>(ceil_div(G * U, columns));
    // Behind the columns that are multiplied: a GRU's n of the input; of fp32, which may be rounded
    // for the product, all of them as they are.
    const int64_t exact = bytes == 4 ? dgates_blocks(shape.cell) : shape.cell == Cell::kGru ? 1 : 0;
    const int64_t row_bytes = (num_chunks * columns + exact * U) * bytes;
    pitch = static_cast<int>(row_pitch(row_bytes) / bytes);
    const int64_t pairs = ceil_div(U / 2 * tile_batch, kThreads);
    shared_bytes = shared_size(2 * R * U * tile_batch * 4) +
                   shared_size(2 * tile_batch * pitch * bytes) + shared_size(tile_batch * 4) +
                   shared_size(2 * sizeof(device::MBarrier)) + 2 * 16 + 8 * 4;
    for (int i = kNumInstances - 1; i >= 0; --i)
      if (kInstances[i].row_tiles * kWarps >= num_tiles && kInstances[i].chunks >= num_chunks &&
          kInstances[i].pairs >= pairs)
        instance = i;
    if (instance >= 0) {
      const int row_tiles = kInstances[instance].row_tiles, held_pairs = kInstances[instance].pairs;
      const int64_t held = held_pairs * kThreads;  // pairs of units, of a block
      shared_bytes += 2 * operand_arrays(shape.cell) * held * 2 * bytes;  // what two steps read
      if (biases_in_shared(bytes, row_tiles, held_pairs))
        shared_bytes += dgates_blocks(shape.cell) * held * 2 * 4;
      shared_bytes += shared_bytes_of_given(shape, held_pairs, kThreads);
    }
    fragment_bytes = R * num_tiles * num_chunks * kFragmentBytes;
    bias_bytes = num_clusters * dgates_blocks(shape.cell) * shape.hidden_size * 4;
    workspace_bytes = fragment_bytes + bias_bytes + reset_bytes(shape);
  }
};

}  // namespace birnn::cuda::reduce_scatter
