// stepwise of layer-normalised cells as a stand-alone program, for the sanitizers: every array of
// exactly its size. Values are checked in test_normalised.py; here only that every output was
// written and is finite, and that a second run gives the same bits.
#include "normalised_driver.cpp"
#include "program_arrays.h"
#include "test_support.h"

namespace {

using test::Buffer;
using test::expect;
using test::expect_finite;
using test::has_cell;

void run_case(Cell cell, const int64_t (&shape)[3], bool reverse, bool has_lengths,
              bool has_states) {
  const auto [T, B, H] = shape;
  const int64_t sizes[] = {static_cast<int64_t>(cell), 1, T, B, H, 0};
  const int64_t G = num_gates(cell), blocks = dgates_blocks(cell), N = T * B;
  const bool lstm = cell == Cell::kLstm;
  const std::string name = "cell " + std::to_string(sizes[0]) + " T " + std::to_string(T) + " B " +
                           std::to_string(B) + " H " + std::to_string(H) +
                           (reverse ? " reverse" : "") + (has_lengths ? " lengths " : " ");
  Buffer<int64_t> lengths(B);
  test::fill_lengths(lengths, T);
  Buffer<unsigned char> resets(N);
  for (int64_t i = 0; i < N; ++i) resets[i] = i * 5 % 3 == 0;
  Buffer<float> gates_x(N * G * H), weight_hh(G * H * H), norm_hh(G * H), bias_hh(G * H);
  Buffer<float> norm_c(H), bias_c(H), hx(B * H), cx(B * H), dy(N * H), dc(N * H);
  for (Buffer<float>* given :
       {&gates_x, &weight_hh, &norm_hh, &bias_hh, &norm_c, &bias_c, &hx, &cx, &dy, &dc})
    test::fill(*given);
  Buffer<float> kept_output(N * H), kept_dhx(B * H);
  for (int run = 0; run < 2; ++run) {
    Buffer<float> output(N * H), hy(B * H), cy(B * H);
    Buffer<float> reserve(N * normalised_reserve_size(cell, H));
    Buffer<float> dgates(N * blocks * H), dsums(N * G * H), dnorm_c(N * H), dhx(B * H), dcx(B * H);
    test::fill(dhx);
    test::fill(dcx);
    const auto of_lstm = [&](Buffer<float>& array) -> void* {
      return lstm ? array.data() : nullptr;
    };
    const auto state = [&](Buffer<float>& array) -> void* {
      return has_states ? array.data() : nullptr;
    };
    void* const pointers[] = {gates_x.data(),
                              weight_hh.data(),
                              norm_hh.data(),
                              bias_hh.data(),
                              of_lstm(norm_c),
                              of_lstm(bias_c),
                              state(hx),
                              lstm ? state(cx) : nullptr,
                              has_states ? resets.data() : nullptr,
                              output.data(),
                              reserve.data(),
                              hy.data(),
                              of_lstm(cy),
                              dy.data(),
                              of_lstm(dc),
                              dgates.data(),
                              dsums.data(),
                              of_lstm(dnorm_c),
                              dhx.data(),
                              of_lstm(dcx)};
    const int64_t strides[] = {G * H, H, H, H};
    for (const int backward : {0, 1})
      expect(
          normalised_driver(sizes, backward, reverse, 1e-5, has_lengths ? lengths.data() : nullptr,
                            pointers, strides, T, nullptr) == 0,
          name + (backward ? "backward" : "forward"));
    for (const auto& [array, what] : {std::pair{&output, "output"},
                                      {&hy, "hy"},
                                      {&reserve, "reserve"},
                                      {&dgates, "dgates"},
                                      {&dsums, "dsums"},
                                      {&dhx, "dhx"}})
      expect_finite(*array, name + what);
    if (lstm)
      for (const auto& [array, what] : {std::pair{&cy, "cy"}, {&dnorm_c, "dnorm_c"}, {&dcx, "dcx"}})
        expect_finite(*array, name + what);
    test::expect_same(run, kept_output, output, name + "output");
    test::expect_same(run, kept_dhx, dhx, name + "dhx");
  }
}

}  // namespace

int main() {
  // T, B, H: a single unit; ragged; two warps; more units than threads.
  constexpr int64_t kShapes[][3] = {{1, 1, 1}, {4, 3, 5}, {3, 2, 40}, {2, 1, 300}};
  for (const Cell cell : {Cell::kGru, Cell::kLstm})
    for (const auto& shape : kShapes)
      for (int option = 0; option < 8; ++option) {
        if (!has_cell(cell)) continue;
        const bool reverse = option & 1, has_lengths = option & 2, has_states = option & 4;
        if (shape[2] > 100 && option != 3 && option != 4) continue;  // slow enough without
        run_case(cell, shape, reverse, has_lengths, has_states);
      }
  if (test::num_failures == 0) std::printf("ok\n");
  return test::num_failures == 0 ? 0 : 1;
}
