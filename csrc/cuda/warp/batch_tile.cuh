// The sequences of the batch tile that a block, or a cluster of blocks, walks through together.
#pragma once

#include "cuda/device/device.h"
#include "cuda/warp/unit_forward.cuh"

namespace birnn::cuda {

using namespace birnn::device;

// tile_lengths [num_sequences] in shared memory: the steps of each sequence of the tile, -1 where
// there is no such sequence. By all threads; a barrier of the block shows them.
BIRNN_DEVICE void load_tile_lengths(int* tile_lengths, int num_sequences, const int64_t* lengths,
                                    int first_sequence, int batch_size, int seq_len) {
  for (int n = static_cast<int>(thread_idx()); n < num_sequences;
       n += static_cast<int>(block_dim())) {
    const int b = first_sequence + n;
    tile_lengths[n] = b < batch_size ? clamped_length(lengths, b, seq_len) : -1;
  }
}

// The steps of the tile's longest sequence.
BIRNN_DEVICE int longest_of(const int* tile_lengths, int num_sequences) {
  int steps = 0;
  for (int n = 0; n < num_sequences; ++n) steps = tile_lengths[n] > steps ? tile_lengths[n] : steps;
  return steps;
}

}  // namespace birnn::cuda
