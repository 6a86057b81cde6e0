// The backward pass of a layer on the CPU: runs the recurrence in chunks of steps, and leaves the
// gradients of input and weights to large products (gemm_cpu.h).
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "cpu/gemm_cpu.h"
#include "cpu/kept_memory.h"
#include "layer/cpu/operands.h"
#include "layer/profile.h"

namespace birnn {

using namespace cpu;

namespace {

// Products on rows of `element` type; what they add up is float or double.
struct Products {
  Element element;

  void operator()(GemmShape shape, const void* a, const void* b, void* c,
                  bool float_output = true) const {
    shape.float_output = float_output;
    cpu::gemm(nullptr, nullptr, shape, a, b, c, element, GemmCompute::kIeee);
  }
};

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
  const Numbers numbers(given.input.scalar_type(), given.shape);
  const ProfiledCall call(given, "backward", numbers.instruction_set);
  const at::AutoDispatchBelowADInplaceOrView no_tracking;
  const Rows rows = rows_of(given);
  Problem p = given;
  p.weights = weights_for(given, numbers, true);
  const RegulariserOperands regularisers(p, rows, numbers.sums);
  const cpu::Layer layer = cpu_layer(p, rows, regularisers, numbers.kernels);
  const RecurrenceShape& s = layer.shape;
  const int64_t D = p.num_directions, T = s.seq_len, B = s.batch_size, H = s.hidden_size;
  const int64_t S = s.state_size(), I = p.input_size, G = num_gates(s.cell), N = rows.num_rows;
  const at::ScalarType type = p.input.scalar_type();
  const auto options = p.input.options().dtype(numbers.sums);
  const auto row_options = options.dtype(numbers.rows);
  const bool lstm = is_lstm(s.cell);
  const Products multiply{s.element};

  BackwardTensors tensors;
  tensors.output = take_rows(in.output, rows, numbers.rows);
  tensors.reserve = in.reserve;
  if (in.d_output) tensors.dy = take_rows(*in.d_output, rows, numbers.rows);
  if (in.d_cell_states) tensors.dc = take_rows(*in.d_cell_states, rows, numbers.rows);
  if (p.hx) tensors.hx = read_state(*p.hx, rows, numbers.rows);
  if (p.cx) tensors.cx = read_state(*p.cx, rows, numbers.sums);
  tensors.dhx = take_state(in.d_h_n, rows, {D, B, S}, options);
  if (lstm) tensors.dcx = take_state(in.d_c_n, rows, {D, B, H}, options);
  const Tensor &output = tensors.output, &hx = tensors.hx;
  // Rows whose distance is a large power of two share few sets of a cache: a product of twelve of
  // them loses lines before it has read them (1.05 times as fast where they do not, AVX-512).
  constexpr int64_t kSharesSets = 1024, kLine = 64;
  const int64_t number = row_options.dtype().itemsize(), dgates_width = dgates_blocks(s.cell) * H;
  const int64_t dgates_stride =
      dgates_width + (dgates_width * number % kSharesSets == 0 ? kLine / number : 0);
  const int64_t chunk = steps_per_chunk(layer, dgates_width * number);
  const Tensor dgates = cpu::empty_large({D, std::min(chunk * B, N), dgates_stride}, row_options);
  if (s.proj_size) tensors.dproj = cpu::empty_large({D, N, S}, row_options);

  std::vector<BackwardDirection> directions(D);
  for (int d = 0; d < D; ++d) {
    BackwardDirection& dir = directions[d];
    dir = backward_direction(p, tensors, d);
    dir.dgates = mutable_row_pointer(dgates, d);
    dir.dgates_stride = dgates_stride;
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
  // Where the reset gate comes before the product, the rows of n have a product of their own, with
  // r * h: the reserve's last block.
  const bool resets_before = s.cell == Cell::kGruResetBefore;
  const int64_t state_rows = (resets_before ? 2 : G) * H;
  std::vector<Tensor> whole_dw_hh(D);
  std::vector<GradientSum> dw_ih(D), dw_hh(D), dw_hn(D), dbias(D), dw_ch(D);
  // What a single product writes is rounded by it, and needs no sum in float.
  const bool one_product = chunk >= T && !tensors.hx.defined() && numbers.rows == type;
  const auto dw_options = options.dtype(one_product ? type : numbers.sums);
  for (int d = 0; d < D; ++d) {
    if (needed(d, 0)) dw_ih[d].sum = cpu::empty_large({G * H, I}, dw_options);
    if (needed(d, 1)) {
      whole_dw_hh[d] = cpu::empty_large({G * H, S}, dw_options);
      dw_hh[d].sum = resets_before ? whole_dw_hh[d].narrow(0, 0, state_rows) : whole_dw_hh[d];
      if (resets_before) dw_hn[d].sum = whole_dw_hh[d].narrow(0, state_rows, H);
    }
    if (p.has_peepholes() && needed(d, per_direction - 1))
      dw_ch[d].sum = at::empty({3 * H}, options);
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
    product.lda = dgates_stride;
    if (dw_ih[d].sum.defined()) {
      product.beta = dw_ih[d].next_beta();
      for (const InputGateBlocks& block : blocks) {  // dW_ih += dgates^T x
        product.m = block.count * H, product.n = I, product.k = count;
        product.ldb = x.stride(0), product.ldc = I;
        multiply(product, direction_row_pointer(dgates, d, 0, block.column * H),
                 row_pointer(x, first), mutable_row_pointer(dw_ih[d].sum, block.row * H),
                 !one_product);
      }
    }
    if (dw_hh[d].sum.defined()) {  // dW_hh += dgates^T (the states that the rows continue)
      product.m = state_rows, product.n = S, product.ldc = S;
      const auto add = [&](int64_t row, int64_t row_count, const void* states, int64_t stride) {
        product.k = row_count, product.ldb = stride, product.beta = dw_hh[d].next_beta();
        multiply(product, direction_row_pointer(dgates, d, row - first, recurrent_column), states,
                 dw_hh[d].sum.data_ptr(), !one_product);
      };
      if (rows.lengths.defined() || rows.resets.defined() || s.recurrent_dropout) {
        const Tensor states = previous_states(p, rows, output.narrow(1, d * S, S), hx,
                                              regularisers.recurrent_mask, d, t_begin, t_end);
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
    if (dw_hn[d].sum.defined()) {
      product.m = H, product.n = H, product.k = count, product.ldc = H;
      product.ldb = tensors.reserve.stride(1), product.beta = dw_hn[d].next_beta();
      multiply(product, direction_row_pointer(dgates, d, 0, state_rows),
               direction_row_pointer(tensors.reserve, d, first, 3 * H), dw_hn[d].sum.data_ptr(),
               !one_product);
    }
    if (dw_ch[d].sum.defined()) {
      const auto gate = [&](int64_t g) {
        return dgates[d].narrow(0, 0, count).narrow(1, g * H, H);
      };
      const Tensor kept = tensors.reserve[d].narrow(0, 0, N);
      const Tensor c_before =
          previous_states(p, rows, kept.narrow(1, 4 * H, H), tensors.cx, {}, d, t_begin, t_end);
      const Tensor c_new = kept.narrow(0, first, count).narrow(1, output_c_block(s) * H, H);
      const Tensor sum = at::cat(
          {gate(0).mul(c_before).sum(0), gate(1).mul(c_before).sum(0), gate(3).mul(c_new).sum(0)});
      if (dw_ch[d].next_beta() == 0.0f)
        dw_ch[d].sum.copy_(sum);
      else
        dw_ch[d].sum.add_(sum);
    }
    if (Tensor& sum = dbias[d].sum; sum.defined()) {
      const Tensor counted = dgates[d].narrow(0, 0, count).narrow(1, 0, dgates_width);
      if (dbias[d].next_beta() == 0.0f)
        at::sum_out(sum, counted, {0}, false, numbers.sums);
      else
        sum.add_(counted.sum({0}, false, numbers.sums));
    }
  };

  const Tensor workspace =
      cpu::empty_large({cpu::backward_workspace_bytes(layer)}, options.dtype(at::kByte));
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
          product.lda = dgates_stride, product.ldb = I, product.ldc = I;
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
  out.d_hx = in.needs_grad[1] && p.hx ? give_state(tensors.dhx, rows, type) : none();
  out.d_cx = in.needs_grad[2] && p.cx ? give_state(tensors.dcx, rows, type) : none();
  for (size_t i = 0; i < p.weights.size(); ++i) out.d_weights.push_back(none());
  for (int d = 0; d < D; ++d) {
    for (GradientSum* g : {&dw_ih[d], &dw_hh[d], &dw_hn[d], &dbias[d], &dw_ch[d]})
      if (g->sum.defined() && !g->started) g->sum.zero_();
    const auto set = [&](int i, const Tensor& t) {
      if (needed(d, i)) out.d_weights[d * per_direction + i] = as_type(t, type);
    };
    set(0, dw_ih[d].sum);
    set(1, whole_dw_hh[d]);
    if (p.has_peepholes()) set(per_direction - 1, dw_ch[d].sum);
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
      const Tensor h = saved.narrow(1, output_c_block(s) * H, H)
                           .tanh()
                           .mul_(saved.narrow(1, 3 * H, H))
                           .to(numbers.rows);
      const Tensor dw = at::empty({S, H}, options);
      GemmShape product;  // dW_hr = dproj^T h
      product.transpose_a = true;
      product.m = S, product.n = H, product.k = N;
      product.lda = S, product.ldb = H, product.ldc = H;
      multiply(product, row_pointer(tensors.dproj, d), h.const_data_ptr(), dw.data_ptr());
      set(per_direction - 1, dw);
    }
  }
  return out;
}

}  // namespace birnn
