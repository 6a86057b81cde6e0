// stepwise as a stand-alone program, for the sanitizers: every array of exactly its size, all
// elements, cells and directions on a few shapes. Values are checked in test_stepwise.py; here only
// that every output was written and is finite, and that a second run gives the same bits.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>

#include "float_formats.h"
#include "stepwise_driver.cpp"
#include "test_support.h"

namespace {

using birnn::device::BFloat16;
using birnn::device::Half;
using birnn::test::Buffer;

// Elements of one of the four types, all NaN or all small numbers.
struct Array {
  Array(Element element, int64_t count, bool filled)
      : element(element), count(count), bytes(count * size()) {
    for (int64_t i = 0; filled && i < count; ++i) set(i, static_cast<float>(i * 37 % 41 - 20) / 32);
  }
  int64_t size() const {
    return element == Element::kFloat64 ? 8 : element == Element::kFloat32 ? 4 : 2;
  }
  void set(int64_t i, float value) {
    void* const at = bytes.data() + i * size();
    switch (element) {
      case Element::kFloat64:
        *static_cast<double*>(at) = value;
        break;
      case Element::kFloat32:
        *static_cast<float*>(at) = value;
        break;
      case Element::kFloat16:
        *static_cast<Half*>(at) = static_cast<Half>(emulator::float_to_half(value));
        break;
      case Element::kBFloat16:
        *static_cast<BFloat16*>(at) = static_cast<BFloat16>(emulator::float_to_bfloat16(value));
    }
  }
  double get(int64_t i) const {
    const void* const at = const_cast<Buffer<unsigned char>&>(bytes).data() + i * size();
    switch (element) {
      case Element::kFloat64:
        return *static_cast<const double*>(at);
      case Element::kFloat32:
        return *static_cast<const float*>(at);
      case Element::kFloat16:
        return emulator::half_to_float(*static_cast<const uint16_t*>(at));
      case Element::kBFloat16:
        break;
    }
    return emulator::bfloat16_to_float(*static_cast<const uint16_t*>(at));
  }
  void* data() { return bytes.data(); }

  Element element;
  int64_t count;
  Buffer<unsigned char> bytes;
};

int failures = 0;

void expect(bool condition, const char* what, const int64_t* sizes, bool reverse) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s; cell %d element %d T=%d B=%d H=%d P=%d reverse %d\n", what,
              int(sizes[0]), int(sizes[1]), int(sizes[2]), int(sizes[3]), int(sizes[4]),
              int(sizes[5]), int(reverse));
}

void expect_finite(const Array& array, const char* what, const int64_t* sizes, bool reverse) {
  for (int64_t i = 0; i < array.count; ++i) {
    if (std::isfinite(array.get(i))) continue;
    expect(false, what, sizes, reverse);
    return;
  }
}

void run_case(const int64_t* sizes, bool reverse, bool has_lengths, bool has_states) {
  RecurrenceShape shape = birnn::test::shape_of(sizes);
  shape.recurrent_dropout = shape.zoneout = has_states;
  const Element element = shape.element;
  const Element carried = element == Element::kFloat64 ? element : Element::kFloat32;
  const int64_t T = shape.seq_len, B = shape.batch_size, H = shape.hidden_size;
  const int64_t P = shape.proj_size, S = shape.state_size(), G = num_gates(shape.cell);
  const int64_t width = std::max<int64_t>(G, reserve_blocks(shape)) * H;
  const int64_t blocks = dgates_blocks(shape.cell);
  Buffer<int64_t> lengths(B);
  for (int64_t b = 0; b < B; ++b) lengths[b] = (b * 3 + 2) % (T + 1);
  const int64_t* const given = has_lengths ? lengths.data() : nullptr;
  Buffer<unsigned char> begins(T * B);
  for (int64_t i = 0; i < T * B; ++i) begins[i] = i * 5 % 3 == 0;
  void* const resets = has_states ? begins.data() : nullptr;
  Array mask(element, B * S, true), shares_h(element, T * B * S, true);
  Array shares_c(element, H, true);  // one row for all
  const bool is_lstm = birnn::is_lstm(shape.cell);
  void* const regularisers[] = {has_states ? mask.data() : nullptr,
                                has_states ? shares_h.data() : nullptr,
                                has_states && is_lstm ? shares_c.data() : nullptr};

  // Or weight_ch in the place of weight_hr, which no cell has beside it.
  Array weight_hh(element, G * H * S, true);
  Array weight_hr(element, shape.cell == Cell::kLstmPeepholes ? 3 * H : P * H, true);
  Array bias_ih(element, G * H, true), bias_hh(element, G * H, true);
  Array hx(element, B * S, true), cx(element, B * H, true);
  Array dy(element, T * B * S, true), dc(element, T * B * H, true);
  void* const states[] = {has_states ? hx.data() : nullptr, has_states ? cx.data() : nullptr};
  std::unique_ptr<Array> first_output, first_dhx;
  for (int run = 0; run < 2; ++run) {
    Array gates(element, T * B * width, true), hy(element, B * S, false);
    auto output = std::make_unique<Array>(element, T * B * S, false);
    Array cy(carried, B * H, !is_lstm);
    void* const forward[] = {weight_hh.data(), weight_hr.data(), bias_ih.data(), bias_hh.data(),
                             states[0],        states[1],        gates.data(),   output->data(),
                             hy.data(),        cy.data(),        resets,         regularisers[0],
                             regularisers[1],  regularisers[2]};
    const int64_t strides[] = {width, S, S, 0};
    int status = stepwise_forward_driver(sizes, reverse, 1, given, forward, strides, nullptr);
    expect(status == 0, device::error_message(device::Status(status)), sizes, reverse);
    expect_finite(*output, "output", sizes, reverse);
    expect_finite(hy, "hy", sizes, reverse);
    expect_finite(cy, "cy", sizes, reverse);

    Array dgates(element, T * B * blocks * H, false), dproj(element, T * B * P, false);
    Array first_dgates(element, B * blocks * H, false), dcx(carried, B * H, true);
    auto dhx = std::make_unique<Array>(carried, B * S, true);
    void* const backward[] = {
        weight_hh.data(),    weight_hr.data(), states[0],       states[1],      output->data(),
        gates.data(),        dy.data(),        dc.data(),       dgates.data(),  dproj.data(),
        dhx->data(),         dcx.data(),       nullptr,         nullptr,        resets,
        first_dgates.data(), regularisers[0],  regularisers[1], regularisers[2]};
    const int64_t backward_strides[] = {S, width, S, H, blocks * H, S, 0};
    status = stepwise_backward_driver(sizes, reverse, given, backward, backward_strides, nullptr);
    expect(status == 0, device::error_message(device::Status(status)), sizes, reverse);
    expect_finite(dgates, "dgates", sizes, reverse);
    expect_finite(first_dgates, "first_dgates", sizes, reverse);
    expect_finite(dproj, "dproj", sizes, reverse);
    expect_finite(*dhx, "dhx", sizes, reverse);
    expect_finite(dcx, "dcx", sizes, reverse);
    if (run == 0) {
      first_output = std::move(output);
      first_dhx = std::move(dhx);
    } else {
      const auto equal = [](Array& a, Array& b) {
        return std::memcmp(a.data(), b.data(), a.bytes.size()) == 0;
      };
      expect(equal(*first_output, *output) && equal(*first_dhx, *dhx), "second run", sizes,
             reverse);
    }
  }
}

}  // namespace

int main() {
  // T, B, H: a single unit; ragged; two blocks of units.
  constexpr int64_t kShapes[][3] = {{1, 1, 1}, {4, 3, 5}, {2, 2, 130}};
  for (int cell = 0; cell < 6; ++cell)
    for (int element = 0; element < 4; ++element)
      for (const auto& [T, B, H] : kShapes)
        for (int option = 0; option < 8; ++option) {
          const bool reverse = option & 1, has_lengths = option & 2, projected = option & 4;
          if (projected && cell != 3) continue;
          if (H > 100 && reverse != has_lengths) continue;  // slow enough without
          const int64_t sizes[] = {cell, element, T, B, H, projected ? (H + 1) / 2 : 0};
          run_case(sizes, reverse, has_lengths, has_lengths != reverse);
        }
  if (failures == 0) std::printf("ok\n");
  return failures == 0 ? 0 : 1;
}
