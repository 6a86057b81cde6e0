// The forward recurrence of one direction in one kernel, by one block or one cluster of blocks for
// each tile of the batch. W_hh stays on chip for all steps. Equations: cells.h.
//
// The units come in groups (forward_sizes.h), whose gates k_split warps multiply, each its
// own columns of W_hh. The batch tiles are dealt out to these warps, and the owner of one adds the
// sums and applies the cell. With R blocks, block `rank` owns the groups from rank * groups on.
// Every block keeps all of h, and each step hands the h of its own units to all others (an
// all-gather).
//
//   operands   A = W_hh [gates x units, H] fragments in registers, the last chunks of columns in
//              shared memory where the registers do not hold them; B = h [H, NB] in shared memory
//   rows of A  all gates of a unit meet in one lane, g = lane / 4. LSTM: rows g and g + 8 of row
//              tile 0 are the gates i and f of unit g, those of tile 1 g and o. GRU: tile r, z, n;
//              row g is unit 2 g, row g + 8 unit 2 g + 1; RNN: one tile of these
//   columns    a lane's sums are those of the sequences 2 c and 2 c + 1 of each batch tile, c =
//              lane % 4
//
// Step k, up to the longest length in the tile:
//   1. owners: W_ih x of the step has landed; with the bias it is what the products are added to
//   2. k > 0: wait for h[k & 1], of all blocks
//   3. products; k_split > 1: sums to the owners
//   4. owners: the cell; h is staged, and goes from there 16 bytes at a time to all blocks, the own
//      one among them; then thread 0 arms the mbarrier that it has waited for, for step k + 2
//   5. owners, off the way to the peers: y, the reserve, and W_ih x of a later step is asked for
//
// h has two buffers and needs no more: a warp pushes into h[(k + 1) & 1], its own or a peer's,
// after it has h of step k from every group, and a group pushes h of step k when all its warps have
// read h[(k - 1) & 1]. So a warp without a group must not read h, every block must own a group, and
// the sums of a split product need no second buffer. Nor do the mbarriers: pushes of step k + 1 may
// come before thread 0 has armed theirs, but no phase ends before the one arrival that arming is.
// Sequences that have ended go on with zeros for W_ih x, so that the bytes of a step stay the same;
// nobody looks at their h. No block leaves before all pushes into it have landed, and none pushes
// at its last step. What is staged is read by the warp that wrote it alone.
//
// A cluster of one block exchanges through its own shared memory alone: a barrier of the block ends
// a step.
//
// Where sequences begin anew, the loop over the steps ends and is entered again: between the two
// each block waits for h of the step and puts zeros in place of theirs. So a step in which none
// begins knows nothing of resets, and no instance is made for them. One in which some do takes 370
// to 450 cycles more (of the shape below: LSTM 1359 in place of 925, GRU 1712 of 1274, RNN 1270 of
// 865). Tried before: zeros handed on in place of h cost registers, so that only instances with
// weights in shared memory could know of them, and the LSTM took 1291 in every step of a call with
// resets; sums taken back to what they began with, by a branch between product and cell, cost 88 in
// every step of every call.
//
// Gates of W_ih x pass through a ring in shared memory, one slot a step for each group, in pieces
// of 16 bytes that are copied asynchronously num_stages steps ahead; the reserve returns the same
// way, over its own slot. A piece is copied, pushed and written out by one lane. (16-bit gates of
// an odd hidden size lie at addresses that cp.async cannot take; they are loaded one by one
// instead.)
//
// Cost of a step to a block of U units: G U H NB multiply-adds, U NB elements pushed to each peer
// and (H - U) NB received, G U NB read from global memory and the reserve's blocks and y written.
// An LSTM in fp16 of H = 256, B = 8, R = 16, k_split = 4: 64 products of 16 x 16 x 8 in 8 warps,
// about 100 cycles at the published rate; 3.8 KB each way, 200 to 350 cycles at the published
// bandwidths, and as much latency (estimates: measured is none of it yet); 1 KB in, 1.5 KB out. The
// chain that nothing hides is wait, ldmatrix, products, two tanh in turn, staging, push.
//
// By the machine code for sm_90a (python -m benchmarks steps; LSTM, fp16, H = 256, B = 32, R = 8, a
// warp's own cycles without a wait for others), a step takes 925 in inference, 1108 in training,
// and 551 from the wait to the last push; before the changes below 1453, 1731 and 829:
//   products in a straight line, a branch for 4 chunks (multiply_warp)          chain 829 -> 629
//   what a step asks for in registers, from shared memory or by a shuffle       chain 629 -> 612
//   both sequences' functions before any store, lengths and biases in
//   registers, pushes at a fixed distance from `full`                           serial 1111 -> 963
//   one alignment in the instances without weights in shared memory, arming
//   beside the push, whole groups of pushes without a branch                    serial 963 -> 907
//   zeros for the chunks that are left out, in place of predicated products     serial 907 -> 928
// The last one costs 21 here and is kept: predicates ptxas turns into branches where it likes, in
// the backward kernel for every product. Straight lines of 4, 8 and all chunks were slower (987).
//
// fp32-grade products of one or two sequences are by FFMA (LaneSums), by count: 16 x 16 weights
// take a warp 6 HMMA (tf32), 37 cycles of its quarter of the multiprocessor at the published rate
// of mma.sync, and 41 instructions, most of them to split the weights, as many for one sequence as
// for eight. FFMA takes 8 for each sequence, with 4 loads of h for the row tiles of a chunk, and
// once a step 8 shuffles and 8 additions a row tile and sequence to add what four lanes have. LSTM,
// H = 256, R = 16, k_split = 4: two warps of 4 chunks and 2 row tiles share a quarter; 656 cycles a
// step for the products against about 230 for one sequence, 450 for two, and 900 for four, which is
// why it ends at two. A prediction: measured is none of it yet. The grid kernels have no such path:
// a step there is the exchange through L2.
#pragma once

#include "cells.h"
#include "cuda/cluster/forward_sizes.h"
#include "cuda/device/device.h"
#include "cuda/warp/batch_tile.cuh"
#include "cuda/warp/fragments.cuh"
#include "cuda/warp/pairs.cuh"
#include "cuda/warp/resets.cuh"
#include "cuda/warp/unit_forward.cuh"
#include "recurrence.h"

namespace birnn::cuda::all_gather {

using namespace birnn::device;

// As variables, which device code may read: the functions are the host's.
template <Cell kCell>
constexpr int kGroupUnits = group_units(kCell);
template <Cell kCell>
constexpr int kRowTiles = row_tiles(kCell);
template <Cell kCell>
constexpr int kRowBlocks = row_blocks(kCell);
template <int kBatchTiles, class T>
constexpr int kStages = num_stages(kBatchTiles, sizeof(T));

// By value to the kernel. Strides count elements.
struct Arguments {
  ForwardDirection dir;
  const int64_t* lengths = nullptr;    // [B] or null
  const Bits128* fragments = nullptr;  // pack_weights_kernel's
  uint32_t* resets = nullptr;          // pack_weights_kernel's too, null where the direction's are
  const void* recurrent_mask = nullptr;  // [B, H] or null
  int seq_len = 0, batch_size = 0, hidden_size = 0;
  int num_groups = 0;                       // of the hidden units
  int groups = 0;                           // of a block
  int k_split = 0;                          // warps of a group
  int num_chunks = 0;                       // of the columns of A
  int warp_chunks = 0;                      // that a warp multiplies, at most
  int shared_chunks = 0;                    // of them in shared memory, at most
  int pitch = 0;                            // elements of a row of h
  int gates_stride = 0, output_stride = 0;  // as in dir
  int gates_access = 0, output_access = 0;  // bytes: 16, 4 or an element's
  bool save_reserve = false;
};

// weight_hh [G*H, H] as operand A: [group][chunk][row tile] fragments. And the words of resets.
template <Cell kCell, class Precision>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kThreads, 1) void pack_weights_kernel(Arguments args,
                                                                       Bits128* packed) {
  using T = typename Precision::Element;
  constexpr int kTiles = kRowTiles<kCell>, kUnits = kGroupUnits<kCell>;
  const T* const weight_hh = static_cast<const T*>(args.dir.weight_hh);
  const int H = args.hidden_size;
  pack_fragments<Precision>(
      packed, int64_t{args.num_groups} * args.num_chunks * kTiles,
      [&](int64_t fragment, int row, int chunk_column) {
        const int tile = static_cast<int>(fragment % kTiles);
        const int chunk = static_cast<int>(fragment / kTiles % args.num_chunks);
        const int group = static_cast<int>(fragment / kTiles / args.num_chunks);
        const int column = chunk * Precision::kChunkColumns + chunk_column;
        const int gate = kUnits == 8 ? tile * 2 + row / 8 : tile;
        const int unit = group * kUnits + (kUnits == 8 ? row % 8 : row % 8 * 2 + row / 8);
        const bool exists = unit < H && column < H;
        return exists ? weight_hh[(int64_t{gate} * H + unit) * H + column] : from_float<T>(0.0f);
      });
  pack_resets(args.resets, args.dir.resets, args.lengths, args.dir.reverse, args.seq_len,
              args.batch_size);
}

// A piece of neighbouring units in global memory. Of its elements the first `count`, at most all,
// exist. access: the bytes at which it is aligned and ends.
template <class T>
BIRNN_DEVICE void copy_piece_in(T* piece, const T* source, int64_t offset, int count, int access) {
  constexpr int kElements = 16 / sizeof(T);
  // Where nothing exists, no byte is read and zeros are written.
  if (access == 16) {
    cp_async<16>(piece, count > 0 ? source + offset : source, count > 0 ? 16 : 0);
  } else if (access == 4) {
    constexpr int kWord = 4 / sizeof(T);
    BIRNN_UNROLL
    for (int i = 0; i < kElements; i += kWord)
      cp_async<4>(piece + i, i < count ? source + offset + i : source, i < count ? 4 : 0);
  } else {
    BIRNN_UNROLL
    for (int i = 0; i < kElements; ++i)
      piece[i] = i < count ? source[offset + i] : from_float<T>(0.0f);
  }
}
template <class T>
BIRNN_DEVICE void store_piece(T* target, int64_t offset, const Bits128& piece, int count,
                              int access) {
  if (count <= 0) return;
  if (access == 16) {
    *reinterpret_cast<Bits128*>(target + offset) = piece;
    return;
  }
  const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
  BIRNN_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      if (i < count) target[offset + i] = bits_float(words[i]);
    } else {
      T low, high;
      unpack2(words[i], low, high);
      if (2 * i < count) target[offset + 2 * i] = low;
      if (2 * i + 1 < count) target[offset + 2 * i + 1] = high;
    }
  }
}

// A piece of h as others multiply it.
template <class Precision>
BIRNN_DEVICE Bits128 as_operand(const Bits128& piece) {
  if constexpr (sizeof(typename Precision::Element) == 2) {
    return piece;
  } else {
    const auto rounded = [](uint32_t word) {
      return float_bits(Precision::operand(bits_float(word)));
    };
    return Bits128{rounded(piece.x), rounded(piece.y), rounded(piece.z), rounded(piece.w)};
  }
}

// kChunks: of the weights, that a warp holds in registers, an upper bound.
template <Cell kCell, class Precision, int kChunks, int kBatchTiles, bool kSharedWeights>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kThreads, 1) void cluster_forward_kernel(Arguments args) {
  using T = typename Precision::Element;
  using Math = typename Precision::Math;
  constexpr int kGates = kNumGates<kCell>, kBlocks = kRowBlocks<kCell>;
  constexpr int kSums = kNumSums<kCell>;
  constexpr int kTiles = kRowTiles<kCell>, kUnits = kGroupUnits<kCell>;
  constexpr int kLaneUnits = kUnits / 8;
  constexpr int kSlots = kStages<kBatchTiles, T>;
  // Whether h times a mask may be handed on: by the instances that Sizes takes for it.
  constexpr bool kMasks = kSharedWeights;
  constexpr int NB = 8 * kBatchTiles;
  constexpr int kBlockElements = NB * kUnits, kSlotElements = kBlocks * kBlockElements;
  const ForwardDirection& dir = args.dir;
  const int H = args.hidden_size, B = args.batch_size;
  const int cluster = static_cast<int>(cluster_size()), rank = static_cast<int>(cluster_rank());
  const int thread = static_cast<int>(thread_idx()), lane = lane_id(), warp = warp_id();
  const int threads = static_cast<int>(block_dim());
  const int first_sequence = static_cast<int>(block_idx().x) / cluster * NB;
  const int h_elements = NB * args.pitch;
  // The warp's group, and which part of its columns. The last block may own fewer groups.
  const int own_group = warp % args.groups, part = warp / args.groups;
  const int group = rank * args.groups + own_group;
  const int groups_left = args.num_groups - rank * args.groups;
  const int own_groups = groups_left < args.groups ? groups_left : args.groups;
  const bool has_group = own_group < own_groups;
  // The batch tiles part, part + k_split, ... are the warp's: their sums, cell, exchange and
  // memory.
  const int own_tiles =
      has_group && part < kBatchTiles ? (kBatchTiles - 1 - part) / args.k_split + 1 : 0;
  const bool owner = own_tiles > 0;
  uint32_t own_mask = 0;  // a bit for each of these tiles
  for (int tile = part; tile < kBatchTiles; tile += args.k_split) own_mask |= 1u << tile;

  // First what has a fixed place: its addresses are constants on the way to the peers.
  Smem shared;
  MBarrier* const full = shared.alloc<MBarrier>(2);
  uint32_t* const mask = shared.alloc<uint32_t>(1);
  T* const zeros = shared.alloc<T>(16 / sizeof(T));
  int* const constants = shared.alloc<int>(12);
  int* const tile_lengths = shared.alloc<int>(NB);
  T* const h = shared.alloc<T>(2 * h_elements);  // [2][NB][pitch], as operand B
  // Of each group: [slots][blocks][NB][units], the sequences of a tile in the order of place().
  T* const ring =
      shared.alloc<T>(args.groups * kSlots * kSlotElements) + own_group * kSlots * kSlotElements;
  // Of each group: [NB][units], h of the step on its way out.
  T* const staged = shared.alloc<T>(args.groups * kBlockElements) + own_group * kBlockElements;
  // The same of the mask of h, if there is one, and of h times the mask on its way out.
  const int mask_elements = kMasks && args.recurrent_mask ? kBlockElements : 0;
  T* const masks = shared.alloc<T>(args.groups * mask_elements) + own_group * mask_elements;
  T* const staged_masked = shared.alloc<T>(args.groups * mask_elements) + own_group * mask_elements;
  // [groups][k_split][batch tile][row tile][lane] of four sums, if k_split > 1
  const int partial_elements = args.k_split > 1 ? args.k_split * kBatchTiles * kTiles * 32 : 0;
  Bits128* const partial_sums =
      shared.alloc<Bits128>(args.groups * partial_elements) + own_group * partial_elements;
  float* const bias =  // [groups][blocks][units]
      shared.alloc<float>(args.groups * kSums * kUnits) + own_group * kSums * kUnits;
  Bits128* shared_weights = nullptr;  // of this warp: [chunk][row tile][k-step][lane]
  if constexpr (kSharedWeights)
    shared_weights =
        shared.alloc<Bits128>(args.groups * args.k_split * args.shared_chunks * kTiles * 64) +
        warp * args.shared_chunks * kTiles * 64;

  // Of the columns, this warp's chunks: the first in registers, the others in shared memory.
  WeightFragment weights[kTiles][kChunks];
  const int first_chunk = part * args.warp_chunks;
  const int chunks_left = args.num_chunks - first_chunk;
  const int own_chunks = chunks_left < args.warp_chunks ? chunks_left : args.warp_chunks;
  const int register_chunks = own_chunks < kChunks ? own_chunks : kChunks;
  const int64_t first_fragment = (int64_t{group} * args.num_chunks + first_chunk) * kTiles;
  if (has_group) {
    BIRNN_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) BIRNN_UNROLL
    for (int m = 0; m < kTiles; ++m)
      if (chunk < register_chunks)
        weights[m][chunk].load(args.fragments, first_fragment + chunk * kTiles + m, lane);
    if constexpr (kSharedWeights) {
      const Bits128* const source = args.fragments + (first_fragment + kChunks * kTiles) * 64;
      // A lane copies what it will load itself.
      for (int i = lane; i < (own_chunks - register_chunks) * kTiles * 64; i += 32)
        shared_weights[i] = source[i];
    }
    if (part == 0) {
      for (int i = lane; i < kSums * kUnits; i += 32) {
        const int unit = group * kUnits + i % kUnits;
        bias[i] = unit < H ? unit_bias<kCell, T>(dir, i / kUnits, H, unit) : 0.0f;
      }
      for (int i = lane; i < mask_elements; i += 32) {
        const int b = first_sequence + i / kUnits, unit = group * kUnits + i % kUnits;
        masks[i] = b < B && unit < H
                       ? static_cast<const T*>(args.recurrent_mask)[int64_t{b} * H + unit]
                       : from_float<T>(0.0f);
      }
    }
  }

  load_tile_lengths(tile_lengths, NB, args.lengths, first_sequence, B, args.seq_len);
  // The initial h as others multiply it; what lies in columns of units and in sequences that do not
  // exist stays zero.
  for (int row = 0; row < 2 * NB; ++row) {
    const int64_t first = int64_t{first_sequence + row} * H;
    const T* const source = static_cast<const T*>(dir.hx) + first;
    const T* const factors = static_cast<const T*>(args.recurrent_mask) + first;
    const bool exists = dir.hx && row < NB && first_sequence + row < B;
    const auto handed_on = [&](int i) {
      if (!args.recurrent_mask) return Precision::operand(source[i]);
      return Precision::operand(from_float<T>(to_float(source[i]) * to_float(factors[i])));
    };
    for (int i = thread; i < args.pitch; i += threads)
      h[row * args.pitch + i] = exists && i < H ? handed_on(i) : from_float<T>(0.0f);
  }
  if (thread == 0) {
    *mask = kTf32Mask;
    *reinterpret_cast<Bits128*>(zeros) = Bits128{};
    constants[0] = args.k_split;
    constants[1] = args.pitch;
    constants[2] = args.gates_access;
    constants[3] = args.output_access;
    constants[4] = dir.reverse;
    constants[5] = args.save_reserve;
    constants[6] = cluster;
    constants[7] = B <= kFewColumns;
    constants[8] = args.recurrent_mask != nullptr;
  }
  sync_threads();  // the lengths, h, the bias, the mask and the constants
  // Reduced, although it is all lanes' own: so the compiler knows that they leave the loop
  // together.
  const int steps =
      static_cast<int>(reduce_or(static_cast<uint32_t>(longest_of(tile_lengths, NB))));
  const uint32_t step_bytes = static_cast<uint32_t>(args.num_groups * kBlockElements * sizeof(T));
  if (cluster > 1) {
    if (thread == 0) {
      // A step is complete when all groups' bytes have come, the own ones among them.
      mbarrier_init(&full[0], 1);
      mbarrier_init(&full[1], 1);
      mbarrier_init_fence();
      if (steps > 1) mbarrier_arrive_expect_tx(&full[1], step_bytes);
      if (steps > 2) mbarrier_arrive_expect_tx(&full[0], step_bytes);
    }
    cluster_sync();  // every block has begun, its mbarriers and its h are there
  }

  // What the lane computes: units of the group, sequences 2 c and 2 c + 1 of a tile.
  const int lane_unit = lane / 4 * kLaneUnits;
  const auto sequence = [&](int tile, int j) { return tile * 8 + lane % 4 * 2 + j; };
  // Even sequences come first in a tile of a slot: then the lanes' accesses meet no bank twice.
  const auto in_slot = [&](int block, int tile, int j) {
    return block * kBlockElements + (tile * 8 + j * 4 + lane % 4) * kUnits + lane_unit;
  };
  // What the lane copies: a piece of a row of units of one sequence of each tile, in every
  // kLaneBlocks-th block, or to every kLaneBlocks-th block of the cluster.
  constexpr int kPieceUnits = 16 / sizeof(T), kPieces = kUnits / kPieceUnits;
  constexpr int kLaneBlocks = 4 / kPieces;
  const int first_block = lane / (8 * kPieces), place = lane / kPieces % 8;
  const int piece_unit = lane % kPieces * kPieceUnits;
  const int piece_row = place % 4 * 2 + place / 4;  // of h in a tile
  const int unit = group * kUnits + piece_unit;
  const int piece_count = H - unit;  // of units from here that exist, if positive
  const auto piece_in_slot = [&](int block, int tile) {
    return block * kBlockElements + (tile * 8 + place) * kUnits + piece_unit;
  };
  // What every step asks for, in registers. A constant of the launch the compiler loads anew at
  // each use, 26 cycles on the way to the peers, unless it comes out of shared memory; what a lane
  // can compute from its number it computes anew, unless a shuffle has made it. Where weights are
  // split and batch tiles are several there are no registers left for it.
  constexpr bool kKeeps = !Precision::kSplits || kBatchTiles == 1;
  const int k_split = kKeeps ? constants[0] : args.k_split;
  const int pitch = kKeeps ? constants[1] : args.pitch;
  // Instances that hold all weights in registers take rows that are aligned in pieces (Sizes).
  const int gates_access = kSharedWeights ? constants[2] : 16;
  const int output_access = kSharedWeights ? constants[3] : 16;
  const bool reverse = kKeeps ? constants[4] != 0 : dir.reverse;
  const bool save_reserve = kKeeps ? constants[5] != 0 : args.save_reserve;
  const bool has_cluster = kKeeps ? constants[6] > 1 : cluster > 1;
  const bool is_masked = kMasks && constants[8] != 0;
  const auto kept = [&](int value) { return kKeeps ? shfl(value, lane) : value; };
  int lane_lengths[2] = {}, lane_piece_length = 0;
  if constexpr (kBatchTiles == 1) {
    lane_lengths[0] = tile_lengths[sequence(0, 0)];
    lane_lengths[1] = tile_lengths[sequence(0, 1)];
    lane_piece_length = tile_lengths[piece_row];
  }
  const auto length_of = [&](int tile, int j) {
    return kBatchTiles == 1 ? lane_lengths[j] : tile_lengths[sequence(tile, j)];
  };
  const auto piece_length = [&](int tile) {
    return kBatchTiles == 1 ? lane_piece_length : tile_lengths[tile * 8 + piece_row];
  };

  // body(i, tile) for the owner's tiles.
  const auto for_each_tile = [&](const auto& body) {
    BIRNN_UNROLL
    for (int i = 0; i < kBatchTiles; ++i) {
      if (i > 0 && i >= own_tiles) break;
      body(i, kBatchTiles == 1 ? 0 : i * k_split + part);
    }
  };
  // body(i, tile, e, j) for the units and sequences of the lane.
  const auto for_each_unit = [&](const auto& body) {
    for_each_tile([&](int i, int tile) {
      BIRNN_UNROLL
      for (int j = 0; j < 2; ++j) BIRNN_UNROLL
      for (int e = 0; e < kLaneUnits; ++e) body(i, tile, e, j);
    });
  };
  float state[kBatchTiles][kLaneUnits][2] = {};  // of own tiles. LSTM: c; GRU: h
  const auto for_each_state = [&](const auto& body) {
    for_each_unit([&](int i, int tile, int e, int j) {
      const int b = first_sequence + sequence(tile, j), u = group * kUnits + lane_unit + e;
      if (b < B && u < H) body(state[i][e][j], int64_t{b} * H + u);
    });
  };
  const T* const first_state = static_cast<const T*>(kCell == Cell::kLstm ? dir.cx : dir.hx);
  if (kGates > 1 && first_state && owner)
    for_each_state([&](float& value, int64_t at) { value = to_float(first_state[at]); });
  T* const gates = static_cast<T*>(dir.gates);
  T* const output = static_cast<T*>(dir.output);
  // Step k of the copied sequence; past its end the row that is padded.
  const auto time_of = [&](int tile, int k) {
    const int length = piece_length(tile);
    return static_cast<uint32_t>(reverse && k < length ? length - 1 - k : k);
  };
  // Where the lane's pieces lie: in a row of the first tile, and from one row of time to the next.
  const int64_t first_row = first_sequence + piece_row;
  const int64_t gates_first = first_row * args.gates_stride + unit + first_block * H;
  const int64_t output_first = first_row * args.output_stride + unit;
  const uint64_t gates_time = static_cast<uint64_t>(B) * args.gates_stride;
  const uint64_t output_time = static_cast<uint64_t>(B) * args.output_stride;
  const auto row_of = [&](int tile, int k) {
    return int64_t{time_of(tile, k)} * B + first_row + tile * 8;
  };
  const auto gates_of = [&](int tile, int k) {
    if constexpr (kKeeps)
      return gates_first + static_cast<int64_t>(time_of(tile, k) * gates_time) +
             int64_t{tile * 8} * args.gates_stride;
    else
      return row_of(tile, k) * args.gates_stride + unit + first_block * H;
  };
  const auto output_of = [&](int tile, int k) {
    if constexpr (kKeeps)
      return output_first + static_cast<int64_t>(time_of(tile, k) * output_time) +
             int64_t{tile * 8} * args.output_stride;
    else
      return row_of(tile, k) * args.output_stride + unit;
  };
  const int lane_piece_in_slot = kept(piece_in_slot(first_block, 0));
  // Asks for W_ih x of step k.
  const auto fetch = [&](int k, T* slot) {
    for_each_tile([&](int, int tile) {
      const int count = k < piece_length(tile) ? piece_count : 0;
      const int64_t from = gates_of(tile, k);
      BIRNN_UNROLL
      for (int block = 0; block < kGates; block += kLaneBlocks)
        if (block + first_block < kGates)
          copy_piece_in(slot + lane_piece_in_slot + block * kBlockElements + tile * 8 * kUnits,
                        gates, from + block * H, count, gates_access);
    });
  };
  if (owner) {
    for (int k = 0; k < kSlots; ++k) {
      if (k < steps) fetch(k, ring + k * kSlotElements);
      cp_async_commit();
    }
  }

  // Where the blocks of the cluster are, from the next one round to the own one: a lane pushes to
  // every kLaneBlocks-th. Everything that is pushed to lies at the same distance from `full`.
  constexpr int kPushes = (kMaxCluster + kLaneBlocks - 1) / kLaneBlocks;
  const auto peer_of = [&](int i) {
    const int next = rank + 1 + i;
    return static_cast<uint32_t>(next < cluster ? next : next - cluster);
  };
  const int lane_pushes = kept((cluster - first_block + kLaneBlocks - 1) / kLaneBlocks);
  // Where all lanes have as many, no branch need part them.
  const int pushes = (constants[6] + kLaneBlocks - 1) / kLaneBlocks;
  const bool all_push = constants[6] % kLaneBlocks == 0;
  const bool hands_over = kMasks ? kept(cluster > 1 || is_masked) != 0 : has_cluster;
  const bool arms = kept(cluster > 1 && thread == 0) != 0;
  ClusterAddress peers[kLaneBlocks == 4 ? kPushes : 1]{};
  if (kLaneBlocks == 4 && cluster > 1) {
    BIRNN_UNROLL
    for (int j = 0; j < kPushes; ++j)
      peers[kLaneBlocks == 4 ? j : 0] =
          map_rank(full, j < lane_pushes ? peer_of(j * kLaneBlocks + first_block)
                                         : static_cast<uint32_t>(rank));
  }
  const auto bytes_from_full = [&](const void* place_of) {
    return static_cast<uint32_t>(static_cast<const char*>(place_of) -
                                 reinterpret_cast<const char*>(full));
  };
  const uint32_t to_piece =
      static_cast<uint32_t>(kept(static_cast<int>(bytes_from_full(h + piece_row * pitch + unit))));
  // What is added to the sums, where the registers hold it.
  constexpr bool kHoldsBias = kBatchTiles == 1 && kSums * kLaneUnits <= 4;
  constexpr int kBiases = kHoldsBias ? kSums : 1, kBiasUnits = kHoldsBias ? kLaneUnits : 1;
  float lane_bias[kBiases][kBiasUnits] = {};
  if constexpr (kHoldsBias) BIRNN_UNROLL
  for (int of = 0; of < kSums; ++of) BIRNN_UNROLL
  for (int e = 0; e < kLaneUnits; ++e) lane_bias[of][e] = bias[of * kUnits + lane_unit + e];
  const int lane_in_slot = kept(in_slot(0, 0, 0));
  const int lane_staged = kept(sequence(0, 0) * kUnits + lane_unit);
  const bool lane_stores = kept(lane_piece_length >= 0 && first_block == 0) != 0;
  const int to_zeros = static_cast<int>(zeros - h);
  const int lane_row = kept(first_chunk * Precision::kChunkColumns + operand_row<T>(pitch));
  const int piece_staged = kept(piece_row * kUnits + piece_unit);

  const auto await_h = [&](int k) {  // of all blocks
    mbarrier_wait<Scope::kCluster>(&full[k & 1], (k - 1) >> 1 & 1);
  };
  // Sequences that begin anew at step k: their h in this block and their own states become zero. By
  // all warps of the groups. Returns the step before which it is to be done again, or the end.
  ResetWindow window;
  const auto begin_anew = [&](int k) {
    const int first = static_cast<int>(block_idx().x) / static_cast<int>(cluster_size()) * NB;
    const uint32_t anew = window.begin_anew(args.resets, k, first, NB, B);
    if (anew != 0) {
      if (has_cluster && k > 0) await_h(k);
      // By the first warp, which is never idle.
      const int place_in_block = static_cast<int>(thread_idx());
      for (int i = place_in_block * kPieceUnits; place_in_block < 32 && i < H;
           i += 32 * kPieceUnits) {
        T* piece = h + (k & 1) * h_elements + i;
        BIRNN_UNROLL_BY(8)
        for (int n = 0; n < NB; ++n, piece += pitch)
          if (anew >> n & 1u) *reinterpret_cast<Bits128*>(piece) = Bits128{};
      }
      if (owner)
        for_each_unit([&](int i, int tile, int e, int j) {
          if (anew >> sequence(tile, j) & 1u) state[i][e][j] = 0.0f;
        });
      // Counted anew: between these steps it would stand in a register.
      const int left = args.num_groups - static_cast<int>(cluster_rank()) * args.groups;
      const int working_warps = (left < args.groups ? left : args.groups) * args.k_split;
      bar_sync(kWarps + 1, working_warps * 32);  // h of step k, with the zeros
    }
    const int next = window.next(k);
    return next < steps ? next : steps;
  };

  int turn = 0;  // k % kSlots
  const auto take_step = [&](int k) {
    T* const slot = ring + turn * kSlotElements;
    const int row = (k & 1) * h_elements + lane_row;  // of h, where the lane reads
    // By tile while products are added, then the own tiles'. What an owner starts from is W_ih x
    // and the bias.
    float sums[kBatchTiles][kTiles][4] = {};
    float new_gate[kBatchTiles][kLaneUnits][2] = {};  // GRU, own tiles: n's part of the input
    // What the cell is applied to, in the order of CellForward.
    const auto sum_of = [&](int i, int e, int j, int of) -> float& {
      if (kCell == Cell::kLstm) return sums[i][of / 2][of % 2 * 2 + j];
      if (kCell == Cell::kGru && of == 2) return new_gate[i][e][j];
      return sums[i][of == 3 ? 2 : of][e * 2 + j];
    };
    const auto input_of = [&](int tile, int e, int j, int of) {
      const float b =
          kHoldsBias ? lane_bias[of % kBiases][e % kBiasUnits] : bias[of * kUnits + lane_unit + e];
      const T* const x =
          slot + lane_in_slot + of * kBlockElements + (tile * 8 + j * 4) * kUnits + e;
      return of < kGates ? to_float(*x) + b : b;
    };
    // h of a lane's unit, not rounded, once the cell has been applied.
    const auto exact_h = [&](int i, int e, int j) {
      return kCell == Cell::kLstm  ? LstmCell<Math>::output(sum_of(i, e, j, 3), state[i][e][j])
             : kCell == Cell::kGru ? state[i][e][j]
                                   : sum_of(i, e, j, 0);
    };
    const auto load_new_gate = [&] {
      if constexpr (kCell == Cell::kGru)
        for_each_unit(
            [&](int i, int tile, int e, int j) { new_gate[i][e][j] = input_of(tile, e, j, 2); });
    };
    if (owner) {
      cp_async_wait<kSlots - 1>();
      sync_warp();  // the slot of step k, copied by all lanes
      BIRNN_UNROLL
      for (int tile = 0; tile < kBatchTiles; ++tile) {
        if (kBatchTiles > 1 && !(own_mask >> tile & 1)) continue;
        BIRNN_UNROLL
        for (int j = 0; j < 2; ++j) BIRNN_UNROLL
        for (int e = 0; e < kLaneUnits; ++e) BIRNN_UNROLL
        for (int of = 0; of < kSums; ++of)
          if (kCell != Cell::kGru || of != 2) sum_of(tile, e, j, of) = input_of(tile, e, j, of);
      }
      if (k_split == 1) load_new_gate();
    }

    if (has_cluster && k > 0) await_h(k);
    const auto load_further = [&](WeightFragment(&further)[kTiles][1], int chunk) {
      BIRNN_UNROLL
      for (int m = 0; m < kTiles; ++m)
        further[m][0].load(shared_weights, (chunk - register_chunks) * kTiles + m, lane);
    };
    bool few = false;
    if constexpr (Precision::kSplits && kBatchTiles <= kFewBatchTiles) {
      few = constants[7] != 0;
      if (few) {
        const T* const columns = h + (k & 1) * h_elements + first_chunk * Precision::kChunkColumns;
        LaneSums<kTiles> lane_sums;
        BIRNN_UNROLL
        for (int chunk = 0; chunk < kChunks; ++chunk) {
          if (chunk >= register_chunks) break;
          lane_sums.add(weights, chunk, columns + chunk * Precision::kChunkColumns, pitch, B);
        }
        if constexpr (kSharedWeights) {
          for (int chunk = register_chunks; chunk < own_chunks; ++chunk) {
            WeightFragment further[kTiles][1];
            load_further(further, chunk);
            lane_sums.add(further, 0, columns + chunk * Precision::kChunkColumns, pitch, B);
          }
        }
        lane_sums.add_to(sums[0], B);
      }
    }
    if (!few) {
      multiply_warp<Precision>(sums, weights, h, row, pitch, kTiles, register_chunks, to_zeros,
                               mask);
      if constexpr (kSharedWeights) {
        for (int chunk = register_chunks; chunk < own_chunks; ++chunk) {
          WeightFragment further[kTiles][1];
          load_further(further, chunk);
          multiply_warp<Precision>(sums, further, h, row + chunk * Precision::kChunkColumns, pitch,
                                   kTiles, 1, to_zeros, mask);
        }
      }
    }
    if (k_split > 1) {
      const auto partial = [&](int of_part, int tile, int m) {
        return partial_sums + ((of_part * kBatchTiles + tile) * kTiles + m) * 32 + lane;
      };
      BIRNN_UNROLL
      for (int tile = 0; tile < kBatchTiles; ++tile) BIRNN_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        const float (&four)[4] = sums[tile][m];
        *partial(part, tile, m) = Bits128{float_bits(four[0]), float_bits(four[1]),
                                          float_bits(four[2]), float_bits(four[3])};
      }
      if (owner) {
        load_new_gate();
        bar_sync(1 + own_group, k_split * 32);  // the sums of all of the group's warps
        for_each_tile([&](int i, int tile) {
          BIRNN_UNROLL
          for (int m = 0; m < kTiles; ++m) BIRNN_UNROLL
          for (int n = 0; n < 4; ++n) sums[i][m][n] = 0.0f;
          for (int of_part = 0; of_part < k_split; ++of_part) BIRNN_UNROLL
          for (int m = 0; m < kTiles; ++m) {
            const Bits128 four = *partial(of_part, tile, m);
            sums[i][m][0] += bits_float(four.x);
            sums[i][m][1] += bits_float(four.y);
            sums[i][m][2] += bits_float(four.z);
            sums[i][m][3] += bits_float(four.w);
          }
        });
      } else {
        bar_arrive(1 + own_group, k_split * 32);  // the sums to the owners; h_now is read
      }
    }

    if (owner) {
      for_each_tile([&](int i, int tile) {
        T h_new[2][kLaneUnits];
        BIRNN_UNROLL
        for (int j = 0; j < 2; ++j) BIRNN_UNROLL
        for (int e = 0; e < kLaneUnits; ++e) {
          float& carried = state[i][e][j];
          float cell_sums[kSums], c = carried, kept_values[kKeptBlocks<kCell>];
          BIRNN_UNROLL
          for (int of = 0; of < kSums; ++of) cell_sums[of] = sum_of(i, e, j, of);
          const float h_of_unit = CellForward<kCell, Math>::run(cell_sums, carried, c, kept_values);
          h_new[j][e] = from_float<T>(h_of_unit);
          // The state of a sequence that has ended stays.
          if (kGates > 1 && k < length_of(tile, j)) carried = kCell == Cell::kGru ? h_of_unit : c;
          // Kept where the sums were, for after the push; an LSTM's c is in `state`.
          if constexpr (kGates > 1) BIRNN_UNROLL
          for (int of = 0; of < 4; ++of) sum_of(i, e, j, of) = kept_values[of];
          if constexpr (kGates == 1) sum_of(i, e, j, 0) = h_of_unit;
        }
        const auto store = [&](T* target, const T(&values)[kLaneUnits]) {
          if constexpr (kLaneUnits == 1)
            *target = values[0];
          else
            store_pair(target, 0, Pair<T>{values[0], values[kLaneUnits - 1]}, true, true);
        };
        BIRNN_UNROLL
        for (int j = 0; j < 2; ++j) store(staged + lane_staged + (tile * 8 + j) * kUnits, h_new[j]);
        if (!has_cluster) BIRNN_UNROLL
        for (int j = 0; j < 2; ++j) {
          T rounded[kLaneUnits];
          BIRNN_UNROLL
          for (int e = 0; e < kLaneUnits; ++e) rounded[e] = Precision::operand(h_new[j][e]);
          store(h + ((k + 1) & 1) * h_elements + sequence(tile, j) * pitch + group * kUnits +
                    lane_unit,
                rounded);
        }
      });
      sync_warp();  // h of the group, by all lanes; and they have read h_now and the slot
      Bits128 pieces[kBatchTiles];
      const auto load_pieces = [&](const T* from) {
        for_each_tile([&](int i, int tile) {
          pieces[i] = *reinterpret_cast<const Bits128*>(from + piece_staged + tile * 8 * kUnits);
        });
      };
      load_pieces(staged);

      if (hands_over && k + 1 < steps) {
        const uint32_t next = (k + 1) & 1;
        const uint32_t to_signal = next * sizeof(MBarrier);
        const uint32_t to_next = to_piece + next * h_elements * sizeof(T);
        const auto push = [&](const ClusterAddress& peer) {
          for_each_tile([&](int i, int tile) {
            st_async(peer + (to_next + tile * 8 * pitch * sizeof(T)),
                     as_operand<Precision>(pieces[i]), peer + to_signal);
          });
        };
        const auto push_all = [&] {
          if constexpr (kLaneBlocks == 4) {
            if (all_push) {
              BIRNN_UNROLL
              for (int j = 0; j < kPushes; ++j) {
                if (j >= pushes) break;
                push(peers[j]);
              }
            } else {
              BIRNN_UNROLL
              for (int j = 0; j < kPushes; ++j)
                if (j < lane_pushes) push(peers[j]);
            }
          } else {
            const int own_pushes = all_push ? pushes : lane_pushes;
            BIRNN_UNROLL_BY(4)
            for (int j = 0; j < own_pushes; ++j)
              push(map_rank(full, peer_of(j * kLaneBlocks + first_block)));
          }
        };
        if (is_masked) {  // in place of h: h times the mask, rounded once
          for_each_unit([&](int i, int tile, int e, int j) {
            const int at = lane_staged + (tile * 8 + j) * kUnits + e;
            staged_masked[at] = from_float<T>(exact_h(i, e, j) * to_float(masks[at]));
          });
          sync_warp();  // the masked h of the group, by all lanes
          load_pieces(staged_masked);
        }
        if (has_cluster) push_all();
        if (!has_cluster && first_block == 0) {  // over what the lanes have put there
          for_each_tile([&](int i, int tile) {
            *reinterpret_cast<Bits128*>(h + next * h_elements + (tile * 8 + piece_row) * pitch +
                                        unit) = as_operand<Precision>(pieces[i]);
          });
        }
        if (is_masked) load_pieces(staged);  // y is h as it is
        // The mbarrier that has been waited for, for step k + 2: its phase cannot end before this
        // arrival, whatever has come by then.
        if (arms && k > 0 && k + 2 < steps) mbarrier_arrive_expect_tx(&full[k & 1], step_bytes);
      }

      for_each_tile([&](int i, int tile) {
        if (kBatchTiles == 1 ? !lane_stores : piece_length(tile) < 0 || first_block > 0) return;
        const Bits128 value = k < piece_length(tile) ? pieces[i] : Bits128{};
        store_piece(output, output_of(tile, k), value, piece_count, output_access);
      });
      if (kGates > 1 && save_reserve) {
        for_each_unit([&](int i, int tile, int e, int j) {
          BIRNN_UNROLL
          for (int block = 0; block < kBlocks; ++block)
            slot[lane_in_slot + block * kBlockElements + (tile * 8 + j * 4) * kUnits + e] =
                from_float<T>(block < kSums ? sum_of(i, e, j, block % kSums) : state[i][e][j]);
        });
        sync_warp();  // what backward needs of the step, in its slot
        for_each_tile([&](int, int tile) {
          if (k >= piece_length(tile)) return;
          const int64_t to = gates_of(tile, k);
          BIRNN_UNROLL
          for (int block = 0; block < kBlocks; block += kLaneBlocks) {
            if (block + first_block >= kBlocks) continue;
            const Bits128 piece = *reinterpret_cast<const Bits128*>(
                slot + lane_piece_in_slot + block * kBlockElements + tile * 8 * kUnits);
            store_piece(gates, to + block * H, piece, piece_count, gates_access);
          }
        });
      }
      if (k + kSlots < steps) fetch(k + kSlots, slot);
      cp_async_commit();
    }
    turn = turn + 1 < kSlots ? turn + 1 : 0;
    if (!has_cluster) sync_threads();  // h of step k + 1 to all warps; all have read that of step k
  };
  for (int k = 0; has_group && k < steps;) {
    const int until = args.resets ? begin_anew(k) : steps;
    for (; k < until; ++k) take_step(k);
  }

  if (!owner) return;
  if constexpr (kCell == Cell::kLstm)
    for_each_state([&](float value, int64_t at) { static_cast<float*>(dir.cy)[at] = value; });
  for_each_tile([&](int, int tile) {
    const int length = piece_length(tile);
    if (length < 0 || first_block > 0) return;
    // Steps that no sequence of the tile has.
    for (int k = steps; k < args.seq_len; ++k)
      store_piece(output, output_of(tile, k), Bits128{}, piece_count, output_access);
    // hy is the output of the last step, which this lane has written.
    const int64_t at = int64_t{first_sequence + tile * 8 + piece_row} * H + unit;
    const int64_t last = length > 0 ? output_of(tile, length - 1) : 0;
    for (int i = 0; i < kPieceUnits && i < piece_count; ++i) {
      T value = from_float<T>(0.0f);
      if (length > 0)
        value = output[last + i];
      else if (dir.hx)
        value = static_cast<const T*>(dir.hx)[at + i];
      static_cast<T*>(dir.hy)[at + i] = value;
    }
  });
}

}  // namespace birnn::cuda::all_gather
