// The arrays of the stand-alone programs: small numbers in, finite numbers out, the same every
// time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "recurrence.h"
#include "test_support.h"

namespace birnn::test {

// Whether the kernel is compiled for the cell.
constexpr bool has_cell([[maybe_unused]] Cell cell) {
#if defined(BIRNN_ONE_CELL)
  return cell == BIRNN_ONE_CELL;
#else
  return true;
#endif
}

inline void fill(Buffer<float>& array, float largest = 0.625f) {
  for (size_t i = 0; i < array.size(); ++i)
    array[i] = static_cast<float>(static_cast<int>(i * 37 % 41) - 20) / 20 * largest;
}

// With 0 and T, unsorted.
inline void fill_lengths(Buffer<int64_t>& lengths, int64_t seq_len) {
  for (size_t b = 0; b < lengths.size(); ++b)
    lengths[b] = (static_cast<int64_t>(b) * 3 + 2) % (seq_len + 1);
}

// Where sequences begin inside rows: of every other one at all steps, of the others at some.
inline void fill_resets(Buffer<bool>& resets, int64_t batch_size) {
  for (size_t i = 0; i < resets.size(); ++i) {
    const auto b = static_cast<int64_t>(i) % batch_size;
    resets[i] = b % 2 == 0 || i % 3 == 0;
  }
}

inline void expect_finite(const Buffer<float>& array, const std::string& what) {
  for (size_t i = 0; i < array.size(); ++i)
    if (!std::isfinite(array[i])) return expect(false, what + " " + std::to_string(i));
}

// The first run's results are kept, later ones compared with them.
inline void expect_same(int run, Buffer<float>& kept, Buffer<float>& array,
                        const std::string& what) {
  if (run == 0)
    std::memcpy(kept.data(), array.data(), array.size() * 4);
  else
    expect(std::memcmp(kept.data(), array.data(), array.size() * 4) == 0, what + " second run");
}

}  // namespace birnn::test
