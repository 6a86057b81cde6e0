// How the grid forward kernel divides a shape, and what it asks of the device: plain host code that
// the kernel's launcher and the plan share.
#pragma once

#include <cstdint>

#include "cuda/persistent/sizes.h"
#include "cuda/recurrence_cuda.h"
#include "recurrence.h"

namespace birnn::cuda::grid_gather {

using namespace persistent;

constexpr int64_t kMaxBlocks = 1 << 10;

// What is compiled: the row tiles of a block and the chunks of a warp, upper bounds, and how many
// of the row_tiles * chunks weight fragments a warp holds in registers (`held`; fewer for fp32,
// whose products need registers of their own), the others in shared memory; how many chunks' words
// a thread asks for at once; the tiles of 8 sequences, exactly; the cells of a thread, an upper
// bound. The first instance that is large enough is taken.
struct Instance {
  int row_tiles, chunks, held_16, held_32, asked, batch_tiles, cells;
  Cells of_16 = kAll, of_32 = kAll;  // cells in 16 and in 32 bits
  constexpr int held(int64_t element_bytes) const { return element_bytes == 4 ? held_32 : held_16; }
  constexpr bool is_compiled(Cell cell, int64_t element_bytes) const {
    return has_cell(element_bytes == 4 ? of_32 : of_16, cell);
  }
};
// For tests on small shapes, which take the same path: blocks of two warps, so that few units are
// split over warps and over pieces.
#if defined(BIRNN_ONE_INSTANCE)  // for tests that build the kernel many times
constexpr int kThreads = 64;
constexpr Instance kInstances[] = {{4, 4, 9, 9, 2, 2, 4}};
#elif defined(BIRNN_FULL_WIDTH)  // for the sanitizers
constexpr int kThreads = 256;
constexpr Instance kInstances[] = {{4, 2, 3, 3, 1, 1, 2}, {4, 1, 2, 2, 1, 2, 1}};
#elif defined(BIRNN_SMALL_INSTANCES)
constexpr int kThreads = 64;
constexpr Instance kInstances[] = {{3, 2, 4, 4, 2, 1, 2}, {4, 2, 5, 5, 1, 2, 4}};
#else
constexpr int kThreads = 256;
constexpr Instance kInstances[] = {
    {2, 4, 8, 8, 4, 1, 1},                     // one batch tile
    {3, 4, 12, 12, 4, 1, 1, kGated, kGated},   //
    {4, 2, 8, 8, 2, 1, 1, kGated, kGated},     //
    {4, 4, 16, 16, 4, 1, 1, kGated, kGated},   //
    {2, 8, 14, 11, 4, 1, 1},                   //
    {4, 8, 13, 10, 4, 1, 1, kGated, kGated},   //
    {6, 6, 14, 12, 3, 1, 1, kGated, kNoCell},  // more shared memory than there is in 32 bits
    {8, 4, 16, 11, 2, 1, 1, kLstm, kNoCell},   // as this one
    {2, 4, 8, 8, 4, 2, 1},                     // two
    {4, 2, 8, 8, 2, 2, 1, kGated, kGated},     //
    {4, 4, 14, 11, 4, 2, 1, kGated, kGated},   //
    {4, 2, 8, 8, 2, 4, 2},                     // four
    {4, 4, 10, 9, 2, 4, 2},                    //
};
#endif
constexpr int kNumInstances = sizeof kInstances / sizeof kInstances[0];
constexpr int kWarps = kThreads / 32;

// Floats of a column of the partial sums: 4 more than rows, so that the four columns that the lanes
// of a warp write at once begin 8 banks apart.
constexpr int sums_pitch(int row_tiles) { return row_tiles * kMatrixRows + 4; }

constexpr int64_t shared_bytes_of(const Instance& instance, int64_t element_bytes,
                                  bool has_mask = false) {
  const int64_t spare = instance.row_tiles * instance.chunks - instance.held(element_bytes);
  const int64_t tile_batch = 8 * instance.batch_tiles;
  const int64_t sums = 2 * kWarps * tile_batch * sums_pitch(instance.row_tiles) * 4;
  const int64_t factors = has_mask ? int64_t{instance.cells} * kThreads * element_bytes : 0;
  return kWarps * spare * kFragmentBytes + sums + shared_size(tile_batch * 4) + 16 + factors;
}

using Tiling = GridForwardTiling;

struct Sizes {
  int units = 0;           // U of a block, even
  int num_tiles = 0;       // m16 tiles of the G * U rows of a block
  int num_chunks = 0;      // of 64 bytes of the H columns
  int chunks_of_warp = 0;  // the last warps may have one fewer
  int instance = -1;       // -1: none is large enough
  int64_t num_groups = 0;  // of 8 * batch_tiles sequences
  int64_t num_blocks = 0;  // of the launch, all resident at once
  int64_t threads = kThreads;
  int64_t slot_pairs = 0;  // of words, that a group exchanges in a step
  int64_t ring_pairs = 0;  // of the launch
  int64_t shared_bytes = 0;
  // Of the workspace, one behind the other: the ring, the fragments; then the words of resets.
  int64_t ring_bytes = 0, fragment_bytes = 0;
  int64_t workspace_bytes = 0;

  Sizes(const RecurrenceShape& shape, const Tiling& tiling, int num_directions) {
    const int64_t bytes = element_bytes(shape.element);
    const int64_t columns = kChunkBytes / bytes, R = tiling.num_blocks;
    const int64_t H = shape.hidden_size, NB = 8 * int64_t{tiling.batch_tiles};
    if (!takes(shape) || R < 1 || R > kMaxBlocks || tiling.batch_tiles < 1) return;
    if (num_directions < 1 || num_directions > 2 || tiling.groups_at_once < 1) return;
    const int64_t U = ceil_div(ceil_div(H, R), 2) * 2;
    units = static_cast<int>(U);
    num_tiles = static_cast<int>(ceil_div(num_gates(shape.cell) * U, kMatrixRows));
    num_chunks = static_cast<int>(ceil_div(H, columns));
    chunks_of_warp = static_cast<int>(ceil_div(num_chunks, kWarps));
    num_groups = ceil_div(shape.batch_size, NB);
    const int64_t teams = teams_of(tiling);
    num_blocks = num_directions * R * teams;
    if (num_blocks > kMaxBlocks) return;
    for (int i = kNumInstances - 1; i >= 0; --i)
      if (kInstances[i].row_tiles >= num_tiles && kInstances[i].chunks >= chunks_of_warp &&
          kInstances[i].batch_tiles == tiling.batch_tiles &&
          kInstances[i].cells * kThreads >= U * NB &&
          shared_bytes_of(kInstances[i], bytes, shape.recurrent_dropout) <= kMaxSharedBytes)
        instance = i;
    // One chunk more than there are, for warps that have fewer than others.
    slot_pairs = int64_t{num_chunks + 1} * 2 * tiling.batch_tiles * 32;
    ring_pairs = num_directions * teams * 2 * slot_pairs;
    ring_bytes = ring_pairs * 16;
    fragment_bytes = num_directions * R * num_tiles * num_chunks * kFragmentBytes;
    workspace_bytes = ring_bytes + fragment_bytes + num_directions * reset_bytes(shape);
    if (instance >= 0)
      shared_bytes = shared_bytes_of(kInstances[instance], bytes, shape.recurrent_dropout);
  }

  // Groups of sequences that run side by side.
  int64_t teams_of(const Tiling& tiling) const {
    return tiling.groups_at_once < num_groups ? tiling.groups_at_once : num_groups;
  }
};

}  // namespace birnn::cuda::grid_gather
