// Where sequences begin inside rows (SequenceRows, recurrence.h), as persistent kernels read it: a
// bit for each step of a sequence, in the order in which the direction walks them, 32 steps to a
// word. A kernel that precedes the recurrence makes the words of the flags: so a step looks at a
// register, and a load stands between two steps once in 32, where a byte for each step would have
// to be asked for steps ahead.
#pragma once

#include "cuda/device/device.h"
#include "cuda/warp/unit_forward.cuh"
#include "recurrence.h"

namespace birnn::cuda {

using namespace birnn::device;

constexpr int kResetSteps = 32;  // of a word

// words [ceil(T / 32)][B]: bit k % 32 of word k / 32 tells whether step k of the sequence begins
// anew, that is continues zeros. None of a step that the sequence does not have. By all threads of
// a launch.
BIRNN_DEVICE void pack_resets(uint32_t* words, const bool* resets, const int64_t* lengths,
                              bool reverse, int seq_len, int batch_size) {
  if (!resets) return;
  const int64_t count = (int64_t{seq_len} + kResetSteps - 1) / kResetSteps * batch_size;
  const int64_t stride = int64_t{grid_dim().x} * block_dim();
  for (int64_t i = int64_t{block_idx().x} * block_dim() + thread_idx(); i < count; i += stride) {
    const int b = static_cast<int>(i % batch_size);
    const int first = static_cast<int>(i / batch_size) * kResetSteps;
    const int length = clamped_length(lengths, b, seq_len);
    uint32_t word = 0;
    for (int j = 0; j < kResetSteps && first + j < length; ++j) {
      // Forward by the row of the step, in reverse by that of the step before it.
      const int k = first + j, t = reverse ? length - k : k;
      const bool anew = t < length && resets[int64_t{t} * batch_size + b];
      word |= static_cast<uint32_t>(anew) << j;
    }
    words[i] = word;
  }
}

// The sequences of a batch tile, at most 32, for a warp: lane n keeps a word of sequence n.
struct ResetWindow {
  uint32_t word = 0;

  // A warp collective, once for each step in turn, or for those that `next` names. Bit n of what it
  // returns: whether step k of the tile's sequence n begins anew. words: not null.
  BIRNN_DEVICE uint32_t begin_anew(const uint32_t* words, int k, int first_sequence,
                                   int num_sequences, int batch_size) {
    if (k % kResetSteps == 0) {
      const int n = lane_id(), b = first_sequence + n;
      const bool exists = n < num_sequences && b < batch_size;
      word = exists ? words[int64_t{k / kResetSteps} * batch_size + b] : 0u;
    }
    return vote_ballot((word >> (k % kResetSteps) & 1u) != 0);
  }

  // Another: the next step after step k at which some sequence begins anew, or the first of the
  // next words.
  BIRNN_DEVICE int next(int k) const {
    const uint32_t later = reduce_or(word) & 0xfffffffeu << (k % kResetSteps);
    return (k & ~(kResetSteps - 1)) + trailing_zeros(later);
  }
};

}  // namespace birnn::cuda
