// What a persistent backward kernel is told of one direction: plain host code that fills it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "recurrence.h"

namespace birnn::cuda {

// Strides count elements.
struct BackwardArguments {
  BackwardDirection dir;
  const int64_t* lengths = nullptr;  // [B] or null
  void* first_dgates = nullptr;      // [B, dgates_blocks * H] or null
  int seq_len = 0, batch_size = 0, hidden_size = 0;
  // As in dir.
  int output_stride = 0, reserve_stride = 0, dy_stride = 0, dc_stride = 0, dgates_stride = 0;
  bool paired = false;  // all arrays keep a pair of units in one aligned word
  // [groups of sequences][dgates_blocks * H]: sums of dgates over all steps, of a direction in
  // parts over those of its later parts too.
  float* bias_sums = nullptr;
  bool adds_to_bias_sums = false;        // of a later part
  uint32_t* resets = nullptr;            // warp/resets.cuh's words, null where the direction's are
  const void* recurrent_mask = nullptr;  // [B, H] or null
};

// Of how many arrays a step reads each unit: the activations (LSTM i f g o; GRU r z n q; RNN y),
// and with them the state before, dy and, of an LSTM, dc.
constexpr int activation_arrays(Cell cell) {
  return cell == Cell::kLstm || cell == Cell::kGru ? 4 : 1;
}
constexpr int operand_arrays(Cell cell) {
  return activation_arrays(cell) + 2 + (cell == Cell::kLstm ? 1 : 0);
}

// Bytes of shared memory for what BackwardPairs reads of resets and of a mask: two rows of words of
// 32 steps, one for each sequence of a tile, and the factors of the threads' pairs of units.
constexpr int kMaxTileSequences = 128;
constexpr int64_t shared_bytes_of_given(const RecurrenceShape& shape, int64_t pairs,
                                        int64_t threads) {
  return 2 * kMaxTileSequences * 4 +
         (shape.recurrent_dropout ? pairs * threads * 2 * element_bytes(shape.element) : 0);
}

inline bool fits_32_bits(const BackwardDirection& dir) {
  return std::max({dir.output_stride, dir.reserve_stride, dir.dy_stride, dir.dc_stride,
                   dir.dgates_stride}) <= INT32_MAX;
}

// The direction fits into 32 bits, and a persistent kernel takes the shape.
inline BackwardArguments backward_arguments(const RecurrenceShape& shape, const int64_t* lengths,
                                            const BackwardDirection& dir,
                                            const Regularisers& regularisers, void* first_dgates,
                                            void* bias_sums, bool adds_to_bias_sums,
                                            void* reset_words) {
  BackwardArguments args;
  args.dir = dir;
  args.lengths = lengths;
  args.first_dgates = first_dgates;
  args.bias_sums = static_cast<float*>(bias_sums);
  args.adds_to_bias_sums = adds_to_bias_sums;
  if (dir.resets) args.resets = static_cast<uint32_t*>(reset_words);
  args.recurrent_mask = regularisers.recurrent_mask;
  args.seq_len = static_cast<int>(shape.seq_len);
  args.batch_size = static_cast<int>(shape.batch_size);
  args.hidden_size = static_cast<int>(shape.hidden_size);
  args.output_stride = static_cast<int>(dir.output_stride);
  args.reserve_stride = static_cast<int>(dir.reserve_stride);
  args.dy_stride = static_cast<int>(dir.dy_stride);
  args.dc_stride = static_cast<int>(dir.dc_stride);
  args.dgates_stride = static_cast<int>(dir.dgates_stride);
  args.paired = shape.hidden_size % 2 == 0;
  const int64_t pair_bytes = 2 * element_bytes(shape.element);
  for (const void* const array : {dir.hx, dir.cx, dir.output, dir.reserve, dir.dy, dir.dc,
                                  static_cast<const void*>(dir.dgates),
                                  static_cast<const void*>(first_dgates), args.recurrent_mask})
    args.paired &= reinterpret_cast<uintptr_t>(array) % pair_bytes == 0;
  for (const int64_t stride :
       {dir.output_stride, dir.reserve_stride, dir.dy_stride, dir.dc_stride, dir.dgates_stride})
    args.paired &= stride % 2 == 0;
  return args;
}

}  // namespace birnn::cuda
