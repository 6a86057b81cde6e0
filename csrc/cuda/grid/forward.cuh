// The forward recurrence of one or two directions across the whole device, in one launch: W_hh
// stays on chip for all steps, divided by rows over the blocks, and h goes round through L2
// (grid/exchange.cuh). For layers that no cluster holds. Equations: cells.h.
//
// R blocks share a direction; block `rank` owns the units [rank * U, rank * U + U): their rows of
// W_hh for all gates, their c, their biases. A team of R blocks walks one group of NB sequences
// from its first step to its last, then its next group: a group needs all of the device that its
// weights fill, so groups run in turn; where blocks are left over, several teams, each with the
// weights in its own blocks, run groups side by side. All teams of all directions are one
// cooperative launch.
//
//   operands   A = the block's G * U rows of W_hh, row gate * U + unit, B = h [H, NB] of the step
//              before, as words of the ring, which lie in the order of the fragments of B: what a
//              lane loads is what it multiplies
//   K split    each of the 8 warps multiplies all rows by its own eighth of the columns: it waits
//              for the words of its own columns alone, no word is loaded twice by a block, and the
//              warps meet once a step, to add their sums in shared memory
//   weights    fragments in registers, those that do not fit in shared memory (struct Instance)
//   cells      a thread owns a unit of a sequence: it adds the sums of the 8 warps, in their order,
//              applies the cell, and publishes h; two threads of neighbouring units one word
//
// Exchange e hands over h of one step: at first hx, which its owners publish as well, so that all
// steps are alike. Step k of a group, e counting on from the group before:
//   1. each warp asks for its words of epoch e, waits for them, multiplies, and writes its sums to
//      buffer e & 1; meanwhile nobody waits for anybody else
//   2. one barrier of the block. It shows the sums to the threads that own cells; it says that the
//      block has read epoch e, before any of its threads publishes e + 1; and it stands between the
//      reading of buffer e & 1 at step k and its next writing at step k + 2
//   3. the threads that own cells add and apply the cell; finished sequences are frozen by select,
//      and published like the others; then, off the way to the other blocks, y and the reserve are
//      written and the gates of step k + 1 asked for, which are needed at its barrier. The other
//      warps are at step k + 1 by then
// A block without units leaves at once: nobody waits for it and it reads nothing. Words past the
// hidden size are always there (kAlways), and so is one more chunk of zeros, which a warp reads for
// a chunk that another warp has and it has not: no branch stands among the products.
//
// The packing kernel, which runs before on the same stream, clears the ring: no host-side epoch
// base, so a graph that holds both kernels can be replayed.
//
// The limit of a step, LSTM in fp16, H = 1024, R = 64 (U = 16), one batch tile, both directions, on
// 132 multiprocessors at 1.75 GHz. A block loads H * NB / 2 words = 32 KB from L2, all blocks 4 MB:
// at about 64 B a clock and multiprocessor 510 clocks. It multiplies 64 x 1024 x 8: 390 clocks at
// the 2680 FLOP a clock that mma.sync reaches. 8 sums of 64 x 8 floats are written and read, 16 KB
// each: 256 clocks at 128 B. Loads and products of different warps overlap, the sums do not. The
// way through L2 (a store, then the load that sees it) is about 1100 clocks, the barrier and the
// cell 150. So some 1.1 to 1.2 us; estimates until it runs on a chip.
//
// What nvcc 13.0 makes of that instance for sm_90a: 226 registers, no local memory, no fence; the
// step's loop has 451 instructions: 43 up to the first load of words, 8 loads of 16 bytes, 30 to
// test them, 93 for 32 HMMA and the 16 stores of sums, then from the barrier to the store of the
// word 131 with 32 loads of sums, and 94 behind it for y, the reserve and the next gates, which
// nothing waits for before the next barrier. A poll that has to repeat costs 38.
#pragma once

#include "cuda/device/device.h"
#include "cuda/grid/exchange.cuh"
#include "cuda/grid/forward_sizes.h"
#include "cuda/warp/batch_tile.cuh"
#include "cuda/warp/fragments.cuh"
#include "cuda/warp/resets.cuh"
#include "cuda/warp/unit_forward.cuh"
#include "recurrence.h"

namespace birnn::cuda::grid_gather {

using namespace birnn::device;

// As a variable, which device code may read: the function is the host's.
template <int kRowTiles>
constexpr int kSumsPitch = sums_pitch(kRowTiles);

// By value to the kernel. Strides count elements.
struct Arguments {
  ForwardDirection dirs[2];
  const int64_t* lengths = nullptr;    // [B] or null
  const Bits128* fragments = nullptr;  // [D][R][chunk][row tile] fragments, pack_kernel's
  WordPair* ring = nullptr;            // [D * teams][2][slot_pairs]
  uint32_t* resets[2] =
      {};  // of each direction: pack_kernel's words, null where the direction's are
  const void* recurrent_masks[2] = {};  // [B, H] or null
  int seq_len = 0, batch_size = 0, hidden_size = 0;
  int num_directions = 0;
  int num_blocks = 0;  // R, that share a direction's units
  int units = 0;       // U of a block, even
  int num_tiles = 0, num_chunks = 0;
  int num_groups = 0, teams = 0;  // a team of R blocks takes every teams-th group of sequences
  int slot_pairs = 0;
  bool save_reserve = false;
};

// Where a unit's state stands among the words of a slot, as operand B of the product.
template <class Precision, int kBatchTiles>
BIRNN_DEVICE int word_of(int unit, int sequence) {
  constexpr int kHalf = Precision::kStepColumns / 2;
  const int k_step = unit / Precision::kStepColumns, column = unit % Precision::kStepColumns;
  const int lane = sequence % 8 * 4 + column % kHalf / Precision::kWordElements;
  return ((k_step * kBatchTiles + sequence / 8) * 32 + lane) * 2 + column / kHalf;
}

// weight_hh [G*H, H] of each direction as operand A, and the ring cleared: words past the hidden
// size, which nobody publishes, always count as there. And the words of resets.
template <Cell kCell, class Precision>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kThreads, 1) void pack_kernel(Arguments args, Bits128* packed,
                                                               int64_t ring_pairs,
                                                               int batch_tiles) {
  using T = typename Precision::Element;
  const int H = args.hidden_size, U = args.units, R = args.num_blocks;
  const int64_t per_block = int64_t{args.num_tiles} * args.num_chunks;
  pack_fragments<Precision>(
      packed, per_block * R * args.num_directions,
      [&](int64_t fragment, int tile_row, int chunk_column) {
        const int block = static_cast<int>(fragment / per_block);
        const int in_block = static_cast<int>(fragment % per_block);
        const int chunk = in_block / args.num_tiles;
        const int row = in_block % args.num_tiles * kMatrixRows + tile_row;
        const int gate = row / U, unit = block % R * U + row % U;
        const int column = chunk * Precision::kChunkColumns + chunk_column;
        const bool exists = gate < kNumGates<kCell> && unit < H && column < H;
        const T* const weight_hh = static_cast<const T*>(args.dirs[block / R].weight_hh);
        return exists ? weight_hh[(int64_t{gate} * H + unit) * H + column] : from_float<T>(0.0f);
      });
  grid_exchange::clear(args.ring, ring_pairs, [&](int64_t word) {
    const int pair = static_cast<int>(word / 2 % args.slot_pairs);
    const int column = pair / 32 / batch_tiles * Precision::kStepColumns +
                       Precision::column(word % 2 ? 2 : 0, pair % 4);
    return column < H ? grid_exchange::kNever : grid_exchange::kAlways;
  });
  for (int d = 0; d < args.num_directions; ++d)
    pack_resets(args.resets[d], args.dirs[d].resets, args.lengths, args.dirs[d].reverse,
                args.seq_len, args.batch_size);
}

// The parameters are those of struct Instance.
template <Cell kCell, class Precision, int kRowTiles, int kChunks, int kHeld, int kAsked,
          int kBatchTiles, int kCells>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kThreads, 1) void grid_forward_kernel(Arguments args) {
  using T = typename Precision::Element;
  using Math = typename Precision::Math;
  constexpr int kGates = kNumGates<kCell>;
  constexpr int kTileBatch = 8 * kBatchTiles;
  // A piece is what a warp asks for at once: some chunks of eight sequences.
  constexpr int kPiecesOfTile = kChunks / kAsked;
  static_assert(kChunks % kAsked == 0);
  constexpr int kPieces = kBatchTiles * kPiecesOfTile;
  constexpr int kPairs = 2 * kAsked;
  constexpr int kBuffers = kPieces > 1 ? 2 : 1;
  constexpr int kSpare = kRowTiles * kChunks - kHeld;
  constexpr int kPitch = kSumsPitch<kRowTiles>;
  constexpr int kSourceFloats = kTileBatch * kPitch;  // sums of one warp
  constexpr int kChains = kRowTiles < 4 ? 2 : 1;

  const int H = args.hidden_size, U = args.units, B = args.batch_size, R = args.num_blocks;
  const int thread = static_cast<int>(thread_idx()), lane = lane_id(), warp = warp_id();
  const int block = static_cast<int>(block_idx().x);
  const int rank = block % R, direction = block / R % args.num_directions;
  const int team = block / R / args.num_directions;
  if (rank * U >= H) return;  // no unit is left for this block
  const ForwardDirection& dir = args.dirs[direction];

  Smem shared;
  Bits128* const spare = shared.alloc<Bits128>(kWarps * kSpare * 64);   // [warp][fragment]
  float* const sums = shared.alloc<float>(2 * kWarps * kSourceFloats);  // [2][warp][NB][pitch]
  int* const tile_lengths = shared.alloc<int>(kTileBatch);
  uint32_t* const mask = shared.alloc<uint32_t>(1);
  // What is handed on of h, by a thread's cells: [cells][threads], if there is a mask.
  const uint32_t* const resets = args.resets[direction];
  const T* const recurrent_mask = static_cast<const T*>(args.recurrent_masks[direction]);
  T* const factors = shared.alloc<T>(recurrent_mask ? kCells * kThreads : 0) + thread;

  // The columns are dealt to the warps in chunks, as evenly as they come.
  const int even = args.num_chunks / kWarps, odd = args.num_chunks % kWarps;
  const int own_chunks = even + (warp < odd ? 1 : 0);
  const int first_chunk = warp * even + (warp < odd ? warp : odd);
  // Fragment chunk * kRowTiles + tile of the warp; those past kHeld each lane keeps for itself.
  WeightFragment held[kHeld];
  Bits128* const own_spare = spare + warp * kSpare * 64;
  {
    const int64_t first = int64_t{direction * R + rank} * args.num_chunks + first_chunk;
    BIRNN_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) BIRNN_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      const bool exists = chunk < own_chunks && m < args.num_tiles;  // else zero
      const int64_t index = (first + chunk) * args.num_tiles + m;
      const int fragment = chunk * kRowTiles + m;
      if (fragment < kHeld) {
        if (exists) held[fragment < kHeld ? fragment : 0].load(args.fragments, index, lane);
      } else {
        BIRNN_UNROLL
        for (int step = 0; step < 2; ++step)
          own_spare[(fragment - kHeld) * 64 + step * 32 + lane] =
              exists ? args.fragments[(index * 2 + step) * 32 + lane] : Bits128{};
      }
    }
  }
  // A warp without chunks adds nothing.
  for (int i = lane; own_chunks == 0 && i < kSourceFloats; i += 32)
    sums[warp * kSourceFloats + i] = sums[(kWarps + warp) * kSourceFloats + i] = 0.0f;
  if (thread == 0) *mask = kTf32Mask;

  WordPair* const ring =
      args.ring + int64_t{team * args.num_directions + direction} * 2 * args.slot_pairs;
  // Where the words of a chunk begin in a slot. Those of a chunk that the warp does not have are
  // always there, and zero; all lanes read the same ones.
  int words[kChunks];
  BIRNN_UNROLL
  for (int chunk = 0; chunk < kChunks; ++chunk)
    words[chunk] = chunk < own_chunks ? (first_chunk + chunk) * 2 * kBatchTiles * 32 + lane
                                      : args.num_chunks * 2 * kBatchTiles * 32;

  // The cells of this thread: neighbouring threads own neighbouring units, in pairs in any case.
  // Sequences are dealt so that the units of a warp's sequences lie in different banks of the sums.
  const int apart = U > 16 ? 1 : U > 8 ? 2 : U > 4 ? 4 : 8;  // sequences of a warp
  const int num_cells = U * kTileBatch;
  int unit[kCells], sequence[kCells];  // in the direction, in the group; -1: no such cell
  int word[kCells];                    // that this thread publishes, -1: none
  float bias[kCells][kNumSums<kCell>];
  BIRNN_UNROLL
  for (int e = 0; e < kCells; ++e) {
    const int i = e * kThreads + thread, n = i / U;
    const bool exists = i < num_cells && rank * U + i % U < H;
    unit[e] = rank * U + i % U;
    sequence[e] = exists ? n / 8 * 8 + n % apart * (8 / apart) + n % 8 / apart : -1;
    word[e] = exists && unit[e] % Precision::kWordElements == 0
                  ? word_of<Precision, kBatchTiles>(unit[e], sequence[e])
                  : -1;
    BIRNN_UNROLL
    for (int j = 0; j < kNumSums<kCell>; ++j)
      bias[e][j] = exists ? unit_bias<kCell, T>(dir, j, H, unit[e]) : 0.0f;
  }
  const auto warp_has = [&](int e) { return e * kThreads + warp * 32 < num_cells; };

  T h[kCells];
  T handed[kCells];  // h as it enters its product
  float c[kCells];
  const auto is_of = [&](uint32_t bits, int e) { return (bits >> sequence[e] & 1u) != 0; };
  // h times its mask, rounded once.
  const auto masked = [&](int e, float exact_h) {
    return from_float<T>(recurrent_mask ? exact_h * to_float(factors[e * kThreads]) : exact_h);
  };
  // Shows the state to all blocks. A collective of warps that have cells.
  const auto publish_state = [&](uint32_t epoch) {
    uint64_t* const slot = reinterpret_cast<uint64_t*>(ring + int64_t{epoch & 1} * args.slot_pairs);
    BIRNN_UNROLL
    for (int e = 0; e < kCells; ++e) {
      if (!warp_has(e)) continue;
      uint32_t payload;
      if constexpr (Precision::kWordElements == 2) {
        const uint32_t own = static_cast<uint32_t>(handed[e]);
        payload = own | shfl_xor(own, 1) << 16;
      } else {
        payload = float_bits(Precision::operand(handed[e]));
      }
      if (word[e] >= 0) grid_exchange::publish(slot + word[e], epoch, payload);
    }
  };

  uint32_t epoch = 0;
  for (int group = team; group < args.num_groups; group += args.teams) {
    const int first_sequence = group * kTileBatch;
    sync_threads();  // the lengths of the group before have been read
    load_tile_lengths(tile_lengths, kTileBatch, args.lengths, first_sequence, B, args.seq_len);
    sync_threads();  // the lengths, at first also the zeros and the mask
    const int steps = longest_of(tile_lengths, kTileBatch);

    int length[kCells];  // -1: no such sequence
    BIRNN_UNROLL
    for (int e = 0; e < kCells; ++e) {
      const bool exists = sequence[e] >= 0 && first_sequence + sequence[e] < B;
      length[e] = exists ? tile_lengths[sequence[e]] : -1;
    }
    const auto state_offset = [&](int e) {
      return int64_t{first_sequence + sequence[e]} * H + unit[e];
    };
    // The row of step k of a sequence; past its end the row that is padded.
    const auto row_of = [&](int e, int k) {
      const int t = dir.reverse && k < length[e] ? length[e] - 1 - k : k;
      return t * B + first_sequence + sequence[e];
    };
    const auto gates_of = [&](int e, int k) {
      return static_cast<T*>(dir.gates) +
             int64_t{row_of(e, k)} * static_cast<int>(dir.gates_stride) + unit[e];
    };
    const auto output_of = [&](int e, int k) {
      return static_cast<T*>(dir.output) +
             int64_t{row_of(e, k)} * static_cast<int>(dir.output_stride) + unit[e];
    };
    // W_ih x of the next step, each value in a register of its own: the compiler packs values of 16
    // bits in pairs as soon as it can, and waits for them there.
    uint32_t ahead[kCells][kGates] = {};
    const auto fetch = [&](int k) {
      BIRNN_UNROLL
      for (int e = 0; e < kCells; ++e) {
        if (k >= length[e]) continue;
        const T* const from = gates_of(e, k);
        BIRNN_UNROLL
        for (int gate = 0; gate < kGates; ++gate) ahead[e][gate] = element_bits(from[gate * H]);
      }
    };
    BIRNN_UNROLL
    for (int e = 0; e < kCells; ++e) {
      h[e] = handed[e] = from_float<T>(0.0f);
      c[e] = 0.0f;
      if (length[e] < 0) continue;
      if (dir.hx) h[e] = static_cast<const T*>(dir.hx)[state_offset(e)];
      if (kCell == Cell::kLstm && dir.cx)
        c[e] = to_float(static_cast<const T*>(dir.cx)[state_offset(e)]);
      if (recurrent_mask) factors[e * kThreads] = recurrent_mask[state_offset(e)];
    }
    ResetWindow window;
    const auto begin_anew = [&](int k) {
      return window.begin_anew(resets, k, first_sequence, kTileBatch, B);
    };
    const auto clear_states = [&](uint32_t anew) {
      BIRNN_UNROLL
      for (int e = 0; e < kCells; ++e) {
        if (sequence[e] < 0 || !is_of(anew, e)) continue;
        h[e] = from_float<T>(0.0f);
        c[e] = 0.0f;
      }
    };
    uint32_t next_anew = 0;  // at the next step
    if (resets) {
      if (steps > 0) clear_states(begin_anew(0));
      if (steps > 1) next_anew = begin_anew(1);
    }
    BIRNN_UNROLL
    for (int e = 0; e < kCells; ++e)
      if (length[e] >= 0) handed[e] = masked(e, to_float(h[e]));
    if (steps > 0) publish_state(epoch + 1);
    fetch(0);

    for (int k = 0; k < steps; ++k) {
      ++epoch;
      float* const buffer = sums + (epoch & 1) * (kWarps * kSourceFloats);
      if (own_chunks > 0) {
        // W_hh h of all rows of the block, of this warp's columns.
        const WordPair* const slot = ring + int64_t{epoch & 1} * args.slot_pairs;
        const auto source_of = [&](int piece) {
          return [=, &words](int i) {
            const int chunk = piece % kPiecesOfTile * kAsked + i / 2, tile = piece / kPiecesOfTile;
            return slot + words[chunk] + (i % 2 * kBatchTiles + tile) * 32;
          };
        };
        WordPair pairs[kBuffers][kPairs];
        float chains[kChains][kRowTiles][4];
        BIRNN_UNROLL
        for (int piece = 0; piece < kBuffers; ++piece)
          grid_exchange::ask(pairs[piece], source_of(piece));
        BIRNN_UNROLL
        for (int piece = 0; piece < kPieces; ++piece) {
          const int tile = piece / kPiecesOfTile, part = piece % kPiecesOfTile;
          WordPair(&there)[kPairs] = pairs[piece % kBuffers];
          grid_exchange::await(there, source_of(piece), epoch);
          if (part == 0) {
            BIRNN_UNROLL
            for (int chain = 0; chain < kChains; ++chain) BIRNN_UNROLL
            for (int m = 0; m < kRowTiles; ++m) BIRNN_UNROLL
            for (int i = 0; i < 4; ++i) chains[chain][m][i] = 0.0f;
          }
          BIRNN_UNROLL
          for (int j = 0; j < kAsked; ++j) {
            const uint32_t chunk_mask = Precision::kSplits ? *mask : 0u;
            BIRNN_UNROLL
            for (int m = 0; m < kRowTiles; ++m) {
              const int fragment = (part * kAsked + j) * kRowTiles + m;
              WeightFragment from_shared;
              if (fragment >= kHeld) from_shared.load(own_spare, fragment - kHeld, lane);
              const WeightFragment& weights =
                  fragment < kHeld ? held[fragment < kHeld ? fragment : 0] : from_shared;
              BIRNN_UNROLL
              for (int step = 0; step < 2; ++step)
                Precision::multiply(chains[step % kChains][m], weights.words[step],
                                    grid_exchange::payload_of(there[2 * j + step].first),
                                    grid_exchange::payload_of(there[2 * j + step].second),
                                    chunk_mask);
            }
          }
          if (piece + kBuffers < kPieces) grid_exchange::ask(there, source_of(piece + kBuffers));
          if (part + 1 < kPiecesOfTile) continue;
          float* const target =
              buffer + warp * kSourceFloats + (tile * 8 + lane % 4 * 2) * kPitch + lane / 4;
          BIRNN_UNROLL
          for (int m = 0; m < kRowTiles; ++m) BIRNN_UNROLL
          for (int i = 0; i < 4; ++i)
            target[i % 2 * kPitch + m * kMatrixRows + i / 2 * 8] =
                kChains == 2 ? chains[0][m][i] + chains[kChains - 1][m][i] : chains[0][m][i];
        }
      }
      // What does not wait for the other warps: the gates from the input and the biases.
      float gates[kCells][kNumSums<kCell>];
      BIRNN_UNROLL
      for (int e = 0; e < kCells; ++e) BIRNN_UNROLL
      for (int j = 0; j < kNumSums<kCell>; ++j)
        gates[e][j] = bias[e][j] +
                      (j < kGates ? to_float(bits_element<T>(ahead[e][j < kGates ? j : 0])) : 0.0f);
      sync_threads();  // the sums; and the block has read this epoch, before it publishes the next

      float kept[kCells][kKeptBlocks<kCell>];
      BIRNN_UNROLL
      for (int e = 0; e < kCells; ++e) {
        if (sequence[e] < 0) continue;
        const float* const from = buffer + sequence[e] * kPitch + unit[e] - rank * U;
        BIRNN_UNROLL
        for (int source = 0; source < kWarps; ++source) BIRNN_UNROLL
        for (int gate = 0; gate < kGates; ++gate)  // a GRU's n of the state apart from the input's
          gates[e][kCell == Cell::kGru && gate == 2 ? 3 : gate] +=
              from[source * kSourceFloats + gate * U];
        float c_new = c[e];
        const float h_new = CellForward<kCell, Math>::run(gates[e], to_float(h[e]), c_new, kept[e]);
        const bool ended = k >= length[e];
        if (!ended) {
          h[e] = from_float<T>(h_new);
          c[e] = c_new;
          // Zeros by a select.
          handed[e] = is_of(next_anew, e) ? from_float<T>(0.0f) : masked(e, h_new);
        }
      }
      if (k + 1 < steps) publish_state(epoch + 1);

      // Off the way to the other blocks.
      BIRNN_UNROLL
      for (int e = 0; e < kCells; ++e) {
        if (length[e] < 0) continue;
        const bool active = k < length[e];
        *output_of(e, k) = active ? h[e] : from_float<T>(0.0f);
        if constexpr (kHasReserve<kCell>) {
          if (active && args.save_reserve) {
            T* const reserve = gates_of(e, k);
            BIRNN_UNROLL
            for (int j = 0; j < kKeptBlocks<kCell>; ++j) reserve[j * H] = from_float<T>(kept[e][j]);
          }
        }
      }
      fetch(k + 1);
      if (resets) {
        clear_states(next_anew);
        next_anew = k + 2 < steps ? begin_anew(k + 2) : 0u;
      }
    }

    BIRNN_UNROLL
    for (int e = 0; e < kCells; ++e) {
      if (length[e] < 0) continue;
      static_cast<T*>(dir.hy)[state_offset(e)] = h[e];
      if constexpr (kCell == Cell::kLstm) static_cast<float*>(dir.cy)[state_offset(e)] = c[e];
      // Steps that no sequence of the group has.
      for (int k = steps; k < args.seq_len; ++k) *output_of(e, k) = from_float<T>(0.0f);
    }
  }
}

}  // namespace birnn::cuda::grid_gather
