// A layer on the CPU: lays sequences of unequal length out in packed rows, runs the recurrence, and
// leaves the gradients of input and weights to the BLAS.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "cpu/gemm_cpu.h"
#include "cpu/kept_memory.h"
#include "cpu/recurrence_cpu.h"
#include "layer/layer.h"
#include "layer/profile.h"

namespace birnn {
namespace {

// What a call computes with: the kernels for its weights, and the types of its rows (x, h, their
// gradients, dgates), which the products of the weight gradients share, and of all else.
struct Numbers {
  const cpu::KernelTable* kernels;
  at::ScalarType weights, rows, sums;  // weights: the matrices, as the kernels take them

  Numbers(at::ScalarType type, int64_t batch_size) : sums(at::toOpMathType(type)) {
    using cpu::WeightFormat;
    if (type == at::kChar) {
      kernels = cpu::kernels_for(WeightFormat::kInt8).table;
      weights = at::kChar;
      rows = sums = at::kFloat;
      return;
    }
    kernels = cpu::kernels_for(type == at::kDouble     ? WeightFormat::kFloat64
                               : type == at::kHalf     ? WeightFormat::kFloat16
                               : type == at::kBFloat16 ? WeightFormat::kBFloat16
                                                       : WeightFormat::kFloat32)
                  .table;
    // Widening costs an instruction or two for each vector of weights in each step, which a few
    // sequences regain in bytes and more do not: LSTM, AVX-512, H = 1024, B = 1 runs 1.35 times as
    // fast as float32, H = 512, B = 32 0.6 times. The sums are the same, bit for bit.
    constexpr int64_t kFewSequences = 2;
    const bool widens = type != sums && kernels && kernels->rows != Element::kBFloat16;
    if (widens && batch_size > kFewSequences) kernels = nullptr;
    weights = kernels ? type : sums;
    if (!kernels) kernels = cpu::kernels_for(WeightFormat::kFloat32).table;
    rows = kernels->rows == Element::kBFloat16 ? at::kBFloat16 : sums;
  }
};

// t.to(type) without its price where there is nothing to do. A layer of one sequence and 64 units
// is done in 40 us, so that every call of the dispatcher counts.
Tensor as_type(const Tensor& t, at::ScalarType type) {
  return t.scalar_type() == type ? t : t.to(type);
}

// Sequences longest first, their steps in packed rows.
struct Rows {
  int64_t num_rows = 0;
  Tensor lengths;      // [B] sorted, or undefined: all T
  Tensor row_offsets;  // [T + 1]
  Tensor order;        // [B] the caller's index of a sorted sequence; undefined: unchanged
  Tensor padded_rows;  // [N] the caller's row of a packed row; undefined: unchanged

  SequenceRows pointers() const {
    if (!lengths.defined()) return {};
    return {lengths.const_data_ptr<int64_t>(), row_offsets.const_data_ptr<int64_t>()};
  }
};

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
  bool all_full = true;
  for (int64_t b = 0; b < B; ++b) {
    TORCH_CHECK_VALUE(length[b] >= 0 && length[b] <= T, "lengths[", b, "] is ", length[b],
                      " but must be between 0 and the ", T, " steps of the input");
    all_full = all_full && length[b] == T;
  }
  Rows rows;
  rows.num_rows = T * B;
  if (all_full) return rows;

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

Rows rows_of(const Problem& p) {
  if (p.is_packed()) return packed_rows(*p.batch_sizes);
  if (p.lengths) return rows_of_lengths(*p.lengths, p.shape.seq_len);
  Rows rows;
  rows.num_rows = p.num_rows;
  return rows;
}

// A tensor [T, B, C] or [N, C] as the rows that the recurrence walks, [N, C] with unit stride in
// the last dimension: a view where the memory allows it.
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

// The way back: rows past a sequence's end are zero.
Tensor give_rows(const Tensor& flat, const Rows& rows, at::IntArrayRef sizes, at::ScalarType type) {
  Tensor t = as_type(flat, type);
  if (rows.padded_rows.defined()) {
    int64_t num_rows = 1;
    for (size_t i = 0; i + 1 < sizes.size(); ++i) num_rows *= sizes[i];
    t = at::zeros({num_rows, flat.size(1)}, t.options()).index_copy_(0, rows.padded_rows, t);
  }
  return t.view(sizes);
}

// A state [D, B, C] in the order of the rows, always memory of its own.
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

// The weights as a pass takes them: forward multiplies rows of x by W_ih in the recurrence,
// backward rows of dgates by a product of their own type.
std::vector<Tensor> weights_for(const Problem& p, const Numbers& numbers, bool backward) {
  std::vector<Tensor> weights;
  for (size_t i = 0; i < p.weights.size(); ++i) {
    const Tensor& w = p.weights[i];
    const bool is_ih = i % p.weights_per_direction == 0;
    const at::ScalarType type = w.dim() == 1        ? numbers.sums
                                : is_ih && backward ? numbers.rows
                                                    : numbers.weights;
    weights.push_back(as_type(w, type).contiguous());
  }
  return weights;
}

// Products on rows of `element` type; what they add up is float or double.
struct Products {
  Element element;

  void operator()(GemmShape shape, const void* a, const void* b, void* c) const {
    shape.float_output = true;
    cpu::gemm(nullptr, nullptr, shape, a, b, c, element, GemmCompute::kIeee);
  }
};

const char* row_pointer(const Tensor& t, int64_t row, int64_t column = 0) {
  return static_cast<const char*>(t.const_data_ptr()) +
         (row * t.stride(0) + column) * t.element_size();
}

char* mutable_row_pointer(const Tensor& t, int64_t row, int64_t column = 0) {
  return static_cast<char*>(t.data_ptr()) + (row * t.stride(0) + column) * t.element_size();
}

// Direction d's row of a contiguous tensor [D, rows, columns].
const char* direction_row_pointer(const Tensor& t, int d, int64_t row, int64_t column = 0) {
  return row_pointer(t, d) + (row * t.stride(1) + column) * t.element_size();
}

cpu::Layer cpu_layer(const Problem& p, const Rows& rows, const cpu::KernelTable* kernels) {
  cpu::Layer layer{p.shape, rows.pointers(), p.num_directions, p.input_size, kernels};
  layer.shape.element = kernels->rows;
  return layer;
}

}  // namespace

ForwardResult forward_cpu(const Problem& given, bool training) {
  const ProfiledCall call(given, "forward", cpu::instruction_set_name());
  const at::AutoDispatchBelowADInplaceOrView no_tracking;
  const Rows rows = rows_of(given);
  const Numbers numbers(given.weight_hh(0).scalar_type(), given.shape.batch_size);
  Problem p = given;
  p.weights = weights_for(given, numbers, false);
  const cpu::Layer layer = cpu_layer(p, rows, numbers.kernels);
  const RecurrenceShape& s = layer.shape;
  const int64_t D = p.num_directions, B = s.batch_size, H = s.hidden_size;
  const int64_t S = s.state_size();
  const at::ScalarType type = p.input.scalar_type();
  const auto options = p.input.options().dtype(numbers.sums);
  const auto row_options = options.dtype(numbers.rows);
  const bool lstm = s.cell == Cell::kLstm;

  const Tensor x = take_rows(p.input, rows, numbers.rows);
  const Tensor output = cpu::empty_large({rows.num_rows, D * S}, row_options);
  const Tensor hx = p.hx ? take_state(p.hx, rows, {D, B, S}, row_options) : Tensor();
  const Tensor cx = p.cx ? take_state(p.cx, rows, {D, B, H}, options) : Tensor();
  const Tensor hy = at::empty({D, B, S}, row_options);
  const Tensor cy = lstm ? (p.cx ? cx.clone() : at::zeros({D, B, H}, options)) : Tensor();
  const int64_t reserve_width = reserve_blocks(s.cell) * H;
  const Tensor reserve = training ? cpu::empty_large({D, p.num_rows, reserve_width}, options)
                                  : at::empty({0}, p.input.options());

  std::vector<const void*> weight_ih(D);
  std::vector<cpu::WeightScales> scales(D);
  std::vector<Tensor> contiguous_scales;
  for (const Tensor& scale : p.scales) contiguous_scales.push_back(scale.contiguous());
  std::vector<ForwardDirection> directions(D);
  for (int d = 0; d < D; ++d) {
    ForwardDirection& dir = directions[d];
    dir.reverse = d == 1;
    dir.weight_hh = p.weight_hh(d).const_data_ptr();
    dir.weight_hr = s.proj_size ? p.weight_hr(d).const_data_ptr() : nullptr;
    dir.bias_ih = p.has_bias ? p.bias_ih(d).const_data_ptr() : nullptr;
    dir.bias_hh = p.has_bias ? p.bias_hh(d).const_data_ptr() : nullptr;
    dir.hx = hx.defined() ? row_pointer(hx, d) : nullptr;
    dir.cx = cx.defined() ? row_pointer(cx, d) : nullptr;
    if (training && reserve_width > 0) dir.gates = mutable_row_pointer(reserve, d);
    dir.gates_stride = reserve_width;
    weight_ih[d] = p.weight_ih(d).const_data_ptr();
    if (p.is_quantized()) {
      const Tensor* scale = &contiguous_scales[d * p.scales.size() / D];
      scales[d] = {scale[0].const_data_ptr<float>(), scale[1].const_data_ptr<float>(),
                   s.proj_size ? scale[2].const_data_ptr<float>() : nullptr};
    }
    dir.output = mutable_row_pointer(output, 0, d * S);
    dir.output_stride = D * S;
    dir.hy = mutable_row_pointer(hy, d);
    dir.cy = lstm ? mutable_row_pointer(cy, d) : nullptr;
  }

  const Tensor workspace =
      cpu::empty_large({cpu::workspace_bytes(layer)}, options.dtype(at::kByte));
  cpu::forward(layer, directions.data(), x.const_data_ptr(), x.stride(0), weight_ih.data(),
               scales.data(), workspace.data_ptr());

  std::vector<int64_t> sizes = p.input.sizes().vec();
  sizes.back() = D * S;
  return {give_rows(output, rows, sizes, type), give_state(hy, rows, type),
          lstm ? give_state(cy, rows, type) : at::empty({0}, p.input.options()), reserve};
}

namespace {

// The states that the rows of steps [t_begin, t_end) continue, [rows, S]: of packed rows, where
// they lie at no fixed distance.
Tensor previous_states(const Problem& p, const Rows& rows, const Tensor& output, const Tensor& hx,
                       int d, int64_t t_begin, int64_t t_end) {
  const int64_t S = p.shape.state_size();
  const SequenceRows at_rows = rows.pointers();
  const int64_t first_row = at_rows.row_offsets[t_begin];
  const Tensor states = at::empty({at_rows.row_offsets[t_end] - first_row, S}, output.options());
  const int64_t bytes = S * output.element_size();
  for (int64_t t = t_begin; t < t_end; ++t)
    for (int64_t row = at_rows.row_offsets[t]; row < at_rows.row_offsets[t + 1]; ++row) {
      const int64_t b = row - at_rows.row_offsets[t];
      const int64_t from = d == 1 ? t + 1 : t - 1;
      char* to = mutable_row_pointer(states, row - first_row);
      if (from >= 0 && from < at_rows.lengths[b])
        std::memcpy(to, row_pointer(output, at_rows.row_offsets[from] + b, d * S), bytes);
      else if (hx.defined())
        std::memcpy(to, direction_row_pointer(hx, d, b), bytes);
      else
        std::memset(to, 0, bytes);
    }
  return states;
}

// A gradient that products add to; the first one overwrites what the memory held.
struct GradientSum {
  Tensor sum;  // undefined: not asked for
  bool started = false;

  float next_beta() { return std::exchange(started, true) ? 1.0f : 0.0f; }
};

// Steps whose dgates exist at a time: enough rows for the products to run at full speed, so few
// that they read them from the cache, and that no array of T * B rows has to be paged in.
int64_t steps_per_chunk(const cpu::Layer& layer, int64_t row_bytes) {
  constexpr int64_t kChunkBytes = 16 << 20, kMinRows = 512;
  const int64_t rows = std::max(kChunkBytes / (layer.num_directions * row_bytes), kMinRows);
  return std::clamp<int64_t>(rows / layer.shape.batch_size, 1, layer.shape.seq_len);
}

}  // namespace

BackwardResult backward_cpu(const Problem& given, const BackwardInputs& in) {
  const ProfiledCall call(given, "backward", cpu::instruction_set_name());
  const at::AutoDispatchBelowADInplaceOrView no_tracking;
  const Rows rows = rows_of(given);
  const Numbers numbers(given.input.scalar_type(), given.shape.batch_size);
  Problem p = given;
  p.weights = weights_for(given, numbers, true);
  const cpu::Layer layer = cpu_layer(p, rows, numbers.kernels);
  const RecurrenceShape& s = layer.shape;
  const int64_t D = p.num_directions, T = s.seq_len, B = s.batch_size, H = s.hidden_size;
  const int64_t S = s.state_size(), I = p.input_size, G = num_gates(s.cell), N = rows.num_rows;
  const at::ScalarType type = p.input.scalar_type();
  const auto options = p.input.options().dtype(numbers.sums);
  const auto row_options = options.dtype(numbers.rows);
  const bool lstm = s.cell == Cell::kLstm;
  const Products multiply{s.element};

  const Tensor output = take_rows(in.output, rows, numbers.rows);
  const Tensor dy = in.d_output ? take_rows(*in.d_output, rows, numbers.rows) : Tensor();
  const Tensor dc = in.d_cell_states ? take_rows(*in.d_cell_states, rows, numbers.rows) : Tensor();
  const Tensor hx = p.hx ? take_state(p.hx, rows, {D, B, S}, row_options) : Tensor();
  const Tensor cx = p.cx ? take_state(p.cx, rows, {D, B, H}, options) : Tensor();
  const Tensor dhx = take_state(in.d_h_n, rows, {D, B, S}, options);
  const Tensor dcx = lstm ? take_state(in.d_c_n, rows, {D, B, H}, options) : Tensor();
  const int64_t dgates_width = dgates_blocks(s.cell) * H;
  const int64_t chunk = steps_per_chunk(layer, dgates_width * row_options.dtype().itemsize());
  const Tensor dgates = cpu::empty_large({D, std::min(chunk * B, N), dgates_width}, row_options);
  const Tensor dproj = s.proj_size ? cpu::empty_large({D, N, S}, row_options) : Tensor();

  std::vector<BackwardDirection> directions(D);
  for (int d = 0; d < D; ++d) {
    BackwardDirection& dir = directions[d];
    dir.reverse = d == 1;
    dir.weight_hh = p.weight_hh(d).const_data_ptr();
    dir.weight_hr = s.proj_size ? p.weight_hr(d).const_data_ptr() : nullptr;
    dir.hx = hx.defined() ? row_pointer(hx, d) : nullptr;
    dir.cx = cx.defined() ? row_pointer(cx, d) : nullptr;
    dir.output = row_pointer(output, 0, d * S);
    dir.output_stride = output.stride(0);
    dir.reserve = row_pointer(in.reserve, d);
    dir.reserve_stride = in.reserve.size(2);
    dir.dy = dy.defined() ? row_pointer(dy, 0, d * S) : nullptr;
    dir.dy_stride = dy.defined() ? dy.stride(0) : 0;
    dir.dc = dc.defined() ? row_pointer(dc, 0, d * H) : nullptr;
    dir.dc_stride = dc.defined() ? dc.stride(0) : 0;
    dir.dgates = mutable_row_pointer(dgates, d);
    dir.dgates_stride = dgates_width;
    dir.dproj = s.proj_size ? mutable_row_pointer(dproj, d) : nullptr;
    dir.dhx = mutable_row_pointer(dhx, d);
    dir.dcx = lstm ? mutable_row_pointer(dcx, d) : nullptr;
  }
  const int per_direction = p.weights_per_direction;
  const auto needed = [&](int d, int i) { return in.needs_grad[3 + d * per_direction + i]; };
  const std::vector<InputGateBlocks> blocks = input_gate_blocks(s.cell);
  const int64_t recurrent_column = s.cell == Cell::kGru ? H : 0;
  const Tensor x = take_rows(p.input, rows, numbers.rows);
  // The directions meet in dx: where there are several chunks, each adds to rows that the other
  // may have written or not.
  GradientSum dx;
  dx.started = chunk < T;
  if (in.needs_grad[0]) {
    dx.sum = cpu::empty_large({N, I}, options);
    if (dx.started) dx.sum.zero_();
  }
  std::vector<GradientSum> dw_ih(D), dw_hh(D), dbias(D);
  for (int d = 0; d < D; ++d) {
    if (needed(d, 0)) dw_ih[d].sum = at::empty({G * H, I}, options);
    if (needed(d, 1)) dw_hh[d].sum = at::empty({G * H, S}, options);
    if (p.has_bias && (needed(d, 2) || needed(d, 3)))
      dbias[d].sum = at::empty({dgates_width}, options);
  }
  const auto offset = [&](int64_t t) {
    return rows.row_offsets.defined() ? rows.row_offsets.const_data_ptr<int64_t>()[t] : t * B;
  };

  // Adds what the dgates of steps [t_begin, t_end) give to direction d's weights.
  const auto add_weight_gradients = [&](int d, int64_t t_begin, int64_t t_end) {
    const int64_t first = offset(t_begin), count = offset(t_end) - first;
    if (count == 0) return;
    GemmShape product;
    product.transpose_a = true;
    product.lda = dgates_width;
    if (dw_ih[d].sum.defined()) {
      product.beta = dw_ih[d].next_beta();
      for (const InputGateBlocks& block : blocks) {  // dW_ih += dgates^T x
        product.m = block.count * H, product.n = I, product.k = count;
        product.ldb = x.stride(0), product.ldc = I;
        multiply(product, direction_row_pointer(dgates, d, 0, block.column * H),
                 row_pointer(x, first), mutable_row_pointer(dw_ih[d].sum, block.row * H));
      }
    }
    if (dw_hh[d].sum.defined()) {  // dW_hh += dgates^T (the states that the rows continue)
      product.m = G * H, product.n = S, product.ldc = S;
      const auto add = [&](int64_t row, int64_t row_count, const void* states, int64_t stride) {
        product.k = row_count, product.ldb = stride, product.beta = dw_hh[d].next_beta();
        multiply(product, direction_row_pointer(dgates, d, row - first, recurrent_column), states,
                 dw_hh[d].sum.data_ptr());
      };
      if (rows.lengths.defined()) {
        const Tensor states = previous_states(p, rows, output, hx, d, t_begin, t_end);
        add(first, count, states.const_data_ptr(), S);
      } else {
        // Padded rows continue the rows one step, B rows, away; the first step continues hx.
        const int64_t from = d == 1 ? 1 : -1;
        const int64_t begin = std::max<int64_t>(t_begin, d == 1 ? 0 : 1);
        const int64_t end = std::min(t_end, d == 1 ? T - 1 : T);
        if (begin < end)
          add(begin * B, (end - begin) * B, row_pointer(output, (begin + from) * B, d * S),
              output.stride(0));
        const int64_t first_step = d == 1 ? T - 1 : 0;
        if (hx.defined() && t_begin <= first_step && first_step < t_end)
          add(first_step * B, B, row_pointer(hx, d), S);
      }
    }
    if (Tensor& sum = dbias[d].sum; sum.defined()) {
      const Tensor counted = dgates[d].narrow(0, 0, count);
      if (dbias[d].next_beta() == 0.0f)
        at::sum_out(sum, counted, {0}, false, numbers.sums);
      else
        sum.add_(counted.sum({0}, false, numbers.sums));
    }
  };

  const Tensor workspace =
      cpu::empty_large({cpu::workspace_bytes(layer)}, options.dtype(at::kByte));
  for (int64_t step_end = T; step_end > 0; step_end -= chunk) {
    const int64_t step_begin = std::max<int64_t>(step_end - chunk, 0);
    const auto t_begin = [&](int64_t d) { return d == 1 ? T - step_end : step_begin; };
    const auto t_end = [&](int64_t d) { return d == 1 ? T - step_begin : step_end; };
    for (int d = 0; d < D; ++d) directions[d].dgates_first_row = offset(t_begin(d));
    cpu::backward(layer, directions.data(), step_begin, step_end, workspace.data_ptr());
    // With a thread for each direction, the products are shared out by hand: one parallel region
    // instead of one for each. Of dx, where the directions meet, each thread takes some columns.
    // More threads share each product.
    const float dx_beta = dx.next_beta();
    const auto add_input_gradient = [&](int64_t column, int64_t columns) {
      float beta = dx_beta;
      for (int d = 0; d < D; ++d)
        for (const InputGateBlocks& block : blocks) {
          const int64_t first = offset(t_begin(d));
          GemmShape product;  // dx += dgates W_ih
          product.m = offset(t_end(d)) - first, product.n = columns, product.k = block.count * H;
          product.lda = dgates_width, product.ldb = I, product.ldc = I;
          product.beta = std::exchange(beta, 1.0f);
          multiply(product, direction_row_pointer(dgates, d, 0, block.column * H),
                   row_pointer(p.weight_ih(d), block.row * H, column),
                   mutable_row_pointer(dx.sum, first, column));
        }
    };
    if (D == at::get_num_threads()) {
      at::parallel_for(0, D, 1, [&](int64_t begin, int64_t end) {
        const int64_t column = I * begin / D, columns = I * end / D - column;
        if (dx.sum.defined()) add_input_gradient(column, columns);
        for (int64_t d = begin; d < end; ++d) add_weight_gradients(int(d), t_begin(d), t_end(d));
      });
    } else {
      if (dx.sum.defined()) add_input_gradient(0, I);
      for (int d = 0; d < D; ++d) add_weight_gradients(d, t_begin(d), t_end(d));
    }
  }

  BackwardResult out;
  // A tensor of its own each time: outputs of an operator must not share memory.
  const auto none = [&] { return at::empty({0}, p.input.options()); };
  out.d_input = dx.sum.defined() ? give_rows(dx.sum, rows, p.input.sizes(), type) : none();
  out.d_hx = in.needs_grad[1] && p.hx ? give_state(dhx, rows, type) : none();
  out.d_cx = in.needs_grad[2] && p.cx ? give_state(dcx, rows, type) : none();
  for (size_t i = 0; i < p.weights.size(); ++i) out.d_weights.push_back(none());
  for (int d = 0; d < D; ++d) {
    for (GradientSum* g : {&dw_ih[d], &dw_hh[d], &dbias[d]})
      if (g->sum.defined() && !g->started) g->sum.zero_();
    const auto set = [&](int i, const Tensor& t) {
      if (needed(d, i)) out.d_weights[d * per_direction + i] = as_type(t, type);
    };
    set(0, dw_ih[d].sum);
    set(1, dw_hh[d].sum);
    if (const Tensor& sum = dbias[d].sum; sum.defined()) {
      if (s.cell == Cell::kGru) {
        // Of n, r, z and the recurrent n to r, z, n.
        const Tensor ih = at::empty({3 * H}, options), hh = at::empty({3 * H}, options);
        const int64_t block = H * sum.element_size();
        const char* from = row_pointer(sum, 0);
        char* to = mutable_row_pointer(ih, 0);
        std::memcpy(to, from + block, 2 * block);
        std::memcpy(to + 2 * block, from, block);
        std::memcpy(mutable_row_pointer(hh, 0), from + block, 3 * block);
        set(2, ih);
        set(3, hh);
      } else {
        set(2, sum);
        set(3, sum.clone());
      }
    }
    if (s.proj_size && needed(d, per_direction - 1)) {
      const Tensor saved = in.reserve[d].narrow(0, 0, N);
      const Tensor h =
          saved.narrow(1, 4 * H, H).tanh().mul_(saved.narrow(1, 3 * H, H)).to(numbers.rows);
      const Tensor dw = at::empty({S, H}, options);
      GemmShape product;  // dW_hr = dproj^T h
      product.transpose_a = true;
      product.m = S, product.n = H, product.k = N;
      product.lda = S, product.ldb = H, product.ldc = H;
      multiply(product, row_pointer(dproj, d), h.const_data_ptr(), dw.data_ptr());
      set(per_direction - 1, dw);
    }
  }
  return out;
}

}  // namespace birnn
