// The gradients of the biases in a persistent backward kernel: sums of dgates, of all steps and
// sequences. A thread that writes dgates out adds them up on the way, in fp32 and as they are
// written; after the last step a block adds up its threads' sums. All in a fixed order: the same
// bits in every run.
#pragma once

#include "cells.h"
#include "cuda/device/device.h"
#include "cuda/persistent/backward_arguments.h"
#include "cuda/warp/backward_pairs.cuh"
#include "cuda/warp/pairs.cuh"
#include "recurrence.h"

namespace birnn::cuda {

using namespace birnn::device;

// Of the pairs of units of one thread, as BackwardPairs numbers them. kInShared: in shared memory,
// for a kernel that has no registers left.
template <Cell kCell, class T, int kThreads, int kPairs, bool kInShared = false>
struct BiasGradients {
  static constexpr int kBlocks = kDgatesBlocks<kCell>;
  static constexpr int kSlots =
      kInShared ? kPairs * kBlocks * kThreads : 0;  // of a block's threads
  float sums[kInShared ? 1 : kPairs][kBlocks][2]{};
  Bits64* own_slots;  // [pairs][blocks][threads], from the thread's on

  // slots [kSlots], in shared memory. thread: any number of its own.
  BIRNN_DEVICE BiasGradients(Bits64* slots, int thread) : own_slots(slots + thread) {
    if constexpr (kInShared)
      for (int i = 0; i < kSlots; i += kThreads) own_slots[i] = Bits64{};
  }

  BIRNN_DEVICE void add(int e, int block, const Pair<T>& dgates) {
    if constexpr (kInShared) {
      const Pair<float> sum = sum_of(e, block);
      own_slots[(e * kBlocks + block) * kThreads] = pack(
          Pair<float>{sum.first + to_float(dgates.first), sum.second + to_float(dgates.second)});
    } else {
      sums[e][block][0] += to_float(dgates.first);
      sums[e][block][1] += to_float(dgates.second);
    }
  }
  BIRNN_DEVICE Pair<float> sum_of(int e, int block) const {
    Pair<float> sum{sums[kInShared ? 0 : e][block][0], sums[kInShared ? 0 : e][block][1]};
    if constexpr (kInShared) unpack(own_slots[(e * kBlocks + block) * kThreads], sum);
    return sum;
  }

  // After the last step: the sums of a block's units, into row `group` of bias_sums, and into the
  // gradients if there are no other groups. thread: its number among those that share pairs.
  // scratch [tile_batch / 2][blocks][units], in shared memory that nobody writes to any more; it
  // may be that of the slots.
  BIRNN_DEVICE void finish(const BackwardArguments& args, int first_unit, int units, int tile_batch,
                           int thread, int group, int num_groups, float* scratch) const {
    Pair<float> of_two[kPairs][kBlocks];
    BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e) BIRNN_UNROLL
    for (int block = 0; block < kBlocks; ++block) {
      // The neighbouring thread has the same units of the other one of two sequences.
      const Pair<float> own = sum_of(e, block);
      of_two[e][block].first = own.first + shfl_xor(own.first, 1);
      of_two[e][block].second = own.second + shfl_xor(own.second, 1);
    }
    sync_threads();  // all have read what the scratch held
    BIRNN_UNROLL
    for (int e = 0; e < kPairs; ++e) {
      const PairPlace at = place_of_pair(e * kThreads + thread, units / 2);
      BIRNN_UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        float* const target = scratch + (at.row / 2 * kBlocks + block) * units + at.pair * 2;
        if (at.row < tile_batch && at.row % 2 == 0)
          *reinterpret_cast<Bits64*>(target) = pack(of_two[e][block]);
      }
    }
    sync_threads();  // the sums of all threads
    const int columns = kBlocks * units;
    for (int column = static_cast<int>(thread_idx()); column < columns; column += kThreads) {
      const int block = column / units, unit = first_unit + column % units;
      if (unit >= args.hidden_size) continue;
      float sum = 0.0f;
      for (int row = 0; row < tile_batch / 2; ++row) sum += scratch[row * columns + column];
      float* const kept =
          args.bias_sums + (int64_t{group} * kBlocks + block) * args.hidden_size + unit;
      if (args.adds_to_bias_sums) sum += *kept;
      *kept = sum;
      if (num_groups == 1) store(args.dir, args.hidden_size, block, unit, sum);
    }
  }

  // A sum of a unit to the biases of the gates that it is the gradient of.
  static BIRNN_DEVICE void store(const BackwardDirection& dir, int hidden_size, int block, int unit,
                                 float sum) {
    const auto give = [&](void* bias, int gate) {
      if (bias && gate >= 0)
        static_cast<T*>(bias)[int64_t{gate} * hidden_size + unit] = from_float<T>(sum);
    };
    give(dir.dbias_ih, gate_of_bias_ih<kCell>(block));
    give(dir.dbias_hh, gate_of_bias_hh<kCell>(block));
  }
};

}  // namespace birnn::cuda
