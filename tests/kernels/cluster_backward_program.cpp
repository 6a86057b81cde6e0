// The cluster backward kernel as a stand-alone program, for the sanitizers: every array of exactly
// its size. Values are checked in test_cluster_backward.py; here only that every output was written
// and is finite, and that a second run gives the same bits. fp32 alone: the element decides nothing
// about barriers, and indices are checked in elements.
#define CLUSTER_BACKWARD_IEEE_ALONE
#include "cluster_backward_driver.cpp"
#include "program_arrays.h"

namespace {

using namespace birnn;
using namespace birnn::test;

// kRagged: with lengths. kFull: without them. kBare: without anything that may be absent.
enum class Given { kRagged, kFull, kBare };

void run_case(Cell cell, int64_t T, int64_t B, int64_t H, int64_t cluster, bool reverse,
              Given given) {
  const bool ragged = given == Given::kRagged, bare = given == Given::kBare;
  const std::string what = "cell " + std::to_string(static_cast<int>(cell)) + " T " +
                           std::to_string(T) + " H " + std::to_string(H) + " cluster " +
                           std::to_string(cluster) + ": ";
  const int64_t width = reserve_blocks(cell) * H, blocks = dgates_blocks(cell) * H;
  Buffer<int64_t> lengths(B);
  fill_lengths(lengths, T);
  Buffer<float> weight_hh(num_gates(cell) * H * H), hx(B * H), cx(B * H), output(T * B * H);
  Buffer<float> reserve(T * B * width), dy(T * B * H), dc(T * B * H), mask(B * H);
  Buffer<bool> resets(T * B);
  fill_resets(resets, B);
  for (Buffer<float>* array : {&weight_hh, &hx, &cx, &output, &reserve, &dy, &dc, &mask})
    fill(*array);
  const auto optional = [&](auto& array) { return bare ? nullptr : array.data(); };
  const int64_t* const ends = ragged ? lengths.data() : nullptr;
  const int64_t sizes[] = {static_cast<int64_t>(cell), 1, T, B, H, 0};
  const int64_t strides[] = {H, width, H, H, blocks, 0, 0}, tiling[] = {cluster, 1, 0};
  Buffer<float> kept(T * B * blocks);
  for (int run = 0; run < 2; ++run) {
    Buffer<float> dgates(T * B * blocks), first(B * blocks), dhx(B * H), dcx(B * H);
    Buffer<float> dbias_ih(num_gates(cell) * H), dbias_hh(num_gates(cell) * H);
    fill(dhx);
    fill(dcx);
    void* const pointers[] = {weight_hh.data(),
                              nullptr,
                              optional(hx),
                              optional(cx),
                              output.data(),
                              reserve.data(),
                              optional(dy),
                              optional(dc),
                              dgates.data(),
                              nullptr,
                              dhx.data(),
                              dcx.data(),
                              optional(dbias_ih),
                              optional(dbias_hh),
                              ragged ? resets.data() : nullptr,
                              optional(first),
                              ragged ? mask.data() : nullptr,
                              nullptr,
                              nullptr};
    const int status = cluster_backward_driver(sizes, reverse, ends, pointers, strides, tiling);
    expect(status == 0, what + device::error_message(device::Status(status)));
    expect_finite(dgates, what + "dgates");
    if (!bare) expect_finite(first, what + "first_dgates");
    if (!bare) expect_finite(dbias_ih, what + "dbias_ih");
    if (!bare) expect_finite(dbias_hh, what + "dbias_hh");
    expect_finite(dhx, what + "dhx");
    expect_finite(dcx, what + "dcx");
    expect_same(run, kept, dgates, what + "dgates");
  }
}

}  // namespace

int main() {
  for (const Cell cell : {Cell::kTanh, Cell::kRelu, Cell::kGru, Cell::kLstm}) {
    if (!has_cell(cell)) continue;
    run_case(cell, 4, 3, 5, 1, false, Given::kRagged);
    run_case(cell, 5, 9, 7, 2, true, Given::kRagged);
    run_case(cell, 5, 2, 20, 4, false, Given::kBare);
    run_case(cell, 4, 2, 8, 4, false, Given::kFull);
  }
  if (num_failures == 0) std::printf("ok\n");
  return num_failures == 0 ? 0 : 1;
}
