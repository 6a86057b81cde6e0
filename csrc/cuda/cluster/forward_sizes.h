// How the cluster forward kernel divides a shape, and what it asks of the device: plain host code
// that the kernel's launcher and the plan share.
#pragma once

#include <cstdint>

#include "cuda/device/device_types.h"
#include "cuda/persistent/sizes.h"
#include "cuda/recurrence_cuda.h"
#include "recurrence.h"

namespace birnn::cuda::all_gather {

using namespace persistent;

constexpr int kThreads = 256;  // at most
constexpr int kWarps = kThreads / 32;
constexpr int kMaxCluster = 16;

// A group is the units whose gates one warp multiplies: as many m16 tiles of rows of W_hh as the
// cell has gates, or, for an LSTM, half as many, each with two gates of half the units.
constexpr int group_units(Cell cell) { return cell == Cell::kLstm ? 8 : 16; }
constexpr int row_tiles(Cell cell) { return cell == Cell::kLstm ? 2 : num_gates(cell); }
// Blocks of a row of gates that the kernel reads or writes.
constexpr int row_blocks(Cell cell) {
  return reserve_blocks(cell) > num_gates(cell) ? reserve_blocks(cell) : num_gates(cell);
}
// Steps whose gates are asked for ahead. Four hide the latency of global memory, 0.6 to 0.8 us,
// even behind the shortest steps, of 0.3 us. Where a slot is large a step is longer, too.
constexpr int num_stages(int batch_tiles, int64_t element_bytes) {
  const int64_t size = batch_tiles * element_bytes;
  return size >= 16 ? 2 : size >= 8 ? 3 : 4;
}

// What is compiled: the fragments of weights, row tiles x chunks, that a warp has registers for,
// the batch tiles, and whether further fragments come from shared memory. The first one that is
// large enough is taken. Only those with weights in shared memory ask how rows are aligned: in the
// others, where a step is short, pieces of a row are 16 bytes.
struct Instance {
  int fragments, batch_tiles;
  bool shared_weights;

  // Chunks in registers. A GRU has fewer: the n of the input stands beside the sums. So has fp32
  // with four batch tiles, where those of a chunk stand beside many, and what may hand on h times a
  // mask in fp32 with more than one.
  constexpr int chunks(Cell cell, int64_t element_bytes) const {
    const bool is_wide = element_bytes == 4 && row_tiles(cell) > 1;
    const bool is_full = is_wide && batch_tiles == 4, masks = is_wide && shared_weights;
    const int held = fragments / row_tiles(cell) - (is_full || (masks && batch_tiles == 2) ? 1 : 0);
    const int gru_limit = batch_tiles == 1   ? 6
                          : batch_tiles == 2 ? (masks ? 3 : 4)
                          : is_full          ? (masks ? 1 : 2)
                                             : 3;
    return cell == Cell::kGru && held > gru_limit ? gru_limit : held;
  }
};
#if defined(BIRNN_ONE_INSTANCE)  // for tests that build the kernel many times
constexpr Instance kInstances[] = {{8, 2, true}};
constexpr int kFewBatchTiles = 2;
#elif defined(BIRNN_SMALL_INSTANCES)  // for tests on small shapes, which take the same path
constexpr Instance kInstances[] = {{6, 1, true}, {9, 4, false}, {9, 4, true}};
#else
constexpr Instance kInstances[] = {{16, 1, false}, {16, 2, false}, {14, 4, false},
                                   {16, 1, true},  {16, 2, true},  {12, 4, true}};
#endif
#if !defined(BIRNN_ONE_INSTANCE)
// Instances of so many batch tiles multiply few sequences without the matrix units. Those of more
// are not launched for them, and would spill.
constexpr int kFewBatchTiles = 1;
#endif
constexpr int kNumInstances = sizeof kInstances / sizeof kInstances[0];

using Tiling = ClusterForwardTiling;

struct Sizes {
  int num_groups = 0;     // of the hidden units
  int groups = 0;         // of a block
  int num_chunks = 0;     // of 64 bytes of the columns of W_hh
  int warp_chunks = 0;    // that a warp multiplies, at most
  int shared_chunks = 0;  // of them in shared memory
  int pitch = 0;          // elements of a row of h
  int threads = 0;
  int instance = -1;  // -1: none is large enough
  int64_t num_clusters = 0;
  int64_t shared_bytes = 0;
  int64_t fragment_bytes = 0;  // of the workspace; behind them the words of resets
  int64_t workspace_bytes = 0;

  // aligned: whether the rows of the arrays are, as far as the hidden size allows it.
  Sizes(const RecurrenceShape& shape, const Tiling& tiling, bool aligned = true) {
    const int64_t bytes = element_bytes(shape.element);
    const bool in_pieces = aligned && shape.hidden_size * bytes % 16 == 0;
    const int64_t columns = kChunkBytes / bytes, R = tiling.cluster_size, KS = tiling.k_split;
    const int64_t units = group_units(shape.cell), tiles = row_tiles(shape.cell);
    if (!takes(shape) || R < 1 || R > kMaxCluster || tiling.batch_tiles < 1 || KS < 1) return;
    const int64_t G = ceil_div(shape.hidden_size, units), K = ceil_div(shape.hidden_size, columns);
    num_groups = static_cast<int>(G);
    groups = static_cast<int>(ceil_div(G, R));
    num_chunks = static_cast<int>(K);
    warp_chunks = static_cast<int>(ceil_div(K, KS));
    if (groups * KS > kWarps) return;
    // Every block owns units, and every warp multiplies.
    if ((R - 1) * groups >= G || (KS - 1) * warp_chunks >= K) return;
    threads = static_cast<int>(groups * KS * 32);
    const int64_t NB = 8 * tiling.batch_tiles;
    num_clusters = ceil_div(shape.batch_size, NB);
    const int64_t row_bytes = (G * units > K * columns ? G * units : K * columns) * bytes;
    pitch = static_cast<int>(row_pitch(row_bytes) / bytes);
    fragment_bytes = G * K * tiles * kFragmentBytes;
    workspace_bytes = fragment_bytes + reset_bytes(shape);

    const int64_t slot_bytes = row_blocks(shape.cell) * NB * units * bytes;
    shared_bytes = 2 * NB * pitch * bytes +
                   groups * num_stages(tiling.batch_tiles, bytes) * slot_bytes +
                   groups * NB * units * bytes * (shape.recurrent_dropout ? 3 : 1) +
                   (KS > 1 ? groups * KS * tiling.batch_tiles * tiles * kSumsBytes : 0) +
                   groups * num_sums(shape.cell) * units * 4 + shared_size(NB * 4) +
                   shared_size(2 * sizeof(device::MBarrier)) + 2 * 16 + 12 * 4;
    for (int i = kNumInstances - 1; i >= 0; --i) {
      const int held = kInstances[i].chunks(shape.cell, bytes);
      const int left = warp_chunks > held ? warp_chunks - held : 0;
      if (kInstances[i].batch_tiles != tiling.batch_tiles) continue;
      if ((left > 0 || !in_pieces || shape.recurrent_dropout) && !kInstances[i].shared_weights)
        continue;
      if (shared_bytes + groups * KS * left * tiles * kFragmentBytes > kMaxSharedBytes) continue;
      instance = i;
      shared_chunks = left;
    }
    shared_bytes += groups * KS * shared_chunks * tiles * kFragmentBytes;
  }
};

}  // namespace birnn::cuda::all_gather
