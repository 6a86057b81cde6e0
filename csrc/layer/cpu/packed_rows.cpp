#include "layer/cpu/packed_rows.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/kept_memory.h"

namespace birnn::cpu {
namespace {

Tensor offsets_of(const std::vector<int64_t>& batch_sizes) {
  Tensor offsets = at::empty({static_cast<int64_t>(batch_sizes.size()) + 1}, at::kLong);
  int64_t* offset = offsets.data_ptr<int64_t>();
  offset[0] = 0;
  for (size_t t = 0; t < batch_sizes.size(); ++t) offset[t + 1] = offset[t] + batch_sizes[t];
  return offsets;
}

Rows packed_rows(const Tensor& batch_sizes) {
  const int64_t* size = batch_sizes.const_data_ptr<int64_t>();
  const int64_t T = batch_sizes.size(0);
  Rows rows;
  rows.row_offsets = offsets_of({size, size + T});
  rows.lengths = at::empty({size[0]}, at::kLong);
  int64_t* length = rows.lengths.data_ptr<int64_t>();
  for (int64_t t = T - 1, b = 0; t >= 0; --t)
    for (; b < size[t]; ++b) length[b] = t + 1;
  rows.num_rows = rows.row_offsets.const_data_ptr<int64_t>()[T];
  return rows;
}

Rows rows_of_lengths(const Tensor& given, int64_t T) {
  const Tensor lengths = given.to(at::kCPU, at::kLong).contiguous();
  const int64_t B = lengths.size(0);
  const int64_t* length = lengths.const_data_ptr<int64_t>();
  check_length_values(lengths, T);
  Rows rows;
  rows.num_rows = T * B;
  if (std::all_of(length, length + B, [&](int64_t steps) { return steps == T; })) return rows;

  rows.order = at::empty({B}, at::kLong);
  int64_t* order = rows.order.data_ptr<int64_t>();
  std::iota(order, order + B, int64_t(0));
  std::stable_sort(order, order + B, [&](int64_t a, int64_t b) { return length[a] > length[b]; });
  rows.lengths = lengths.index_select(0, rows.order);
  const int64_t* sorted = rows.lengths.const_data_ptr<int64_t>();
  std::vector<int64_t> batch_sizes(T);
  int64_t active = B;
  for (int64_t t = 0; t < T; ++t) {
    while (active > 0 && sorted[active - 1] <= t) --active;
    batch_sizes[t] = active;
  }
  rows.row_offsets = offsets_of(batch_sizes);
  rows.num_rows = rows.row_offsets.const_data_ptr<int64_t>()[T];
  rows.padded_rows = at::empty({rows.num_rows}, at::kLong);
  int64_t* row = rows.padded_rows.data_ptr<int64_t>();
  for (int64_t t = 0; t < T; ++t)
    for (int64_t j = 0; j < batch_sizes[t]; ++j) *row++ = t * B + order[j];
  return rows;
}

Rows rows_without_resets(const Problem& p) {
  if (p.is_packed()) return packed_rows(*p.batch_sizes);
  if (p.lengths) return rows_of_lengths(*p.lengths, p.shape.seq_len);
  Rows rows;
  rows.num_rows = p.num_rows;
  return rows;
}

// Where sequences begin, in the order of the rows; left undefined where none does.
void take_resets(const Tensor& given, Rows& rows) {
  if (rows.lengths.defined())
    check_reset_values(given, rows.lengths.index_select(0, rows.order.argsort()));
  const int64_t T = given.size(0), B = given.size(1);
  const Tensor resets =
      rows.padded_rows.defined() ? given.view({-1}).index_select(0, rows.padded_rows) : given;
  const Tensor step_resets = at::empty({T}, at::kBool);
  const bool* reset = resets.const_data_ptr<bool>();
  bool* in_step = step_resets.data_ptr<bool>();
  const auto offset = [&](int64_t t) {
    return rows.row_offsets.defined() ? rows.row_offsets.const_data_ptr<int64_t>()[t] : t * B;
  };
  const auto is_set = [](bool value) { return value; };
  for (int64_t t = 0; t < T; ++t)
    in_step[t] = std::any_of(reset + offset(t), reset + offset(t + 1), is_set);
  if (std::none_of(in_step, in_step + T, is_set)) return;
  rows.resets = resets;
  rows.step_resets = step_resets;
}

// row *= factors, numbers of `to` and of `factors_type`.
void multiply_row(char* row, const char* factors, int64_t size, at::ScalarType type,
                  at::ScalarType factors_type) {
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, type, "multiply_row", [&] {
    using Row = scalar_t;
    AT_DISPATCH_FLOATING_TYPES(factors_type, "multiply_row", [&] {
      for (int64_t i = 0; i < size; ++i) {
        Row& to = reinterpret_cast<Row*>(row)[i];
        to = static_cast<Row>(static_cast<scalar_t>(to) *
                              reinterpret_cast<const scalar_t*>(factors)[i]);
      }
    });
  });
}

}  // namespace

Tensor previous_states(const Problem& p, const Rows& rows, const Tensor& states,
                       const Tensor& initial, const Tensor& mask, int d, int64_t t_begin,
                       int64_t t_end) {
  const int64_t S = states.size(1);
  const SequenceRows at_rows = rows.pointers();
  const auto offset = [&](int64_t t) {
    return at_rows.row_offsets ? at_rows.row_offsets[t] : t * p.shape.batch_size;
  };
  const int64_t first_row = offset(t_begin);
  const Tensor previous = cpu::empty_large({offset(t_end) - first_row, S}, states.options());
  const int64_t bytes = S * states.element_size();
  for (int64_t t = t_begin; t < t_end; ++t)
    for (int64_t row = offset(t); row < offset(t + 1); ++row) {
      const int64_t b = row - offset(t);
      const int64_t from = d == 1 ? t + 1 : t - 1, border = d == 1 ? from : t;
      const int64_t length = at_rows.lengths ? at_rows.lengths[b] : p.shape.seq_len;
      char* to = mutable_row_pointer(previous, row - first_row);
      if (at_rows.resets && border < length && at_rows.resets[offset(border) + b])
        std::memset(to, 0, bytes);
      else if (from >= 0 && from < length)
        std::memcpy(to, row_pointer(states, offset(from) + b), bytes);
      else if (initial.defined())
        std::memcpy(to, direction_row_pointer(initial, d, b), bytes);
      else
        std::memset(to, 0, bytes);
      if (mask.defined())
        multiply_row(to, direction_row_pointer(mask, d, b), S, states.scalar_type(),
                     mask.scalar_type());
    }
  return previous;
}

Rows rows_of(const Problem& p) {
  Rows rows = rows_without_resets(p);
  if (p.resets) take_resets(*p.resets, rows);
  return rows;
}

Tensor take_rows(const Tensor& t, const Rows& rows, at::ScalarType type) {
  Tensor flat;
  const int64_t C = t.size(-1);
  const bool mergeable = t.dim() == 3 && t.stride(2) == 1 && t.stride(1) >= C &&
                         t.stride(0) == t.size(1) * t.stride(1);
  if (mergeable)
    flat = t.as_strided({t.size(0) * t.size(1), C}, {t.stride(1), 1});
  else
    flat = t.reshape({-1, C});
  if (rows.padded_rows.defined()) flat = flat.index_select(0, rows.padded_rows);
  flat = as_type(flat, type);
  const bool usable = (C == 1 || flat.stride(1) == 1) && flat.stride(0) >= C;
  return usable ? flat : flat.contiguous();
}

Tensor give_rows(const Tensor& flat, const Rows& rows, at::IntArrayRef sizes, at::ScalarType type) {
  Tensor t = as_type(flat, type);
  if (rows.padded_rows.defined()) {
    int64_t num_rows = 1;
    for (size_t i = 0; i + 1 < sizes.size(); ++i) num_rows *= sizes[i];
    t = at::zeros({num_rows, flat.size(1)}, t.options()).index_copy_(0, rows.padded_rows, t);
  }
  return t.view(sizes);
}

Tensor read_state(const Tensor& state, const Rows& rows, at::ScalarType type) {
  const Tensor t = as_type(state, type);
  return rows.order.defined() ? t.index_select(1, rows.order) : t.contiguous();
}

Tensor take_state(const OptionalTensor& state, const Rows& rows, at::IntArrayRef sizes,
                  const at::TensorOptions& options) {
  if (!state) return at::zeros(sizes, options);
  Tensor t = state->to(options.dtype());
  if (rows.order.defined()) return t.index_select(1, rows.order);
  return t.clone(at::MemoryFormat::Contiguous);
}

Tensor give_state(const Tensor& state, const Rows& rows, at::ScalarType type) {
  Tensor t = as_type(state, type);
  if (!rows.order.defined()) return t;
  return at::empty_like(t).index_copy_(1, rows.order, t);
}

}  // namespace birnn::cpu
