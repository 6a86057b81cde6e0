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
//   1. s > 0: wait for the slots inbox[s & 1]
//   2. dh = dy + the sum of the slots (at a sequence's last step: dy + dhy); the cell; dgates are
//      staged in staged[s & 1], zeros where the sequence has no step k
//   3. one barrier of the block: it shows the staged dgates to all warps, and it stands between
//      every read of inbox[s & 1] and this block's pushes of step s, for which every peer waits
//      before it pushes into inbox[s & 1] again
//   4. products; pushes into inbox[(s + 1) & 1]; thread 0 arms the mbarrier that it has waited for,
//      for step s + 2: its phase cannot end before that arrival, whatever has come by then
//   5. off the way to the peers: operands of step k - 2 are copied to shared memory, each thread's
//      own; dgates are written out and added to the gradients of the biases, by the half of the
//      threads that own no pair, if there is one
// After the last step one more wait: the slots hold the gradient of hx. `staged` has two buffers
// because a fast warp may stage step s + 1 while a slow one still multiplies or writes out step s;
// a third is not needed, since step s + 2 is staged after the barrier of step s + 1. No block
// leaves before all pushes into it have landed, and none pushes after its last step.
//
// A cluster of one block exchanges through its own shared memory, where st.async is undefined, and
// the mbarriers' part is taken by a second barrier of the block at the end of a step.
//
// By the machine code for sm_90a (python -m benchmarks steps; LSTM, fp16, H = 256, B = 32, R = 8, a
// warp's own cycles without a wait for others), a step takes 906, and 603 from the wait to the
// last push; before the changes below 1651 and 1225:
//   operands two steps ahead in shared memory: as loads behind the pushes they kept the next wait,
//   whose fence is one for all loads under way, for 458 cycles                chain 1467 -> 927
//   a step that all sequences have asks nothing of each; slots summed by
//   eights; products by zeros in place of predicates; one loop for columns    chain 927 -> 642
//   addresses that do not change in registers                                 serial 1068 -> 1012
//   fetches of inner steps by pointers that only add, without tests of what
//   is known (each copy had 4 instructions of address and one of a null
//   pointer; ptxas puts 3 more before each, which stay)                       serial 1012 -> 891
// Since then the gradients of the biases are summed up here, and those of cell states taken, in an
// inner step of their own: serial 891 -> 906 where none are given.
#pragma once

#include <type_traits>

#include "cuda/cluster/backward_sizes.h"
#include "cuda/device/device.h"
#include "cuda/warp/backward_pairs.cuh"
#include "cuda/warp/batch_tile.cuh"
#include "cuda/warp/bias_gradients.cuh"
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
  int num_clusters = 0;                // of the launch
};

// ---------------------------------------------------------------------------------------------

// weight_hh [G*H, H] as operand A: [rank][row tile][chunk] fragments. And the words of resets.
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
  pack_resets(args.of.resets, args.of.dir.resets, args.of.lengths, args.of.dir.reverse,
              args.of.seq_len, args.of.batch_size);
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

  // First what has a fixed place: its addresses are constants on the way to the peers.
  Smem shared;
  MBarrier* const full = shared.alloc<MBarrier>(2);
  uint32_t* const mask = shared.alloc<uint32_t>(1);
  T* const zeros = shared.alloc<T>(16 / sizeof(T));
  int* const constants = shared.alloc<int>(8);
  using Pairs = BackwardPairs<kCell, Precision, kThreads, kPairs, true>;
  auto* const operands =  // [2][operands][pairs][threads]
      shared.alloc<typename Pairs::Bits>(2 * Pairs::kOperands * kPairs * kThreads);
  using Biases = BiasGradients<kCell, T, kThreads, kPairs, kBiasesInShared<T, kRowTiles, kPairs>>;
  Bits64* const bias_slots = shared.alloc<Bits64>(Biases::kSlots);
  // [2][kMaxTileSequences] words, [pairs][threads] of a mask
  const int mask_words = args.of.recurrent_mask ? Pairs::kMaskWords : 0;
  uint32_t* const given = shared.alloc<uint32_t>(2 * kMaxTileSequences + mask_words);
  int* const tile_lengths = shared.alloc<int>(NB);
  // Two inboxes, [R][NB / 2][U / 2] pieces of [2 sequences][2 units].
  float* const inbox = shared.alloc<float>(2 * inbox_floats);
  T* const staged = shared.alloc<T>(2 * NB * args.pitch);  // [2][NB][pitch]

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
  if (thread == 0) {
    *mask = kTf32Mask;
    *reinterpret_cast<Bits128*>(zeros) = Bits128{};
    constants[0] = cluster;
    constants[1] = args.pitch;
    constants[2] = args.num_chunks;
    constants[3] = NB;
    constants[4] = half_units;
    constants[5] = args.num_chunks * Precision::kChunkColumns;
    constants[6] = args.num_tiles % kWarps == 0 && args.num_tiles * kMatrixRows == cluster * U;
  }
  sync_threads();  // the lengths, the zeros, the mask and the constants
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

  Pairs pairs(args.of, tile_lengths, first_sequence, rank * U, U, NB, thread, operands, given);
  pairs.begin(steps);
  if (args.of.resets) sync_threads();  // the first words of resets
  // Who writes dgates out: where half of the threads own no pair, they do; unless weights that are
  // split leave no registers for pairs beside the thread's own.
  constexpr bool kOthersMay = kPairs == 1 && !(Precision::kSplits && kRowTiles == 8);
  const bool others_write = kOthersMay && half_units * NB * 2 <= kThreads;
  const int writer = others_write ? (thread + kThreads / 2) % kThreads : thread;
  const Pairs written(args.of, tile_lengths, first_sequence, rank * U, U, NB, writer);
  Biases bias_gradients(bias_slots, thread);
  // What every step asks for, in registers: a constant of the launch the compiler loads anew at
  // each use, unless it comes out of shared memory; what a thread can compute from its number it
  // computes anew, unless a shuffle has made it.
  const bool has_cluster = constants[0] > 1;
  const int sources = constants[0], pitch = constants[1], num_chunks = constants[2];
  const int num_columns = constants[3], half = constants[4], after_chunks = constants[5];
  const bool all_rows = constants[6] != 0;
  const auto kept = [&](int value) { return shfl(value, lane); };
  // Where its part of dh lies in a slot, and where its dgates are staged.
  int in_slot[kPairs], in_stage[kPairs], from_stage[kPairs];
  BIRNN_UNROLL
  for (int e = 0; e < kPairs; ++e) {
    const int n = pairs.tile_row(e);
    in_slot[e] = kept((n / 2 * half_units + pairs.pair_of(e)) * 4 + n % 2 * 2);
    in_stage[e] = kept(n * args.pitch + pairs.pair_of(e) * 2);
    from_stage[e] = kept(written.tile_row(e) * args.pitch + written.pair_of(e) * 2);
  }

  // The parts of dh from all blocks, in the order of ranks, some at once.
  const auto add_slots = [&](int s) {
    return [&, s](int e, float (&dh)[2]) {
      const float* slot = inbox + (s & 1) * inbox_floats + in_slot[e];
      const auto add = [&](auto count) {
        constexpr int kCount = decltype(count)::value;
        Bits64 parts[kCount];
        BIRNN_UNROLL
        for (int i = 0; i < kCount; ++i)
          parts[i] = *reinterpret_cast<const Bits64*>(slot + i * slot_floats);
        BIRNN_UNROLL
        for (int i = 0; i < kCount; ++i) {
          dh[0] += bits_float(parts[i].x);
          dh[1] += bits_float(parts[i].y);
        }
        slot += kCount * slot_floats;
      };
      BIRNN_UNROLL_BY(1)
      for (int i = sources; i >= 8; i -= 8) add(std::integral_constant<int, 8>{});
      if (sources & 4) add(std::integral_constant<int, 4>{});
      BIRNN_UNROLL_BY(1)
      for (int i = sources & 3; i > 0; --i) add(std::integral_constant<int, 1>{});
    };
  };
  const auto wait_for_slots = [&](int s) {
    if (has_cluster) mbarrier_wait<Scope::kCluster>(&full[s & 1], (s - 1) >> 1 & 1);
  };
  // Where a block of dgates is staged: a GRU's n of the input, block 0, behind what is multiplied.
  const auto column_of = [&](int block) {
    if (kBlocks == kGates) return block * 2 * half;
    return block == 0 ? after_chunks : (block - 1) * 2 * half;
  };
  // And where it is before it is rounded for the product, to be written out.
  const auto exact_column_of = [&](int block) {
    return Precision::kRounds ? after_chunks + block * 2 * half : column_of(block);
  };
  // Where this lane's sums of row tile m go, a pair of units: the block that owns it, by where its
  // `full` is, and the place of the piece in the block that sums. Everything that is pushed to lies
  // at the same distance from `full`.
  const uint32_t to_inbox = static_cast<uint32_t>(kept(static_cast<int>(
      reinterpret_cast<const char*>(inbox) - reinterpret_cast<const char*>(full))));
  ClusterAddress peers[kRowTiles]{};
  int pieces[kRowTiles];  // -1: rows past the last block's
  BIRNN_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    const int pair = (m * kWarps + warp) * 8 + lane / 4, owner = pair / half_units;
    const bool exists = owner < cluster;
    const int piece = rank * slot_floats + (lane % 4 * half_units + pair % half_units) * 4;
    pieces[m] = kept(exists ? piece : -1);
    if (cluster > 1) peers[m] = map_rank(full, static_cast<uint32_t>(exists ? owner : rank));
  }
  const bool arms = kept(cluster > 1 && thread == 0) != 0;
  const int to_zeros = static_cast<int>(zeros - staged);
  const int lane_row = kept(operand_row<T>(args.pitch));

  for (int s = 0; s < steps; ++s) {
    const int k = steps - 1 - s;
    const bool inner = s > 0 && pairs.is_inner(k);  // known before the wait
    if (s > 0) wait_for_slots(s);
    cp_async_wait<1>();  // what the thread has asked for of step k
    T* const stage = staged + (s & 1) * num_columns * pitch;
    BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e) {
      if (pairs.length[e] < 0) continue;
      Pair<T> dgates[kBlocks];
      if (inner)
        pairs.template undo<StepKind::kInner>(e, k, add_slots(s), dgates);
      else if (s > 0 && pairs.is_inner_with_more(k))
        pairs.template undo<StepKind::kInnerWithMore>(e, k, add_slots(s), dgates);
      else
        pairs.template undo<StepKind::kAny>(e, k, add_slots(s), dgates);
      BIRNN_UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        const Pair<T>& exact = dgates[block];
        const Pair<T> rounded{Precision::operand(exact.first), Precision::operand(exact.second)};
        if (!Precision::kRounds || block >= kBlocks - kGates)
          store_pair(stage, in_stage[e] + column_of(block), rounded, true, true);
        if constexpr (Precision::kRounds)
          store_pair(stage, in_stage[e] + exact_column_of(block), exact, true, true);
      }
    }
    sync_threads();  // staged dgates to all warps; reads of inbox[s & 1] before pushes of step s

    const int next = (s + 1) & 1;
    int column = 0;
    do {
      float sums[1][kRowTiles][4] = {};
      multiply_warp<Precision>(sums, weights, staged,
                               ((s & 1) * num_columns + column) * pitch + lane_row, pitch,
                               own_tiles, num_chunks, to_zeros, mask);
      const auto piece_of = [&](int m) {
        return Bits128{float_bits(sums[0][m][0]), float_bits(sums[0][m][2]),
                       float_bits(sums[0][m][1]), float_bits(sums[0][m][3])};
      };
      const int to_slot = next * inbox_floats + column * half * 2;
      if (has_cluster) {
        const auto push = [&](int m) {
          st_async(peers[m] + (to_inbox + static_cast<uint32_t>(to_slot + pieces[m]) * 4),
                   piece_of(m), peers[m] + next * static_cast<uint32_t>(sizeof(MBarrier)));
        };
        BIRNN_UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
          if (m > 0 && m >= own_tiles) break;
          if (all_rows || pieces[m] >= 0) push(m);  // lanes that all have a piece need not part
        }
      } else {
        BIRNN_UNROLL
        for (int m = 0; m < kRowTiles; ++m)
          if (pieces[m] >= 0)
            *reinterpret_cast<Bits128*>(inbox + to_slot + pieces[m]) = piece_of(m);
      }
      column += 8;
    } while (column < num_columns);
    // The mbarrier that has been waited for, for step s + 2: its phase cannot end before this
    // arrival, whatever has come by then.
    if (arms && s > 0 && s + 2 <= steps) mbarrier_arrive_expect_tx(&full[s & 1], step_bytes);

    // Off the way to the peers: what step k - 2 reads, and what has been staged to its row.
    pairs.fetch(k - 2);
    BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e) {
      if (written.length[e] < 0) continue;
      BIRNN_UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        const auto dgates = load_pair<T>(stage, from_stage[e] + exact_column_of(block), true, true);
        written.store_dgates(e, k, block, dgates);
        bias_gradients.add(e, block, dgates);
      }
    }
    if (!has_cluster) sync_threads();  // the slots of step s + 1
  }

  if (steps > 0) wait_for_slots(steps);
  pairs.finish(steps, add_slots(steps));
  bias_gradients.finish(args.of, rank * U, U, NB, writer, first_sequence / NB, args.num_clusters,
                        inbox);
}

// The gradients of the biases from the sums of some clusters, in their order. A thread to each unit
// of a block of dgates.
template <Cell kCell, class T>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kThreads, 1) void sum_biases_kernel(Arguments args) {
  const int H = args.of.hidden_size, columns = kDgatesBlocks<kCell> * H;
  const int column = static_cast<int>(block_idx().x) * kThreads + static_cast<int>(thread_idx());
  if (column >= columns) return;
  float sum = 0.0f;
  for (int group = 0; group < args.num_clusters; ++group)
    sum += args.of.bias_sums[int64_t{group} * columns + column];
  BiasGradients<kCell, T, kThreads, 1>::store(args.of.dir, H, column / H, column % H, sum);
}

}  // namespace birnn::cuda::reduce_scatter
