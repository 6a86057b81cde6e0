// The cluster forward kernel as a stand-alone program, for the sanitizers: every array of exactly
// its size. Values are checked in test_cluster_forward.py; here only that every output was written
// and is finite, and that a second run gives the same bits. fp32 alone: the element decides nothing
// about barriers, and indices are checked in elements.
#define CLUSTER_FORWARD_IEEE_ALONE
#define BIRNN_ONE_INSTANCE
#include "cluster_forward_driver.cpp"
#include "program_arrays.h"

namespace {

using namespace birnn;
using namespace birnn::test;

struct Shape {
  int64_t seq_len, batch_size, hidden_size, cluster, k_split;
};

// Ragged: with lengths. Otherwise without anything that may be absent.
void run_case(Cell cell, const Shape& shape, bool reverse, bool ragged) {
  const auto [T, B, H, cluster, k_split] = shape;
  const std::string what = "cell " + std::to_string(static_cast<int>(cell)) + " T " +
                           std::to_string(T) + " H " + std::to_string(H) + " cluster " +
                           std::to_string(cluster) + ": ";
  const int64_t G = num_gates(cell), width = std::max<int64_t>(G, reserve_blocks(cell)) * H;
  Buffer<int64_t> lengths(B);
  fill_lengths(lengths, T);
  Buffer<float> weight_hh(G * H * H), bias_ih(G * H), bias_hh(G * H), hx(B * H), cx(B * H);
  Buffer<bool> resets(T * B);
  fill_resets(resets, B);
  Buffer<float> mask(B * H);
  for (Buffer<float>* array : {&weight_hh, &bias_ih, &bias_hh, &hx, &cx, &mask}) fill(*array);
  const auto optional = [&](auto& array) { return ragged ? array.data() : nullptr; };
  const int64_t sizes[] = {static_cast<int64_t>(cell), 1, T, B, H, 0};
  const int64_t strides[] = {width, H, 0, 0}, tiling[] = {cluster, 2, k_split, 0};
  Buffer<float> kept(T * B * H), kept_gates(T * B * width);
  for (int run = 0; run < 2; ++run) {
    Buffer<float> gates(T * B * width), output(T * B * H), hy(B * H), cy(B * H);
    fill(gates);
    if (cell != Cell::kLstm) fill(cy);
    void* const pointers[] = {weight_hh.data(), nullptr,      optional(bias_ih), optional(bias_hh),
                              optional(hx),     optional(cx), gates.data(),      output.data(),
                              hy.data(),        cy.data(),    optional(resets),  optional(mask),
                              nullptr,          nullptr};
    const int status =
        cluster_forward_driver(sizes, reverse, 1, optional(lengths), pointers, strides, tiling);
    expect(status == 0, what + device::error_message(device::Status(status)));
    expect_finite(gates, what + "gates");
    expect_finite(output, what + "output");
    expect_finite(hy, what + "hy");
    expect_finite(cy, what + "cy");
    expect_same(run, kept, output, what + "output");
    expect_same(run, kept_gates, gates, what + "gates");
  }
}

}  // namespace

int main() {
  for (const Cell cell : {Cell::kTanh, Cell::kRelu, Cell::kGru, Cell::kLstm}) {
    if (!has_cell(cell)) continue;
    run_case(cell, {6, 3, 5, 1, 1}, false, true);
    run_case(cell, {7, 9, 39, 3, 2}, true, true);
    run_case(cell, {6, 3, 64, 2, 1}, false, false);
    run_case(cell, {5, 1, 39, 3, 2}, true, true);  // of few sequences
    run_case(cell, {6, 2, 64, 2, 1}, false, false);
  }
  if (num_failures == 0) std::printf("ok\n");
  return num_failures == 0 ? 0 : 1;
}
