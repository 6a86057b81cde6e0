// The hidden units of one thread in a persistent backward kernel: pairs of neighbouring units, one
// sequence to a pair, with what they carry from step to step and what they read from global memory,
// asked for a step ahead. Equations: cells.h.
//
// A block owns `units` hidden units of a tile of the batch. Its pairs are numbered two sequences by
// two; pair e of a thread is number e * threads + thread, so that two neighbouring threads own the
// same units of two sequences, which lie side by side where sums are handed over.
#pragma once

#include "cuda/device/device.h"
#include "cuda/persistent/backward_arguments.h"
#include "cuda/warp/pairs.cuh"
#include "cuda/warp/resets.cuh"
#include "cuda/warp/unit_backward.cuh"
#include "recurrence.h"

namespace birnn::cuda {

using namespace birnn::device;

// What a step of a pair reads, as arrays in memory keep it: a pair of 16-bit elements takes one
// register. Where pairs are not aligned words they are put together as they are fetched, which
// waits for them: an odd hidden size costs the latency of loads in each step.
template <Cell kCell, class T>
struct BackwardOperands {
  using Bits = typename PairBits<T>::Type;
  static constexpr int kActivations = activation_arrays(kCell);
  Bits activations[kActivations]{};  // LSTM i f g o; GRU r z n q; RNN y
  Bits before{};                     // LSTM: c, GRU: h, of the step before
  Bits dy{};
  Bits dc{};  // LSTM, where it is given
};

// Where a pair of a block lies: its sequence in the tile, and which of the block's pairs it is.
struct PairPlace {
  int row, pair;
};
BIRNN_DEVICE PairPlace place_of_pair(int number, int half_units) {
  const int two = number / 2;
  return {two / half_units * 2 + number % 2, two % half_units};
}

// What is known of a step of a tile when it is compiled. kInner: all sequences have it, it is
// neither the first nor the last of any, and there are no gradients of the cell state, no resets
// and no mask; kInnerWithMore: there is one of these. kAny: nothing.
enum class StepKind { kAny, kInner, kInnerWithMore };

// A pair at `offset` in array, as one aligned word or put together from two elements.
template <class T, bool kPaired, class Bits>
BIRNN_DEVICE void load_bits(const void* array, int64_t offset, bool both, Bits& bits) {
  if constexpr (kPaired)
    bits = *reinterpret_cast<const Bits*>(static_cast<const T*>(array) + offset);
  else
    bits = pack(load_pair<T>(array, offset, false, both));
}

// kAhead: what a step reads is copied two steps ahead, into shared memory: a load into registers
// that is under way when a block waits for its cluster keeps that wait, whose fence is one for all
// that the thread has asked for. Else it is loaded one step ahead.
template <Cell kCell, class Precision, int kThreads, int kPairs, bool kAhead = false>
struct BackwardPairs {
  using T = typename Precision::Element;
  using Math = typename Precision::Math;
  using Operands = BackwardOperands<kCell, T>;
  using Bits = typename Operands::Bits;
  static constexpr int kBlocks = kDgatesBlocks<kCell>;
  static constexpr int kGates = kNumGates<kCell>;
  static constexpr int kActivations = Operands::kActivations;
  static constexpr int kBefore = kActivations, kDy = kActivations + 1, kDc = kActivations + 2;
  static constexpr bool kTakesDc = kCell == Cell::kLstm;
  static constexpr int kOperands = operand_arrays(kCell);
  static constexpr int kSequenceShift = 16;
  static constexpr int kMaskWords = kPairs * kThreads * static_cast<int>(sizeof(Bits)) / 4;

  const BackwardArguments& args;
  int first_sequence, first_unit;  // of the tile, of the block
  int shortest;                    // of the tile's sequences; its negative of kInnerWithMore
  int length[kPairs];              // -1: no such pair of units in the batch
  int place[kPairs];               // the sequence in the tile, and the pair in the block
  float carried[kPairs][2];        // LSTM: dc; GRU: the gradient along z * h
  Bits c_after[kPairs]{};
  Operands operands[kAhead ? 1 : kPairs];
  Bits* slots;  // kAhead: [2][operands][pairs][threads] in shared memory, from the thread's on
  bool all_given;
  // Where they are given: words of resets, those of steps 32 i to 32 i + 31 in row i % 2,
  // [2][kMaxTileSequences]; behind them the mask, [pairs][threads].
  uint32_t* given;

  // tile_lengths [tile_batch], in shared memory. thread: its number among those that share pairs.
  BIRNN_DEVICE BackwardPairs(const BackwardArguments& arguments, const int* tile_lengths,
                             int first_sequence_of_tile, int first_unit_of_block, int units,
                             int tile_batch, int thread, Bits* slots_of_block = nullptr,
                             uint32_t* given_of_block = nullptr)
      : args(arguments),
        first_sequence(first_sequence_of_tile),
        first_unit(first_unit_of_block),
        slots(kAhead ? slots_of_block + thread : nullptr),
        all_given(shfl(arguments.paired && arguments.dir.dy, lane_id()) != 0),
        given(given_of_block) {
    const int half_units = units / 2;
    shortest = INT32_MAX;
    for (int n = 0; n < tile_batch; ++n)
      if (tile_lengths[n] >= 0 && tile_lengths[n] < shortest) shortest = tile_lengths[n];
    if ((kTakesDc && args.dir.dc) || args.resets || args.recurrent_mask) shortest = -shortest;
    BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e) {
      const auto [n, pair] = place_of_pair(e * kThreads + thread, half_units);
      const bool exists = n < tile_batch && first_sequence + n < args.batch_size &&
                          first_unit + pair * 2 < args.hidden_size;
      length[e] = exists ? tile_lengths[n] : -1;
      place[e] = n << kSequenceShift | pair;
      carried[e][0] = carried[e][1] = 0.0f;
    }
  }

  BIRNN_DEVICE int tile_row(int e) const { return place[e] >> kSequenceShift; }
  BIRNN_DEVICE int pair_of(int e) const { return place[e] & ((1 << kSequenceShift) - 1); }
  BIRNN_DEVICE int sequence_of(int e) const { return first_sequence + tile_row(e); }
  BIRNN_DEVICE int unit_of(int e) const { return first_unit + pair_of(e) * 2; }
  BIRNN_DEVICE bool has_both(int e) const { return unit_of(e) + 1 < args.hidden_size; }
  BIRNN_DEVICE int64_t state_offset(int e) const {
    return int64_t{sequence_of(e)} * args.hidden_size + unit_of(e);
  }
  // The row of step k of a sequence; past its end the row that is padded.
  BIRNN_DEVICE int row_of(int e, int k) const {
    const int t = args.dir.reverse && k < length[e] ? length[e] - 1 - k : k;
    return t * args.batch_size + sequence_of(e);
  }

  // The row and the column of the state before step k, for k up to the sequence's length, where it
  // is its last. Null: zeros.
  BIRNN_DEVICE const void* state_before(int e, int k, int64_t& offset) const {
    if (k == 0) {
      offset = int64_t{sequence_of(e)} * args.hidden_size;
      return kCell == Cell::kLstm ? args.dir.cx : args.dir.hx;
    }
    const int64_t row = row_of(e, k - 1);
    offset = kCell == Cell::kLstm ? row * args.reserve_stride + 4 * args.hidden_size
                                  : row * args.output_stride;
    return kCell == Cell::kLstm ? args.dir.reserve : args.dir.output;
  }
  // Takes a pair of step k from where it stands. which: an activation, kBefore, kDy or kDc.
  template <bool kPaired>
  BIRNN_DEVICE void take(int e, int k, int which, const T* source) {
    if constexpr (kAhead) {
      Bits* const target = slot_of(k) + (which * kPairs + e) * kThreads;
      if constexpr (kPaired) {
        cp_async<sizeof(Bits)>(target, source);
      } else {
        Bits bits{};
        load_bits<T, false>(source, 0, has_both(e), bits);
        *target = bits;
      }
    } else {
      load_bits<T, kPaired>(source, 0, has_both(e), taken(e, which));
    }
  }
  BIRNN_DEVICE Bits& taken(int e, int which) {
    return which == kBefore ? operands[e].before
           : which == kDy   ? operands[e].dy
           : which == kDc   ? operands[e].dc
                            : operands[e].activations[which % kActivations];
  }
  // The same of an array's row, null: zeros.
  template <bool kPaired>
  BIRNN_DEVICE void take(int e, int k, int which, const void* array, int64_t row) {
    if (array)
      take<kPaired>(e, k, which, static_cast<const T*>(array) + row + unit_of(e));
    else if constexpr (kAhead)
      slot_of(k)[(which * kPairs + e) * kThreads] = Bits{};
    else
      taken(e, which) = Bits{};
  }
  // Asks for what step k reads. In registers each load goes into one that nobody reads before the
  // next step: a choice between a loaded value and another one, as of a variable that is set in
  // some cases only, would wait for the load.
  template <bool kPaired>
  BIRNN_DEVICE void fetch_as(int k) {
    const BackwardDirection& dir = args.dir;
    BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e) {
      if (k < 0 || k > length[e]) continue;
      if constexpr (kGates > 1) {
        int64_t offset;
        const void* const array = state_before(e, k, offset);
        take<kPaired>(e, k, kBefore, array, offset);
      }
      if (k >= length[e]) continue;
      const int64_t row = row_of(e, k);
      if constexpr (kActivations == 1) {
        take<kPaired>(e, k, 0, dir.output, row * args.output_stride);
      } else {
        BIRNN_UNROLL
        for (int j = 0; j < kActivations; ++j)
          take<kPaired>(e, k, j, dir.reserve, row * args.reserve_stride + j * args.hidden_size);
      }
      take<kPaired>(e, k, kDy, dir.dy, row * args.dy_stride);
      if constexpr (kTakesDc) take<kPaired>(e, k, kDc, dir.dc, row * args.dc_stride);
    }
  }
  // Whether step k is one that all sequences have, neither the first nor the last of any; without
  // dc, resets and a mask, which must not cost the others anything, and with one of them.
  BIRNN_DEVICE bool is_inner(int k) const { return k > 0 && k + 1 < shortest; }
  BIRNN_DEVICE bool is_inner_with_more(int k) const { return k > 0 && k + 1 < -shortest; }
  // The same for such a step, where all there is to read is there, and is aligned: few instructions
  // for each copy. (Rows and strides are not negative: a product of 32 bits each.)
  template <bool kMayHaveDc>
  BIRNN_DEVICE void fetch_inner(int k) {
    const BackwardDirection& dir = args.dir;
    BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e) {
      if (length[e] < 0) continue;
      const auto at = [&](const void* array, int row, int stride) {
        const uint64_t first = uint64_t{static_cast<uint32_t>(row)} * static_cast<uint32_t>(stride);
        return static_cast<const T*>(array) + first + static_cast<uint32_t>(unit_of(e));
      };
      const int row = row_of(e, k);
      const int before = row + (dir.reverse ? args.batch_size : -args.batch_size);
      if constexpr (kActivations == 1) {
        take<true>(e, k, 0, at(dir.output, row, args.output_stride));
      } else {
        const T* block = at(dir.reserve, row, args.reserve_stride);
        BIRNN_UNROLL
        for (int j = 0; j < kActivations; ++j, block += static_cast<uint32_t>(args.hidden_size))
          take<true>(e, k, j, block);
      }
      if constexpr (kCell == Cell::kLstm)
        take<true>(e, k, kBefore,
                   at(dir.reserve, before, args.reserve_stride) +
                       4 * static_cast<uint32_t>(args.hidden_size));
      else if constexpr (kGates > 1)
        take<true>(e, k, kBefore, at(dir.output, before, args.output_stride));
      take<true>(e, k, kDy, at(dir.dy, row, args.dy_stride));
      if constexpr (kMayHaveDc)
        take<true>(e, k, kDc, dir.dc,
                   static_cast<int64_t>(uint64_t{static_cast<uint32_t>(row)} *
                                        static_cast<uint32_t>(args.dc_stride)));
    }
  }
  // Resets. Block `block` of 32 steps, by those threads that there are sequences for; a barrier of
  // the block shows it. In its place was a block whose last use lies 16 steps back.
  template <bool kCopies>
  BIRNN_DEVICE void load_resets(int block) {
    static_assert(kThreads >= kMaxTileSequences);
    const int n = static_cast<int>(thread_idx());
    if (n < kMaxTileSequences && first_sequence + n < args.batch_size) {
      uint32_t* const target = given + (block & 1) * kMaxTileSequences + n;
      const uint32_t* const source =
          args.resets + int64_t{block} * args.batch_size + first_sequence + n;
      if constexpr (kCopies)
        cp_async<4>(target, source);
      else
        *target = *source;
    }
  }
  BIRNN_DEVICE void begin_resets(int steps) {
    if (!args.resets) return;
    const int last = (steps - 1) / kResetSteps;
    for (int block = last; block >= 0 && block + 2 > last; --block) load_resets<false>(block);
  }
  BIRNN_DEVICE void fetch_resets(int k) {
    if (args.resets && k % kResetSteps == kResetSteps / 2 && k > kResetSteps)
      load_resets<kAhead>(k / kResetSteps - 1);
  }
  // Whether step k of pair e's sequence begins anew.
  BIRNN_DEVICE bool begins_anew(int e, int k) const {
    if (!args.resets) return false;
    const uint32_t word = given[(k / kResetSteps & 1) * kMaxTileSequences + tile_row(e)];
    return (word >> (k % kResetSteps) & 1u) != 0;
  }

  BIRNN_DEVICE void fetch(int k) {
    if (all_given && is_inner(k)) {
      fetch_inner<false>(k);
    } else {
      fetch_resets(k);
      if (all_given && is_inner_with_more(k))
        fetch_inner<kTakesDc>(k);
      else if (args.paired)
        fetch_as<true>(k);
      else
        fetch_as<false>(k);
    }
    if constexpr (kAhead) cp_async_commit();
  }
  // The mask of pair e, of the state that its units multiply.
  BIRNN_DEVICE Bits& mask_of(int e) const {
    return reinterpret_cast<Bits*>(given + 2 * kMaxTileSequences)[e * kThreads + thread_idx()];
  }

  // Before the first step undone, of `steps`.
  BIRNN_DEVICE void begin(int steps) {
    begin_resets(steps);
    if (args.recurrent_mask) BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e)
      if (length[e] >= 0)
        mask_of(e) =
            pack(load_pair<T>(args.recurrent_mask, state_offset(e), args.paired, has_both(e)));
    if constexpr (kCell == Cell::kLstm) {
      const float* const dcx = static_cast<const float*>(args.dir.dcx);
      BIRNN_UNROLL
      for (int e = 0; e < kPairs; ++e) {
        if (length[e] < 0) continue;
        carried[e][0] = dcx[state_offset(e)];
        if (has_both(e)) carried[e][1] = dcx[state_offset(e) + 1];
      }
    }
    fetch(steps);  // c of the last step of the longest sequences
    if constexpr (kAhead) cp_async_wait<0>();
    BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e)
      if (length[e] == steps) c_after[e] = of_step<StepKind::kInner>(e, steps).before;
    fetch(steps - 1);
    if constexpr (kAhead) fetch(steps - 2);
  }
  // What step k reads of pair e.
  template <StepKind kStep>
  BIRNN_DEVICE Operands of_step(int e, int k) const {
    if constexpr (kAhead) {
      const Bits* const slot = slot_of(k) + e * kThreads;
      Operands taken;
      BIRNN_UNROLL
      for (int j = 0; j < kActivations; ++j) taken.activations[j] = slot[j * kPairs * kThreads];
      if constexpr (kGates > 1) taken.before = slot[kBefore * kPairs * kThreads];
      taken.dy = slot[kDy * kPairs * kThreads];
      if constexpr (kTakesDc && kStep != StepKind::kInner) taken.dc = slot[kDc * kPairs * kThreads];
      return taken;
    } else {
      return operands[e];
    }
  }
  BIRNN_DEVICE Bits* slot_of(int k) const {
    constexpr uint32_t kStepBytes = kOperands * kPairs * kThreads * sizeof(Bits);
    return reinterpret_cast<Bits*>(reinterpret_cast<char*>(slots) + (k & 1) * kStepBytes);
  }

  // Undoes step k of pair e: its dgates, zeros where the sequence has no such step.
  // add_sums(e, dh): dh += dgates W_hh of the step after. An inner step asks nothing of a sequence.
  template <StepKind kStep, class AddSums>
  BIRNN_DEVICE void undo(int e, int k, const AddSums& add_sums, Pair<T> (&dgates)[kBlocks]) {
    constexpr bool kInner = kStep != StepKind::kAny;
    Operands from;
    if (kInner || k <= length[e]) from = of_step<kStep>(e, k);
    if (kInner || k < length[e]) {
      float dh[2] = {};  // zero for a unit past H, and so are its dgates
      if (!kInner && k == length[e] - 1) {
        const float* const dhy = static_cast<const float*>(args.dir.dhx) + state_offset(e);
        dh[0] = dhy[0];
        if (has_both(e)) dh[1] = dhy[1];
      } else {
        gradient_of_state<kStep != StepKind::kInner>(e, k + 1, add_sums, dh);
      }
      // The state before step k counts for nothing, and takes nothing back.
      const bool anew = kStep != StepKind::kInner && begins_anew(e, k);
      if constexpr (kTakesDc && kStep != StepKind::kInner) {
        Pair<T> dc;
        unpack(from.dc, dc);
        carried[e][0] += to_float(dc.first);
        carried[e][1] += to_float(dc.second);
      }
      BIRNN_UNROLL
      for (int half = 0; half < 2; ++half) {
        const auto of = [&](const Bits& bits) {
          Pair<T> pair;
          unpack(bits, pair);
          return to_float(half == 0 ? pair.first : pair.second);
        };
        float activations[kActivations], d[kBlocks];
        BIRNN_UNROLL
        for (int j = 0; j < kActivations; ++j) activations[j] = of(from.activations[j]);
        UnitBackward<kCell, Math>::run(dh[half] + of(from.dy), activations,
                                       anew ? 0.0f : of(from.before), of(c_after[e]),
                                       carried[e][half], d);
        if (anew) carried[e][half] = 0.0f;
        BIRNN_UNROLL
        for (int block = 0; block < kBlocks; ++block)
          (half == 0 ? dgates[block].first : dgates[block].second) = from_float<T>(d[block]);
      }
    }
    if (kInner || k <= length[e]) c_after[e] = from.before;
  }
  // Of the state before step k.
  template <bool kMayHaveMore, class AddSums>
  BIRNN_DEVICE void gradient_of_state(int e, int k, const AddSums& add_sums, float (&dh)[2]) const {
    // Along z * h goes neither through the mask nor, being zero there, across a reset.
    const bool apart = kMayHaveMore && (args.resets || args.recurrent_mask);
    const float direct[2] = {kCell == Cell::kGru ? carried[e][0] : 0.0f,
                             kCell == Cell::kGru ? carried[e][1] : 0.0f};
    BIRNN_UNROLL
    for (int half = 0; half < 2; ++half) dh[half] = apart ? 0.0f : direct[half];
    add_sums(e, dh);
    if (!apart) return;
    if (args.recurrent_mask) {
      Pair<T> mask;
      unpack(mask_of(e), mask);
      dh[0] *= to_float(mask.first);
      dh[1] *= to_float(mask.second);
    }
    const bool anew = begins_anew(e, k);
    BIRNN_UNROLL
    for (int half = 0; half < 2; ++half) dh[half] = anew ? 0.0f : dh[half] + direct[half];
  }

  // A block of dgates of step k, to its row.
  BIRNN_DEVICE void store_dgates(int e, int k, int block, const Pair<T>& pair) const {
    const uint64_t row =
        uint64_t{static_cast<uint32_t>(row_of(e, k))} * static_cast<uint32_t>(args.dgates_stride) +
        static_cast<uint32_t>(unit_of(e));
    if ((is_inner(k) || is_inner_with_more(k)) && args.paired) {
      store_pair(args.dir.dgates, row + block * args.hidden_size, pair, true, true);
      return;
    }
    store_pair(args.dir.dgates, row + block * args.hidden_size, pair, args.paired, has_both(e));
    if (k == 0 && args.first_dgates) {
      const int64_t first_row = int64_t{sequence_of(e)} * kBlocks * args.hidden_size + unit_of(e);
      store_pair(args.first_dgates, first_row + block * args.hidden_size, pair, args.paired,
                 has_both(e));
    }
  }

  // After the last step: the gradients of hx and cx, and the rows of steps that no sequence of the
  // tile has.
  template <class AddSums>
  BIRNN_DEVICE void finish(int steps, const AddSums& add_sums) const {
    BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e) {
      if (length[e] < 0) continue;
      if (length[e] > 0) {  // else the gradients of hx and cx are those of hy and cy
        float dh[2];
        gradient_of_state<true>(e, 0, add_sums, dh);
        store_pair(args.dir.dhx, state_offset(e), Pair<float>{dh[0], dh[1]}, false, has_both(e));
        if constexpr (kCell == Cell::kLstm)
          store_pair(args.dir.dcx, state_offset(e), Pair<float>{carried[e][0], carried[e][1]},
                     false, has_both(e));
      }
      for (int k = steps; k < args.seq_len; ++k) BIRNN_UNROLL
      for (int block = 0; block < kBlocks; ++block) store_dgates(e, k, block, {});
    }
  }
};

}  // namespace birnn::cuda
