// The cluster backward kernel as a stand-alone program, for the sanitizers: every array of exactly
// its size. Values are checked in test_cluster_backward.py; here only that every output was written
// and is finite, and that a second run gives the same bits. fp32 alone: the element decides nothing
// about barriers, and indices are checked in elements.
#define CLUSTER_BACKWARD_IEEE_ALONE
#include <cmath>

#include "cluster_backward_driver.cpp"
#include "test_support.h"

namespace {

using namespace birnn;
using birnn::test::Buffer;
using birnn::test::expect;

void fill(Buffer<float>& array) {
  for (size_t i = 0; i < array.size(); ++i)
    array[i] = static_cast<float>(static_cast<int>(i * 37 % 41) - 20) / 32;
}

void expect_finite(const Buffer<float>& array, const std::string& what) {
  for (size_t i = 0; i < array.size(); ++i)
    if (!std::isfinite(array[i])) return expect(false, what + " " + std::to_string(i));
}

void run_case(Cell cell, int64_t T, int64_t B, int64_t H, int64_t cluster, bool reverse,
              bool ragged) {
  const std::string what = "cell " + std::to_string(static_cast<int>(cell)) + " T " +
                           std::to_string(T) + " H " + std::to_string(H) + " cluster " +
                           std::to_string(cluster) + ": ";
  const int64_t width = reserve_blocks(cell) * H, blocks = dgates_blocks(cell) * H;
  Buffer<int64_t> lengths(B);
  for (int64_t b = 0; b < B; ++b) lengths[b] = (b * 3 + 2) % (T + 1);
  Buffer<float> weight_hh(num_gates(cell) * H * H), hx(B * H), cx(B * H), output(T * B * H);
  Buffer<float> reserve(T * B * width), dy(T * B * H);
  for (Buffer<float>* array : {&weight_hh, &hx, &cx, &output, &reserve, &dy}) fill(*array);
  const int64_t sizes[] = {static_cast<int64_t>(cell), 1, T, B, H, 0};
  const int64_t strides[] = {H, width, H, 0, blocks}, tiling[] = {cluster, 1, 0};
  Buffer<float> kept(T * B * blocks);
  for (int run = 0; run < 2; ++run) {
    Buffer<float> dgates(T * B * blocks), first(B * blocks), dhx(B * H), dcx(B * H);
    fill(dhx);
    fill(dcx);
    void* const pointers[] = {weight_hh.data(), nullptr,        hx.data(),  cx.data(),
                              output.data(),    reserve.data(), dy.data(),  nullptr,
                              dgates.data(),    nullptr,        dhx.data(), dcx.data(),
                              first.data()};
    const int status = cluster_backward_driver(sizes, reverse, ragged ? lengths.data() : nullptr,
                                               pointers, strides, tiling);
    expect(status == 0, what + device::error_message(status));
    expect_finite(dgates, what + "dgates");
    expect_finite(first, what + "first_dgates");
    expect_finite(dhx, what + "dhx");
    expect_finite(dcx, what + "dcx");
    if (run == 0)
      std::memcpy(kept.data(), dgates.data(), dgates.size() * 4);
    else
      expect(std::memcmp(kept.data(), dgates.data(), dgates.size() * 4) == 0, what + "second run");
  }
}

}  // namespace

int main() {
  for (const Cell cell : {Cell::kTanh, Cell::kRelu, Cell::kGru, Cell::kLstm}) {
    run_case(cell, 4, 3, 5, 1, false, true);
    run_case(cell, 5, 9, 7, 2, true, true);
    run_case(cell, 5, 2, 20, 4, false, false);
  }
  if (test::num_failures == 0) std::printf("ok\n");
  return test::num_failures == 0 ? 0 : 1;
}
