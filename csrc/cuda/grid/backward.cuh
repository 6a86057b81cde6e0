// The backward recurrence of one or two directions in one kernel, each direction divided among many
// blocks that exchange through L2 (grid/exchange.cuh). W_hh stays on chip for all steps: in
// registers, and what exceeds them in shared memory. Equations: cells.h.
//
// Division. The product dh = W_hh^T dgates has the states as rows and the gates of all units as
// columns. A direction's P * Q blocks form a grid: block (p, q) multiplies the rows of row team p
// by the columns of column team q, and owns U units, those whose rows are p's and whose columns are
// q's: their dgates, dc and dh. So a step has two exchanges:
//
//   gates   the owners of column team q publish dgates, in the element type; its P blocks read them
//   sums    the blocks of row team p publish fp32 sums over their columns, to the owner of each
//   row,
//           which adds them in the order of q: no atomics, the same bits in every run
//
// Why. KB that a block reads and writes in a step, epochs included (every payload travels with
// one), and us a step by 5.5 TB/s of L2 over 128 blocks and 0.6 us an exchange; 64 blocks a
// direction, both directions at once, 16 bits. P = 1 publishes sums alone (reduce-scatter), Q = 1
// gates alone (all-gather, one exchange); the last column is the best division in both.
//
//                      reduce-scatter    all-gather        both
//   LSTM  H 768  B 8   96 KB   2.8 us    96 KB   2.8 us    24 KB  1.8 us  (8 x 8)
//                B 16  192     5.1       192     5.1       48     2.3
//         H 1024 B 8   128     3.6       128     3.6       32     2.0
//                B 16  256     6.6       256     6.6       64     2.7
//   GRU   H 1024 B 8   128     3.6       96      2.8       28     1.9
//   RNN   H 768  B 8   96      2.8       24      1.2       12     1.5     (16 x 4)
//                B 16  192     5.1       48      1.7       24     1.8
//         H 1024 B 8   128     3.6       32      1.4       16     1.6
//                B 16  256     6.6       64      2.1       32     2.0
//
// In fp32 gates take twice the bytes, sums the same. So P and Q are run-time values, which Sizes
// chooses by this count. Estimates: nothing here has been measured.
//
// Product. A warp multiplies all rows of its block by its part of the columns: the words of an
// exchange are laid out as operand B, so a lane polls what it multiplies, and no barrier or copy
// stands between. The sums of the warps meet in shared memory.
//
//   rows of A  the 16 rows of a tile are 8 pairs of units: row g is unit 2 g, row g + 8 unit 2 g
//   + 1, so that a lane has a pair of units of two neighbouring sequences
//   columns    [block of the team][gate][unit], for a vanilla RNN one gate
//
// Step s undoes forward step k = S - 1 - s, S being the longest length in the group:
//   1. s > 0: await the sums of step s - 1; dh = dy + their sum (at a sequence's last step: dy +
//      dhy); the cell; publish dgates, zeros where the sequence has no step k
//   2. off the way to the peers: write dgates out, add them to the gradients of the biases, ask for
//      the operands of step k - 1
//   3. for each 8 sequences: await dgates, multiply; one barrier of the block; publish the sums, or
//      keep them if Q = 1
// After the last step the sums are the gradient of hx. The barrier shows the sums of the warps,
// which have two buffers in turn: who writes one again has passed the next barrier, and so have all
// who read it. A sequence that has ended, and one that does not exist, takes part in every
// exchange: all words are published in every epoch, so every wait is for every block of a team.
//
// Two slots suffice, although a block waits only for its teams: let a block publish words of gates
// of epoch e + 2 over those of e. It has awaited sums of epoch e + 1 of its row team, its own among
// them, made after awaiting gates of epoch e + 1 of its whole column team; each block of that team
// published those after awaiting its own sums of epoch e, made after the barrier behind its reads
// of gates of epoch e. And let it publish sums of epoch e + 2 to a block of its row team over those
// of e: it has awaited gates of epoch e + 2 of its column team, published by blocks that had
// awaited sums of epoch e + 1 of their row teams, among them, in its own row team, sums by that
// block's column team, made after awaiting the gates of epoch e + 1 that the block had published
// after reading the sums of e. All of this holds for each 8 sequences on their own, and where a
// group follows another: epochs go on, and a group ends by awaiting its last sums.
//
// Instructions, by the SASS of nvcc 13.0 for sm_90a, LSTM in fp16, 8 row tiles of 2 chunks, one
// pair a thread: a step is about 1300 in the text, counting every branch, among them both ways to
// fetch and to store; no local memory, no MEMBAR (the words need none), weights in 128 of 240
// registers. The 32 HMMA stand within 40 instructions, 31 lie between the last one and the barrier,
// and 120 in the text between the barrier and the published sums, more of them executed: the loop
// over warps is one of them.
//
// Groups of sequences follow each other inside the kernel: any batch runs wherever one group does,
// the weights are loaded once, and a shape that needs this kernel fills the device with one group.
// Both directions run in one cooperative launch, see exchange.cuh for why it cannot deadlock:
// a block waits only for blocks of its own direction, all resident together.
#pragma once

#include "cuda/device/device.h"
#include "cuda/grid/backward_sizes.h"
#include "cuda/grid/exchange.cuh"
#include "cuda/warp/backward_pairs.cuh"
#include "cuda/warp/batch_tile.cuh"
#include "cuda/warp/bias_gradients.cuh"
#include "cuda/warp/fragments.cuh"
#include "cuda/warp/pairs.cuh"
#include "recurrence.h"

namespace birnn::cuda::gather_reduce {

using namespace birnn::device;

// By value to the kernels.
struct Arguments {
  BackwardArguments directions[2];
  Bits128* fragments = nullptr;    // [D][block][row tile][chunk] fragments
  WordPair* gates_ring = nullptr;  // [D][Q][slot][batch tile][chunk] of 64 pairs of words
  WordPair* sums_ring = nullptr;   // [D][block][slot][Q sources][NB / 2][U / 2][2]
  int num_directions = 0;
  int row_teams = 0, column_teams = 0;  // P, Q
  int units = 0;                        // U of a block, even
  int tile_batch = 0;                   // NB, a multiple of 8
  int num_tiles = 0;                    // m16 tiles of Q * U rows
  int num_chunks = 0;                   // of P * G * U columns
  int warp_chunks = 0;                  // of a warp, at most
};

// The 32-bit payloads that a pair of units takes.
template <class Precision>
constexpr int kPairWords = 2 / Precision::kWordElements;
// Pairs of words of a chunk of 8 sequences: two k-steps of a B operand, 16 bytes to a lane.
constexpr int kChunkPairs = 64;
constexpr int kChunkWords = 16;  // payloads of a chunk, of one sequence

// The place of a payload of a column team among the words of a tile of 8 sequences: the lane that
// multiplies it finds it beside the other word of its operand.
BIRNN_DEVICE int word_place(int payload, int sequence) {
  return payload / 8 * 64 + sequence * 8 + payload % 8;
}

// weight_hh [G*H, H] as operand A, if asked for: [direction][block][row tile][chunk] fragments.
// Clears the rings, and makes the words of resets: it runs again whenever a graph replays the
// launch.
template <Cell kCell, class Precision>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kThreads, 1) void pack_kernel(Arguments args, bool packs) {
  using T = typename Precision::Element;
  constexpr int kElements = Precision::kWordElements;
  const int U = args.units, P = args.row_teams, Q = args.column_teams, blocks = P * Q;
  const int per_block = args.num_tiles * args.num_chunks;
  const int num_columns = P * kNumGates<kCell> * U;
  pack_fragments<Precision>(
      args.fragments, packs ? int64_t{args.num_directions} * blocks * per_block : 0,
      [&](int64_t fragment, int row, int chunk_column) {
        const int block = static_cast<int>(fragment / per_block) % blocks;
        const BackwardArguments& of =
            args.directions[static_cast<int>(fragment / per_block) / blocks];
        const int tile = static_cast<int>(fragment % per_block) / args.num_chunks;
        const int chunk = static_cast<int>(fragment % per_block) % args.num_chunks;
        // Words of a k-step are numbered lane by lane, where an operand counts register by
        // register.
        const int step = chunk_column / Precision::kStepColumns;
        const int word = chunk_column % Precision::kStepColumns / kElements;
        const int payload = chunk * kChunkWords + step * 8 + word % 4 * 2 + word / 4;
        const int column = payload * kElements + chunk_column % kElements;
        const int team = column / (kNumGates<kCell> * U), gate = column / U % kNumGates<kCell>;
        const int unit = (team * Q + block % Q) * U + column % U;
        const int state = block / Q * Q * U + tile * kMatrixRows + row % 8 * 2 + row / 8;
        const int H = of.hidden_size;
        const bool exists = column < num_columns && unit < H && state < H;
        return exists
                   ? static_cast<const T*>(of.dir.weight_hh)[(int64_t{gate} * H + unit) * H + state]
                   : from_float<T>(0.0f);
      });
  const int tile_words = args.num_chunks * kChunkWords * 8;
  grid_exchange::clear(
      args.gates_ring,
      int64_t{args.num_directions} * Q * 2 * (args.tile_batch / 8) * (tile_words / 2),
      [&](int64_t word) {
        const int in_tile = static_cast<int>(word % tile_words);
        const int payload = in_tile / 64 * 8 + in_tile % 8;
        return payload * kElements < num_columns ? grid_exchange::kNever : grid_exchange::kAlways;
      });
  if (Q > 1)
    grid_exchange::clear(args.sums_ring,
                         int64_t{args.num_directions} * blocks * 2 * Q * args.tile_batch * (U / 2),
                         [&](int64_t) { return grid_exchange::kNever; });
  for (int d = 0; d < args.num_directions; ++d) {
    const BackwardArguments& of = args.directions[d];
    pack_resets(of.resets, of.dir.resets, of.lengths, of.dir.reverse, of.seq_len, of.batch_size);
  }
}

// sums [row tile] += the weights of a chunk * b. weight(m): the chunk's fragment of row tile m,
// zeros past the last one: without branches the tiles' products overlap.
template <class Precision, int kChains, int kRowTiles, class Weight>
BIRNN_DEVICE void multiply_chunk(float (&sums)[kChains][kRowTiles][4], const Weight& weight,
                                 const WordPair& first, const WordPair& second,
                                 const uint32_t* mask) {
  const uint32_t b[4] = {
      grid_exchange::payload_of(first.first), grid_exchange::payload_of(first.second),
      grid_exchange::payload_of(second.first), grid_exchange::payload_of(second.second)};
  const uint32_t chunk_mask = Precision::kSplits ? *mask : 0u;
  BIRNN_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    const WeightFragment fragment = weight(m);
    BIRNN_UNROLL
    for (int step = 0; step < 2; ++step)
      Precision::multiply(sums[step % kChains][m], fragment.words[step], b[2 * step],
                          b[2 * step + 1], chunk_mask);
  }
}

// kRowTiles, kChunks: the weights that a warp holds in registers, upper bounds; kRest: chunks
// beyond are in shared memory. kPairs: the pairs of units, of one sequence each, of a thread.
template <Cell kCell, class Precision, int kRowTiles, int kChunks, bool kRest, int kPairs>
BIRNN_KERNEL BIRNN_LAUNCH_BOUNDS(kThreads, 1) void grid_backward_kernel(Arguments args) {
  using T = typename Precision::Element;
  constexpr int kBlocks = kDgatesBlocks<kCell>, kGates = kNumGates<kCell>;
  constexpr int kChains = kRowTiles < 4 ? 2 : 1;
  constexpr int kAskedChunks = kChunks < 4 ? kChunks : 4;  // whose words are asked for at once
  constexpr int kAskedSources = 4;
  const int U = args.units, NB = args.tile_batch, Q = args.column_teams;
  const int half_units = U / 2, num_tiles = args.num_tiles, num_chunks = args.num_chunks;
  const int blocks = args.row_teams * Q;
  const int thread = static_cast<int>(thread_idx()), lane = lane_id(), warp = warp_id();
  const int direction = static_cast<int>(block_idx().x) / blocks;
  const int block = static_cast<int>(block_idx().x) % blocks;
  const int row_team = block / Q, column_team = block % Q;
  const int first_chunk = warp * args.warp_chunks;
  const int left = num_chunks - first_chunk;
  const int own_chunks = left < 0 ? 0 : left < args.warp_chunks ? left : args.warp_chunks;
  const int rest_chunks = kRest && args.warp_chunks > kChunks ? args.warp_chunks - kChunks : 0;

  Smem shared;
  using Biases = BiasGradients<kCell, T, kThreads, kPairs, kBiasesInShared<kPairs>>;
  Bits64* const bias_slots = shared.alloc<Bits64>(Biases::kSlots);
  using Pairs = BackwardPairs<kCell, Precision, kThreads, kPairs>;
  // [2][kMaxTileSequences] words, [pairs][threads] of a mask: at a place that takes no register
  const int mask_words = args.directions[0].recurrent_mask ? Pairs::kMaskWords : 0;
  uint32_t* const given = shared.alloc<uint32_t>(2 * kMaxTileSequences + mask_words);
  // [2][warp][row tile][lane] of 4 sums
  Bits128* const sums_of_warps = shared.alloc<Bits128>(2 * kWarps * num_tiles * 32);
  // [warp][chunk][row tile] fragments
  Bits128* const rest = shared.alloc<Bits128>(kWarps * rest_chunks * num_tiles * 64);
  int* const tile_lengths = shared.alloc<int>(NB);
  uint32_t* const mask = shared.alloc<uint32_t>(1);
  // From here they are read where they are used, and take no registers beside the weights.
  BackwardArguments* const arguments = shared.alloc<BackwardArguments>(1);

  WeightFragment weights[kRowTiles][kChunks];
  const int64_t first_fragment = (int64_t{direction} * blocks + block) * num_tiles * num_chunks;
  BIRNN_UNROLL
  for (int m = 0; m < kRowTiles; ++m) BIRNN_UNROLL
  for (int chunk = 0; chunk < kChunks; ++chunk)
    if (m < num_tiles && chunk < own_chunks)
      weights[m][chunk].load(args.fragments,
                             first_fragment + int64_t{m} * num_chunks + first_chunk + chunk, lane);
  // Each lane keeps what it multiplies itself: no barrier.
  const auto rest_fragment = [&](int chunk, int m) {
    return (warp * rest_chunks + chunk - kChunks) * num_tiles + m;
  };
  if constexpr (kRest) {
    for (int chunk = kChunks; chunk < own_chunks; ++chunk)
      for (int m = 0; m < num_tiles; ++m)
        for (int step = 0; step < 2; ++step)
          rest[(rest_fragment(chunk, m) * 2 + step) * 32 + lane] =
              args.fragments[((first_fragment + int64_t{m} * num_chunks + first_chunk + chunk) * 2 +
                              step) *
                                 32 +
                             lane];
  }
  if (thread == 0) {
    *mask = kTf32Mask;
    *arguments = args.directions[direction];
  }
  const BackwardArguments& of = *arguments;
  sync_threads();  // the mask and the arguments

  const int tile_pairs = num_chunks * kChunkPairs;  // of words, of 8 sequences
  const int slot_pairs = NB / 8 * tile_pairs;
  WordPair* const gates_ring =
      args.gates_ring + (int64_t{direction} * Q + column_team) * 2 * slot_pairs;
  const int source_pairs = NB * half_units;
  const int team_block = direction * blocks + row_team * Q;
  const auto sums_of = [&](int owner, uint32_t slot) {
    const int64_t of_block = int64_t{team_block + owner} * 2 + slot;
    return args.sums_ring + of_block * Q * source_pairs;
  };

  Biases bias_gradients(bias_slots, thread);
  uint32_t epoch = 0;  // of the latest exchange
  for (int first_sequence = 0; first_sequence < of.batch_size; first_sequence += NB) {
    sync_threads();  // all have read the lengths of the group before
    load_tile_lengths(tile_lengths, NB, of.lengths, first_sequence, of.batch_size, of.seq_len);
    sync_threads();  // the lengths
    const int steps = longest_of(tile_lengths, NB);
    Pairs pairs(of, tile_lengths, first_sequence, block * U, U, NB, thread, nullptr, given);
    pairs.begin(steps);
    if (of.resets) sync_threads();  // the first words of resets
    float sums[kPairs][2] = {};     // dgates W_hh of the step after
    const auto add_sums = [&](int e, float (&dh)[2]) {
      dh[0] += sums[e][0];
      dh[1] += sums[e][1];
    };
    // The parts of the row team's blocks, in their order.
    const auto receive_sums = [&] {
      if (Q == 1) return;
      BIRNN_UNROLL
      for (int e = 0; e < kPairs; ++e) {
        const int place = e * kThreads + thread;
        const bool exists = place < source_pairs;
        const WordPair* const first = sums_of(column_team, epoch & 1) + (exists ? place : 0);
        sums[e][0] = sums[e][1] = 0.0f;
        for (int source = 0; source < Q; source += kAskedSources) {
          const int sources = Q - source < kAskedSources ? Q - source : kAskedSources;
          const int count = exists ? sources : 0;
          WordPair parts[kAskedSources];
          grid_exchange::ask(parts, first + source * source_pairs, source_pairs, count);
          grid_exchange::await(parts, first + source * source_pairs, source_pairs, count, epoch);
          BIRNN_UNROLL
          for (int i = 0; i < kAskedSources; ++i) {
            if (i >= count) continue;
            sums[e][0] += bits_float(grid_exchange::payload_of(parts[i].first));
            sums[e][1] += bits_float(grid_exchange::payload_of(parts[i].second));
          }
        }
      }
    };

    for (int s = 0; s < steps; ++s) {
      const int k = steps - 1 - s;
      if (s > 0) receive_sums();
      ++epoch;
      WordPair* const gates = gates_ring + (epoch & 1) * slot_pairs;
      BIRNN_UNROLL
      for (int e = 0; e < kPairs; ++e) {
        const int n = pairs.tile_row(e);
        if (n >= NB) continue;
        Pair<T> dgates[kBlocks];
        if (pairs.length[e] >= 0) pairs.template undo<StepKind::kAny>(e, k, add_sums, dgates);
        BIRNN_UNROLL
        for (int gate = 0; gate < kGates; ++gate) {
          const Pair<T>& pair = dgates[gate + kBlocks - kGates];
          const auto bits =
              pack(Pair<T>{Precision::operand(pair.first), Precision::operand(pair.second)});
          const int payload =
              ((row_team * kGates + gate) * half_units + pairs.pair_of(e)) * kPairWords<Precision>;
          uint64_t* const word =
              reinterpret_cast<uint64_t*>(gates + n / 8 * tile_pairs) + word_place(payload, n % 8);
          if constexpr (kPairWords<Precision> == 1)
            grid_exchange::publish(word, epoch, bits);
          else
            grid_exchange::publish(reinterpret_cast<WordPair*>(word), epoch, bits.x, bits.y);
        }
        // Off the way to the peers.
        if (pairs.length[e] < 0) continue;
        BIRNN_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
          pairs.store_dgates(e, k, b, dgates[b]);
          bias_gradients.add(e, b, dgates[b]);
        }
      }
      pairs.fetch(k - 1);

      for (int tile = 0; tile < NB / 8; ++tile) {
        const WordPair* const operand =
            gates + tile * tile_pairs + first_chunk * kChunkPairs + lane;
        float parts[kChains][kRowTiles][4] = {};
        // The chunks from `first` on, as many as are asked for at once.
        const auto multiply = [&](int first, const auto& weight) {
          WordPair b[2 * kAskedChunks];
          const WordPair* const source = operand + first * kChunkPairs;
          const int count = 2 * (own_chunks - first);
          grid_exchange::ask(b, source, 32, count);
          grid_exchange::await(b, source, 32, count, epoch);
          BIRNN_UNROLL
          for (int i = 0; i < kAskedChunks; ++i)
            if (first + i < own_chunks)
              multiply_chunk<Precision>(
                  parts, [&](int m) { return weight(m, first + i); }, b[2 * i], b[2 * i + 1], mask);
        };
        BIRNN_UNROLL
        for (int first = 0; first < kChunks; first += kAskedChunks)
          multiply(first, [&](int m, int chunk) { return weights[m][chunk]; });
        if constexpr (kRest) {
          for (int first = kChunks; first < own_chunks; first += kAskedChunks)
            multiply(first, [&](int m, int chunk) {
              WeightFragment fragment;
              if (m < num_tiles) fragment.load(rest, rest_fragment(chunk, m), lane);
              return fragment;
            });
        }
        const uint32_t turn = epoch * static_cast<uint32_t>(NB / 8) + static_cast<uint32_t>(tile);
        Bits128* const buffer = sums_of_warps + (turn & 1) * kWarps * num_tiles * 32;
        BIRNN_UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
          if (m >= num_tiles || own_chunks == 0) break;
          float four[4];
          BIRNN_UNROLL
          for (int i = 0; i < 4; ++i)
            four[i] = kChains == 2 ? parts[0][m][i] + parts[kChains - 1][m][i] : parts[0][m][i];
          buffer[(warp * num_tiles + m) * 32 + lane] = Bits128{
              float_bits(four[0]), float_bits(four[1]), float_bits(four[2]), float_bits(four[3])};
        }
        // The sums of all warps to all. It also stands between this block's reads of the words of
        // this epoch and all that it publishes in the next one.
        sync_threads();
        if (Q > 1) {
          // Warp m adds up row tile m: in a lane a pair of units of two sequences.
          const int pair = warp * 8 + lane / 4, owner = pair / half_units;
          if (warp < num_tiles && owner < Q) {
            float four[4] = {};
            // Some at once: one after the other, each would wait for shared memory, 309 of 5263
            // cycles a step (LSTM, tf32, H = 512, one tile), 929 of 10433 with four tiles.
            constexpr int kAtOnce = 4;
            BIRNN_UNROLL
            for (int first = 0; first < kWarps; first += kAtOnce) {
              Bits128 of_warps[kAtOnce]{};
              BIRNN_UNROLL
              for (int i = 0; i < kAtOnce; ++i)
                if ((first + i) * args.warp_chunks < num_chunks)
                  of_warps[i] = buffer[((first + i) * num_tiles + warp) * 32 + lane];
              BIRNN_UNROLL
              for (int i = 0; i < kAtOnce; ++i) {
                four[0] += bits_float(of_warps[i].x);
                four[1] += bits_float(of_warps[i].y);
                four[2] += bits_float(of_warps[i].z);
                four[3] += bits_float(of_warps[i].w);
              }
            }
            WordPair* const target = sums_of(owner, epoch & 1) + column_team * source_pairs +
                                     ((tile * 4 + lane % 4) * half_units + pair % half_units) * 2;
            grid_exchange::publish(target, epoch, float_bits(four[0]), float_bits(four[2]));
            grid_exchange::publish(target + 1, epoch, float_bits(four[1]), float_bits(four[3]));
          }
        } else {
          BIRNN_UNROLL
          for (int e = 0; e < kPairs; ++e) {
            const int n = pairs.tile_row(e), pair = pairs.pair_of(e);
            if (n / 8 != tile) continue;
            sums[e][0] = sums[e][1] = 0.0f;
            const float* const first =
                reinterpret_cast<const float*>(buffer + pair / 8 * 32 + pair % 8 * 4 + n % 8 / 2);
            for (int w = 0; w * args.warp_chunks < num_chunks; ++w) {
              const float* const part = first + w * num_tiles * 128;
              sums[e][0] += part[n % 2];
              sums[e][1] += part[2 + n % 2];
            }
          }
        }
      }
    }
    if (steps > 0) receive_sums();
    pairs.finish(steps, add_sums);
  }
  // In rows of two sequences they take half of their slots; those of two pairs of units to a
  // thread, which have none, no more than the sums of the warps.
  Bits64* const bias_scratch =
      Biases::kSlots > 0 ? bias_slots : reinterpret_cast<Bits64*>(sums_of_warps);
  bias_gradients.finish(of, block * U, U, NB, thread, 0, 1, reinterpret_cast<float*>(bias_scratch));
}

}  // namespace birnn::cuda::gather_reduce
