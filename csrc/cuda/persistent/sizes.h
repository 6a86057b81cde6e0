// What the sizes of all persistent kernels have in common: the shapes that any of them takes, and
// the units in which they count. Plain host code.
#pragma once

#include <cstdint>

#include "recurrence.h"

namespace birnn::cuda::persistent {

// Cells that an instance is compiled for: those of which some shape is given to it. Others have too
// few rows or columns to need it, or find a smaller one first. tests/kernels/test_instances.py
// looks at every shape, that none is compiled in vain and none is missing.
enum Cells : unsigned {
  kNoCell = 0,
  kRnn = 1,
  kGru = 2,
  kLstm = 4,
  kGated = kGru | kLstm,
  kAll = 7
};
constexpr Cells operator|(Cells a, Cells b) { return Cells(unsigned(a) | unsigned(b)); }
constexpr bool has_cell(Cells cells, Cell cell) {
  return (cells & (cell == Cell::kLstm ? kLstm : cell == Cell::kGru ? kGru : kRnn)) != 0;
}

constexpr int kMatrixRows = 16;           // of a row tile of mma
constexpr int64_t kChunkBytes = 64;       // of a row of weights: two k-steps in any precision
constexpr int64_t kFragmentBytes = 1024;  // of a row tile and a chunk
constexpr int64_t kSumsBytes = 512;       // of a row tile and eight sequences, in fp32
constexpr int64_t kMaxSharedBytes = 227 * 1024;  // of a block, on any GPU
constexpr int64_t kMaxHiddenSize = 1 << 14;      // far more than any instance holds
// Of fp32-grade products: so few columns, sequences, are multiplied without the matrix units.
constexpr int kFewColumns = 2;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// As Smem::alloc rounds.
constexpr int64_t shared_size(int64_t bytes) { return ceil_div(bytes, 16) * 16; }
// Bytes of a row in shared memory: an odd number of 16, so that eight rows lie in different banks.
constexpr int64_t row_pitch(int64_t bytes) { return (ceil_div(bytes, 16) | 1) * 16; }

// Bytes of the words that resets become (warp/resets.cuh), of one direction.
constexpr int64_t reset_bytes(const RecurrenceShape& s) {
  return ceil_div(s.seq_len, 32) * s.batch_size * 4;
}

// Whether a persistent kernel takes the shape at all. Rows and row strides are multiplied as
// 32 x 32 -> 64 bits, and epochs count the steps of all sequences.
constexpr bool takes(const RecurrenceShape& s) {
  return s.element != Element::kFloat64 && s.proj_size == 0 && !s.zoneout &&
         !runs_in_plain_numbers(s.cell) && s.hidden_size >= 1 && s.hidden_size <= kMaxHiddenSize &&
         s.seq_len <= INT32_MAX && s.batch_size <= INT32_MAX &&
         s.seq_len * s.batch_size <= INT32_MAX;
}

}  // namespace birnn::cuda::persistent
