// The grid backward kernel as a stand-alone program, for the sanitizers: every array of exactly its
// size. Values are checked in test_grid_backward.py; here only that every output was written and is
// finite, and that a second run gives the same bits. An LSTM in fp32 alone, to build fast: cell and
// element decide nothing about barriers, and indices are checked in elements.
#define GRID_BACKWARD_IEEE_ALONE
#define BIRNN_ONE_INSTANCE
#if !defined(BIRNN_ONE_CELL)
#define BIRNN_ONE_CELL Cell::kLstm
#endif
#include "grid_backward_driver.cpp"
#include "program_arrays.h"

namespace {

using namespace birnn;
using namespace birnn::test;

struct Case {
  Cell cell;
  int64_t T, B, H;
  int64_t tiling[4];  // blocks, batch tiles, column teams, tf32
  bool ragged;        // with lengths; otherwise without anything that may be absent
};

void run_case(const Case& given) {
  const auto [cell, T, B, H, tiling, ragged] = given;
  const std::string what = "cell " + std::to_string(static_cast<int>(cell)) + " T " +
                           std::to_string(T) + " H " + std::to_string(H) + " blocks " +
                           std::to_string(tiling[0]) + ": ";
  const int64_t width = reserve_blocks(cell) * H, blocks = dgates_blocks(cell) * H;
  const int64_t gates = num_gates(cell) * H;
  Buffer<int64_t> lengths(B);
  fill_lengths(lengths, T);
  Buffer<float> weight_hh(num_gates(cell) * H * H), hx(B * H), cx(B * H), output(T * B * H);
  Buffer<float> reserve(T * B * width), dy(T * B * H), dc(T * B * H), mask(B * H);
  Buffer<bool> resets(T * B);
  fill_resets(resets, B);
  for (Buffer<float>* array : {&weight_hh, &hx, &cx, &output, &reserve, &dy, &dc, &mask})
    fill(*array);
  const auto optional = [has = ragged](auto& array) { return has ? array.data() : nullptr; };
  const int64_t sizes[] = {static_cast<int64_t>(cell), 1, T, B, H, 0};
  const int64_t strides[] = {H, width, H, H, blocks, 0, 0, H, width, H, H, blocks, 0, 0};
  Buffer<float> kept(2 * T * B * blocks);
  for (int run = 0; run < 2; ++run) {
    Buffer<float> dgates(2 * T * B * blocks), first(2 * B * blocks), dhx(2 * B * H), dcx(2 * B * H);
    Buffer<float> dbias(4 * gates);
    fill(dhx);
    fill(dcx);
    constexpr int kPointers = kBackwardPointers + kRegulariserPointers;
    void* pointers[2 * kPointers];
    for (int d = 0; d < 2; ++d) {
      void* const of[] = {weight_hh.data(),
                          nullptr,
                          optional(hx),
                          optional(cx),
                          output.data(),
                          reserve.data(),
                          optional(dy),
                          optional(dc),
                          dgates.data() + d * T * B * blocks,
                          nullptr,
                          dhx.data() + d * B * H,
                          dcx.data() + d * B * H,
                          ragged ? dbias.data() + 2 * d * gates : nullptr,
                          ragged ? dbias.data() + (2 * d + 1) * gates : nullptr,
                          optional(resets),
                          ragged ? first.data() + d * B * blocks : nullptr,
                          optional(mask),
                          nullptr,
                          nullptr};
      std::memcpy(pointers + d * kPointers, of, sizeof of);
    }
    const int status =
        grid_backward_driver(sizes, 2, 0, optional(lengths), pointers, strides, tiling);
    expect(status == 0, what + device::error_message(device::Status(status)));
    expect_finite(dgates, what + "dgates");
    if (ragged) expect_finite(first, what + "first_dgates");
    if (ragged) expect_finite(dbias, what + "dbias");
    expect_finite(dhx, what + "dhx");
    expect_finite(dcx, what + "dcx");
    expect_same(run, kept, dgates, what + "dgates");
  }
}

}  // namespace

int main() {
  run_case({Cell::kLstm, 4, 3, 5, {2, 1, 1, 0}, true});
  run_case({Cell::kLstm, 4, 9, 3, {2, 1, 2, 0}, true});    // two groups
  run_case({Cell::kLstm, 1, 1, 63, {4, 1, 1, 0}, false});  // weights in shared memory
  if (num_failures == 0) std::printf("ok\n");
  return num_failures == 0 ? 0 : 1;
}
