// The grid forward kernel as a stand-alone program, for the sanitizers: every array of exactly its
// size, blocks as wide as on a GPU. Values are checked in test_grid_forward.py; here only that
// every output was written and is finite, and that a second run gives the same bits. fp32 alone:
// the element decides nothing about barriers, and indices are checked in elements.
#define BIRNN_FULL_WIDTH
#define GRID_FORWARD_IEEE_ALONE
#include "grid_forward_driver.cpp"
#include "program_arrays.h"

namespace {

using namespace birnn;
using namespace birnn::test;

struct Tiling {
  int64_t blocks, batch_tiles, groups_at_once;
};

// Ragged: with lengths. Otherwise without anything that may be absent.
void run_case(Cell cell, int64_t T, int64_t B, int64_t H, const Tiling& tiling, int num_directions,
              bool ragged) {
  if (!has_cell(cell)) return;
  const std::string what =
      "cell " + std::to_string(static_cast<int>(cell)) + " H " + std::to_string(H) + ": ";
  const int64_t blocks = reserve_blocks(cell) > 0 ? reserve_blocks(cell) : 1, width = blocks * H;
  const int64_t D = num_directions, G = num_gates(cell);
  Buffer<int64_t> lengths(B);
  fill_lengths(lengths, T);
  Buffer<float> weight_hh(D * G * H * H), bias_ih(G * H), bias_hh(G * H), hx(B * H), cx(B * H);
  Buffer<float> kept(T * B * D * H);
  Buffer<bool> resets(T * B);
  fill_resets(resets, B);
  Buffer<float> mask(B * H);
  for (Buffer<float>* array : {&bias_ih, &bias_hh, &hx, &cx, &mask}) fill(*array);
  fill(weight_hh, 0.08f);  // relu stays finite
  const auto optional = [&](auto& array) { return ragged ? array.data() : nullptr; };
  const int64_t sizes[] = {static_cast<int64_t>(cell), 1, T, B, H, 0};
  const int64_t strides[] = {width, D * H, 0, 0};
  const int64_t given[] = {tiling.blocks, tiling.batch_tiles, tiling.groups_at_once, 0};
  for (int run = 0; run < 2; ++run) {
    Buffer<float> gates(D * T * B * width), output(T * B * D * H), hy(D * B * H), cy(D * B * H);
    fill(gates);
    constexpr int kPointers = kForwardPointers + kRegulariserPointers;
    void* pointers[2 * kPointers];
    for (int64_t d = 0; d < D; ++d) {
      void* const of_direction[] = {weight_hh.data() + d * G * H * H,
                                    nullptr,
                                    optional(bias_ih),
                                    optional(bias_hh),
                                    optional(hx),
                                    optional(cx),
                                    gates.data() + d * T * B * width,
                                    output.data() + d * H,
                                    hy.data() + d * B * H,
                                    cy.data() + d * B * H,
                                    optional(resets),
                                    optional(mask),
                                    nullptr,
                                    nullptr};
      std::memcpy(pointers + d * kPointers, of_direction, sizeof of_direction);
    }
    const int status = grid_forward_driver(sizes, num_directions, 1, 1, optional(lengths), pointers,
                                           strides, given);
    expect(status == 0, what + device::error_message(device::Status(status)));
    expect_finite(output, what + "output");
    expect_finite(hy, what + "hy");
    if (cell == Cell::kLstm) expect_finite(cy, what + "cy");
    expect_same(run, kept, output, what + "output");
  }
}

}  // namespace

int main() {
  run_case(Cell::kTanh, 4, 9, 5, {1, 1, 1}, 1, true);     // groups in turn, warps without columns
  run_case(Cell::kRelu, 2, 3, 150, {3, 1, 1}, 1, false);  // weights in shared memory, by pieces
  run_case(Cell::kGru, 5, 18, 7, {2, 1, 2}, 1, true);     // groups side by side
  run_case(Cell::kLstm, 6, 9, 9, {2, 2, 1}, 2, true);     // both directions
  run_case(Cell::kLstm, 2, 1, 30, {2, 1, 1}, 1, false);   // as many rows as a block holds
  if (num_failures == 0) std::printf("ok\n");
  return num_failures == 0 ? 0 : 1;
}
