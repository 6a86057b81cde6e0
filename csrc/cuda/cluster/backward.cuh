// The backward recurrence of one direction in one kernel, by one block or one cluster of blocks for
// each tile of the batch. W_hh stays in registers for all steps. Equations: cells.h.
//
// With R blocks, block `rank` owns the units [rank * U, rank * U + U): their dgates, dc and dh. Of
// the product dh = dgates W_hh it multiplies its own columns of dgates, for all H units, and hands
// every block the part that belongs to that block's units (a reduce-scatter, 4 bytes for a unit of
// a sequence, where gathering dgates would take 6 or 8). The owner keeps a slot for each source and
// sums the slots in the order of the ranks: no atomics, the same bits in every run.
//
//   operands   A = W_hh^T [R*U, G*U] fragments in registers, B = dgates [G*U, NB] in shared memory
//   rows of A  the 16 rows of a tile are 8 pairs of units: row g is unit 2 g, row g + 8 unit 2 g
//   + 1.
//              So a lane's four sums are a pair of units of two neighbouring sequences: one push of
//              16 bytes, without shuffles
//   columns    gate * U + unit, for a vanilla RNN the unit, padded with zeros
//
// Step s undoes forward step k = S - 1 - s, S being the longest length in the tile:
//   1. s > 0: wait for the slots inbox[s & 1]; thread 0 arms their mbarrier again for step s + 2
//   2. dh = dy + the sum of the slots (at a sequence's last step: dy + dhy); the cell; dgates are
//      staged in staged[s & 1], zeros where the sequence has no step k
//   3. one barrier of the block: it shows the staged dgates to all warps, and it stands between
//      every read of inbox[s & 1] and this block's pushes of step s, for which every peer waits
//      before it pushes into inbox[s & 1] again
//   4. operands of step k - 1 are asked for; products; pushes into inbox[(s + 1) & 1]; dgates are
//      written out
// After the last step one more wait: the slots hold the gradient of hx. `staged` has two buffers
// because a fast warp may stage step s + 1 while a slow one still multiplies step s; a third is not
// needed, since step s + 2 is staged after the barrier of step s + 1. No block leaves before all
// pushes into it have landed, and none pushes after its last step.
//
// A cluster of one block exchanges through its own shared memory, where st.async is undefined, and
// the mbarriers' part is taken by a second barrier of the block at the end of a step.
//
// Instructions, by the SASS of nvcc 13.0 for sm_90a, LSTM in fp16, 2 row tiles of 8 chunks, one
// pair a thread: a step is about 800 in the text, counting every branch; no local memory and no
// MEMBAR in it (the only one is that of the cluster barrier at the start). The 32 HMMA stand within
// 66 instructions, 28 lie between the last one and the first push. Between the barrier and the
// first HMMA stand the loads of the next step's operands, 200 in the text and about half of it
// executed, none of which waits for a load: they delay the push by their own issue alone. Behind
// the pushes they would delay nothing, but have only an exchange's time to arrive: for a chip to
// decide.
#pragma once

#include "cuda/cluster/backward_sizes.h"
#include "cuda/device/device.h"
#include "cuda/warp/backward_pairs.cuh"
#include "cuda/warp/batch_tile.cuh"
#include "cuda/warp/fragments.cuh"
#include "cuda/warp/pairs.cuh"
#include "recurrence.h"

namespace birnn::cuda::reduce_scatter {

using namespace birnn::device;

// By value to the kernels.
struct Arguments {
  BackwardArguments of;                // the direction
  const Bits128* fragments = nullptr;  // pack_weights_kernel's
  int units = 0;                       // U of a block, even
  int tile_batch = 0;                  // NB, a multiple of 8
  int num_tiles = 0;                   // m16 tiles of R * U rows
  int num_chunks = 0;                  // of the columns of A
  int pitch = 0;                       // elements of a row of staged dgates
};

// ---------------------------------------------------------------------------------------------

// weight_hh [G*H, H] as operand A: [rank][row tile][chunk] fragments.
template <Cell kCell, class Precision>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kThreads, 1) void pack_weights_kernel(Arguments args,
                                                                       Bits128* packed,
                                                                       int cluster) {
  using T = typename Precision::Element;
  const T* const weight_hh = static_cast<const T*>(args.of.dir.weight_hh);
  const int H = args.of.hidden_size, U = args.units;
  const int per_rank = args.num_tiles * args.num_chunks;
  pack_fragments<Precision>(
      packed, int64_t{cluster} * per_rank, [&](int64_t fragment, int row, int chunk_column) {
        const int rank = static_cast<int>(fragment / per_rank);
        const int tile = static_cast<int>(fragment % per_rank) / args.num_chunks;
        const int chunk = static_cast<int>(fragment % per_rank) % args.num_chunks;
        const int column = chunk * Precision::kChunkColumns + chunk_column;
        const int gate = column / U, unit = rank * U + column % U;
        const int state = tile * kMatrixRows + row % 8 * 2 + row / 8;
        const bool exists = gate < kNumGates<kCell> && unit < H && state < H;
        return exists ? weight_hh[(int64_t{gate} * H + unit) * H + state] : from_float<T>(0.0f);
      });
}

// kRowTiles, kChunks: the weights that a warp holds, upper bounds. kPairs: the pairs of units, of
// one sequence each, of a thread.
template <Cell kCell, class Precision, int kRowTiles, int kChunks, int kPairs>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kThreads, 1) void cluster_backward_kernel(Arguments args) {
  using T = typename Precision::Element;
  constexpr int kBlocks = kDgatesBlocks<kCell>, kGates = kNumGates<kCell>;
  const int U = args.units, NB = args.tile_batch;
  const int cluster = static_cast<int>(cluster_size()), rank = static_cast<int>(cluster_rank());
  const int thread = static_cast<int>(thread_idx()), lane = lane_id(), warp = warp_id();
  const int first_sequence = static_cast<int>(block_idx().x) / cluster * NB;
  const int half_units = U / 2;
  const int slot_floats = U * NB;  // of one source
  const int inbox_floats = cluster * slot_floats;

  Smem shared;
  // Two inboxes, [R][NB / 2][U / 2] pieces of [2 sequences][2 units].
  float* const inbox = shared.alloc<float>(2 * inbox_floats);
  T* const staged = shared.alloc<T>(2 * NB * args.pitch);  // [2][NB][pitch]
  int* const tile_lengths = shared.alloc<int>(NB);
  MBarrier* const full = shared.alloc<MBarrier>(2);
  uint32_t* const mask = shared.alloc<uint32_t>(1);

  WeightFragment weights[kRowTiles][kChunks];
  const int own_tiles = (args.num_tiles - warp + kWarps - 1) / kWarps;
  BIRNN_UNROLL
  for (int m = 0; m < kRowTiles; ++m) BIRNN_UNROLL
  for (int chunk = 0; chunk < kChunks; ++chunk)
    if (m < own_tiles && chunk < args.num_chunks)
      weights[m][chunk].load(
          args.fragments,
          int64_t{rank * args.num_tiles + m * kWarps + warp} * args.num_chunks + chunk, lane);

  load_tile_lengths(tile_lengths, NB, args.of.lengths, first_sequence, args.of.batch_size,
                    args.of.seq_len);
  // Columns of units, gates and sequences that do not exist stay zero.
  for (int i = thread; i < 2 * NB * args.pitch; i += kThreads) staged[i] = from_float<T>(0.0f);
  if (thread == 0) *mask = kTf32Mask;
  sync_threads();  // the lengths, the zeros and the mask
  const int steps = longest_of(tile_lengths, NB);
  const uint32_t step_bytes = static_cast<uint32_t>(inbox_floats) * 4;
  if (cluster > 1) {
    if (thread == 0) {
      mbarrier_init(&full[0], 1);
      mbarrier_init(&full[1], 1);
      mbarrier_init_fence();
      if (steps > 0) mbarrier_arrive_expect_tx(&full[1], step_bytes);
      if (steps > 1) mbarrier_arrive_expect_tx(&full[0], step_bytes);
    }
    cluster_sync();  // every block has begun, and its mbarriers are there
  }

  BackwardPairs<kCell, Precision, kThreads, kPairs> pairs(args.of, tile_lengths, first_sequence,
                                                          rank * U, U, NB);
  pairs.begin(steps);
  // Where its part of dh lies in a slot, and where its dgates are staged.
  const auto in_slot = [&](int e) {
    const int n = pairs.tile_row(e);
    return (n / 2 * half_units + pairs.pair_of(e)) * 4 + n % 2 * 2;
  };
  const auto in_stage = [&](int e) {
    return pairs.tile_row(e) * args.pitch + pairs.pair_of(e) * 2;
  };

  // The parts of dh from all blocks, in the order of ranks.
  const auto add_slots = [&](int s) {
    return [&, s](int e, float (&dh)[2]) {
      const float* slot = inbox + (s & 1) * inbox_floats + in_slot(e);
      for (int source = 0; source < cluster; ++source, slot += slot_floats) {
        dh[0] += slot[0];
        dh[1] += slot[1];
      }
    };
  };
  const auto wait_for_slots = [&](int s) {
    if (cluster > 1) mbarrier_wait<Scope::kCluster>(&full[s & 1], (s - 1) >> 1 & 1);
  };
  // Where a block of dgates is staged: a GRU's n of the input, block 0, behind what is multiplied.
  const auto column_of = [&](int block) {
    if (kBlocks == kGates) return block * U;
    return block == 0 ? args.num_chunks * Precision::kChunkColumns : (block - 1) * U;
  };
  // Where this lane's sums of row tile m go, a pair of units: the rank of the block that owns it,
  // and its piece in a slot. In one register each, for as many stand beside the weights.
  constexpr int kRankShift = 16;
  int destination[kRowTiles];  // -1: rows past the last block's
  BIRNN_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    const int pair = (m * kWarps + warp) * 8 + lane / 4, owner = pair / half_units;
    const int piece = lane % 4 * half_units + pair % half_units;
    destination[m] = owner < cluster ? owner << kRankShift | piece : -1;
  }

  for (int s = 0; s < steps; ++s) {
    const int k = steps - 1 - s;
    if (s > 0) {
      wait_for_slots(s);
      if (cluster > 1 && thread == 0 && s + 2 <= steps)
        mbarrier_arrive_expect_tx(&full[s & 1], step_bytes);
    }
    T* const stage = staged + (s & 1) * NB * args.pitch;
    BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e) {
      if (pairs.length[e] < 0) continue;
      Pair<T> dgates[kBlocks];
      pairs.undo(e, k, add_slots(s), dgates);
      BIRNN_UNROLL
      for (int block = 0; block < kBlocks; ++block)
        store_pair(stage, in_stage(e) + column_of(block), dgates[block], true, true);
    }
    sync_threads();  // staged dgates to all warps; reads of inbox[s & 1] before pushes of step s

    pairs.fetch(k - 1);
    const int next = (s + 1) & 1;
    const int slot = next * inbox_floats + rank * slot_floats;
    for (int column = 0; column < NB; column += 8) {
      float sums[1][kRowTiles][4] = {};
      multiply_warp<Precision>(sums, weights, stage + column * args.pitch, args.pitch, own_tiles,
                               args.num_chunks, mask);
      BIRNN_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        if (m >= own_tiles || destination[m] < 0) continue;
        const Bits128 four{float_bits(sums[0][m][0]), float_bits(sums[0][m][2]),
                           float_bits(sums[0][m][1]), float_bits(sums[0][m][3])};
        const int piece = destination[m] & ((1 << kRankShift) - 1);
        float* const target = inbox + slot + (piece + column / 2 * half_units) * 4;
        const uint32_t owner = static_cast<uint32_t>(destination[m]) >> kRankShift;
        if (cluster > 1)
          st_async(map_rank(target, owner), four, map_rank(&full[next], owner));
        else
          *reinterpret_cast<Bits128*>(target) = four;
      }
    }

    // Off the way to the peers: what this thread has staged, to its row.
    BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e) {
      if (pairs.length[e] < 0) continue;
      BIRNN_UNROLL
      for (int block = 0; block < kBlocks; ++block)
        pairs.store_dgates(e, k, block,
                           load_pair<T>(stage, in_stage(e) + column_of(block), true, true));
    }
    if (cluster == 1) sync_threads();  // the slots of step s + 1
  }

  if (steps > 0) wait_for_slots(steps);
  pairs.finish(steps, add_slots(steps));
}

}  // namespace birnn::cuda::reduce_scatter
