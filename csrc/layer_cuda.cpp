// A layer on a GPU. Each direction has a stream on which everything it needs runs in turn:
//
//   forward    projection of its input (GEMM), recurrence
//   backward   recurrence, gradients of its own weights (GEMMs)
//
// and what needs both directions, dx, follows after they have joined. The projections are a GEMM
// for each direction rather than one for both: so each is written where its recurrence updates it
// in place (output, reserve or a buffer), weight_ih is read where it lies, and neither direction
// waits for the other's.
//
// The kernels walk padded rows, row t * B + b; a packed batch is padded on the way in and packed on
// the way out. Nothing here waits for the device: lengths stay there, and where they are on the
// host they are copied from pinned memory. All tensors that outlive a stream's section are
// allocated on the caller's stream before the fork.
#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/core/GradMode.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <sstream>

#include "cuda/recurrence_cuda.h"
#include "cuda/streams.h"
#include "gemm_cuda.h"
#include "layer.h"

namespace birnn {
namespace {

// ---- errors

const char* name_of(Cell cell) {
  switch (cell) {
    case Cell::kTanh:
      return "tanh";
    case Cell::kRelu:
      return "relu";
    case Cell::kGru:
      return "gru";
    case Cell::kLstm:
      break;
  }
  return "lstm";
}

// Raises for the error code of a launch or a product. An earlier kernel's failure may be what it
// reports: a device tells of those late.
void check(int code, const char* what, const Problem& p) {
  if (code == 0) return;
  cudaGetLastError();  // a failed launch must not be found again by whoever looks next
  const RecurrenceShape& s = p.shape;
  std::ostringstream shape;
  shape << "cell " << name_of(s.cell) << ", " << p.input.scalar_type() << ", " << s.seq_len
        << " steps, batch " << s.batch_size << ", input " << p.input_size << ", hidden "
        << s.hidden_size;
  if (s.proj_size) shape << ", projected " << s.proj_size;
  TORCH_CHECK(false, "birnn_cuda: ", what, " failed: ", cuda::error_text(code), " (code ", code,
              "); ", shape.str(), ", on ", p.input.device(),
              ". If an earlier kernel may be the cause, run with CUDA_LAUNCH_BLOCKING=1");
}

void check_device(const at::Device& device) {
  const cudaDeviceProp* const properties = at::cuda::getDeviceProperties(device.index());
  TORCH_CHECK(properties->major >= 8,
              "birnn_cuda: a GPU of compute capability 8.0 or newer is "
              "needed, ",
              device, " (", properties->name, ") has ", properties->major, ".", properties->minor);
}

// ---- rows

// The rows that the kernels walk, step t of sequence b at t * B + b.
struct Rows {
  Tensor lengths;  // int64 [B] on the device; undefined: all T
  Tensor
      padded_rows;  // int64 [N] on the device: the row of each row of a packed batch; or undefined

  const int64_t* length_pointer() const {
    return lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr;
  }
};

// Lets the device read integers of the host without anyone waiting. Not in a CUDA graph: its
// replays would read the host's memory anew.
Tensor copy_to_device(const Tensor& host, const Problem& p, const char* what) {
  TORCH_CHECK(c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None,
              "birnn_cuda: ", what,
              " cannot be captured in a CUDA graph, whose replays would not see "
              "them: give lengths= as a tensor on ",
              p.input.device());
  const Tensor pinned =
      at::empty(host.sizes(), at::TensorOptions().dtype(at::kLong).pinned_memory(true));
  pinned.copy_(host);
  return pinned.to(p.input.device(), /*non_blocking=*/true);
}

Rows rows_of_packed(const Problem& p) {
  const int64_t T = p.shape.seq_len, B = p.shape.batch_size, N = p.num_rows;
  if (N == T * B) return {};
  const int64_t* size = p.batch_sizes->const_data_ptr<int64_t>();
  const Tensor host = at::empty({B + N}, at::kLong);
  int64_t* length = host.data_ptr<int64_t>();
  int64_t* row = length + B;
  for (int64_t t = T - 1, b = 0; t >= 0; --t)
    for (; b < size[t]; ++b) length[b] = t + 1;
  for (int64_t t = 0; t < T; ++t)
    for (int64_t b = 0; b < size[t]; ++b) *row++ = t * B + b;
  const Tensor device = copy_to_device(host, p, "the batch_sizes of a PackedSequence");
  return {device.narrow(0, 0, B), device.narrow(0, B, N)};
}

Rows rows_of(const Problem& p) {
  if (p.is_packed()) return rows_of_packed(p);
  if (!p.lengths) return {};
  if (p.lengths->is_cpu()) {
    check_length_values(*p.lengths, p.shape.seq_len);
    return {copy_to_device(*p.lengths, p, "lengths on the CPU"), {}};
  }
  TORCH_CHECK(p.lengths->device() == p.input.device(), "birnn_cuda: expected lengths on ",
              p.input.device(), " like the input, or on the CPU, got ", p.lengths->device());
  return {p.lengths->to(at::kLong).contiguous(), {}};
}

// A tensor [T, B, C] or packed [N, C] as padded rows [T*B, C] with unit stride in the last
// dimension: a view where the memory allows it. Padding that was not there before is zero.
Tensor take_rows(const Tensor& t, const Rows& rows, const Problem& p) {
  const int64_t C = t.size(-1);
  if (rows.padded_rows.defined())
    return at::zeros({p.shape.seq_len * p.shape.batch_size, C}, t.options())
        .index_copy_(0, rows.padded_rows, t);
  const bool mergeable = t.dim() == 3 && t.stride(2) == 1 && t.stride(1) >= C &&
                         t.stride(0) == t.size(1) * t.stride(1);
  const Tensor flat =
      mergeable ? t.as_strided({t.size(0) * t.size(1), C}, {t.stride(1), 1}) : t.reshape({-1, C});
  const bool usable = (C == 1 || flat.stride(1) == 1) && flat.stride(0) >= C;
  return usable ? flat : flat.contiguous();
}

// The way back.
Tensor give_rows(const Tensor& flat, const Rows& rows, at::IntArrayRef sizes) {
  if (rows.padded_rows.defined()) return flat.index_select(0, rows.padded_rows);
  return flat.view(sizes);
}

// [T, B, 1]: whether a step lies past its sequence's end.
Tensor padding_mask(const Rows& rows, const Problem& p) {
  const Tensor steps = at::arange(p.shape.seq_len, rows.lengths.options());
  return steps.view({-1, 1, 1}).ge(rows.lengths.view({1, -1, 1}));
}

// x with zeros past the ends: a product over all rows must not meet what lies there.
Tensor take_masked_rows(const Tensor& t, const Rows& rows, const Problem& p) {
  if (!rows.lengths.defined() || rows.padded_rows.defined()) return take_rows(t, rows, p);
  return take_rows(t.masked_fill(padding_mask(rows, p), 0), rows, p);
}

// ---- operands

at::ScalarType carried_type(const Tensor& t) { return at::toOpMathType(t.scalar_type()); }

std::vector<Tensor> contiguous_weights(const Problem& p) {
  std::vector<Tensor> weights;
  for (const Tensor& w : p.weights) weights.push_back(w.contiguous());
  return weights;
}

Tensor contiguous(const OptionalTensor& t) { return t ? t->contiguous() : Tensor(); }

// A state's gradient in memory of its own, in the type that carries it.
Tensor carried_copy(const OptionalTensor& t, at::IntArrayRef sizes,
                    const at::TensorOptions& options) {
  return t ? at::empty(sizes, options).copy_(*t) : at::zeros(sizes, options);
}

const void* pointer(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

const char* row_pointer(const Tensor& t, int64_t row, int64_t column = 0) {
  return static_cast<const char*>(t.const_data_ptr()) +
         (row * t.stride(0) + column) * t.element_size();
}

char* mutable_row_pointer(const Tensor& t, int64_t row, int64_t column = 0) {
  return static_cast<char*>(t.data_ptr()) + (row * t.stride(0) + column) * t.element_size();
}

// A state [D, ...] of one direction, or null.
const char* state_pointer(const Tensor& t, int d) {
  return t.defined() ? row_pointer(t, d) : nullptr;
}

// A workspace for each direction, aligned.
Tensor workspaces(const Problem& p, int64_t bytes) {
  const int64_t aligned = (bytes + 255) / 256 * 256;
  return at::empty({p.num_directions, aligned}, p.input.options().dtype(at::kByte));
}

// ---- streams

// One stream, and the library on it.
struct Queue {
  const Problem& problem;
  void* stream;
  void* blas;

  GemmCompute compute() const { return problem.ieee ? GemmCompute::kIeee : GemmCompute::kTf32; }
  cuda::StepGemm step_gemm() const { return {cuda::gemm, blas, compute()}; }
  void multiply(const GemmShape& product, const void* a, const void* b, void* c) const {
    check(cuda::gemm(blas, stream, product, a, b, c, problem.shape.element, compute()),
          "a matrix product", problem);
  }
};

// The queue of torch's current stream. Torch keeps one handle for each thread and device and binds
// it to the current stream: a queue is good until another is made.
Queue current_queue(const Problem& p) {
  return {p, at::cuda::getCurrentCUDAStream().stream(), at::cuda::getCurrentCUDABlasHandle()};
}

// Calls run(d, queue) for each direction, the second one's on the side stream, which is torch's
// current stream meanwhile.
template <class Run>
void for_each_direction(const Problem& p, const Run& run) {
  if (p.num_directions == 1) return run(0, current_queue(p));
  const auto device = p.input.device().index();
  cuda::DirectionStreams streams;
  check(streams.fork(device, at::cuda::getCurrentCUDAStream().stream()),
        "the fork of the directions' streams", p);
  run(0, current_queue(p));
  {
    const c10::cuda::CUDAStreamGuard on_side(
        c10::cuda::getStreamFromExternal(static_cast<cudaStream_t>(streams.side()), device));
    run(1, current_queue(p));
  }
  check(streams.join(), "the join of the directions' streams", p);
}

}  // namespace

ForwardResult forward_cuda(const Problem& given, bool training) {
  const c10::cuda::CUDAGuard on_device(given.input.device());
  const at::NoGradGuard no_grad;
  check_device(given.input.device());
  Problem p = given;
  p.weights = contiguous_weights(given);
  const Rows rows = rows_of(p);
  const RecurrenceShape& s = p.shape;
  const int64_t D = p.num_directions, T = s.seq_len, B = s.batch_size, H = s.hidden_size;
  const int64_t S = s.state_size(), I = p.input_size, G = num_gates(s.cell), N = T * B;
  const auto options = p.input.options();
  const bool lstm = s.cell == Cell::kLstm;

  const Tensor x = take_rows(p.input, rows, p);
  const Tensor hx = contiguous(p.hx), cx = contiguous(p.cx);
  const Tensor output = at::empty({N, D * S}, options);
  const Tensor hy = at::empty({D, B, S}, options);
  const Tensor cy = lstm ? at::empty({D, B, H}, options.dtype(carried_type(p.input))) : Tensor();
  const Tensor reserve = at::empty(
      training ? std::vector<int64_t>{D, N, reserve_blocks(s.cell) * H} : std::vector<int64_t>{0},
      options);
  // [D, N, G*H or more]: where the projections go, and what becomes of them.
  Tensor gates;
  if (G == 1)
    gates = output.view({N, D, S}).transpose(0, 1);
  else
    gates = training ? reserve : at::empty({D, N, G * H}, options);
  std::vector<Tensor> biases;
  for (int d = 0; d < D; ++d) biases.push_back(combined_bias(p, d));
  const Tensor workspace = workspaces(p, cuda::stepwise_forward_workspace(s));

  for_each_direction(p, [&](int d, const Queue& queue) {
    ForwardDirection dir;
    dir.reverse = d == 1;
    dir.weight_hh = p.weight_hh(d).const_data_ptr();
    dir.weight_hr = s.proj_size ? p.weight_hr(d).const_data_ptr() : nullptr;
    dir.bias = pointer(biases[d]);
    dir.hx = state_pointer(hx, d);
    dir.cx = state_pointer(cx, d);
    dir.gates = mutable_row_pointer(gates, d);
    dir.gates_stride = gates.stride(1);
    dir.output = mutable_row_pointer(output, 0, d * S);
    dir.output_stride = D * S;
    dir.hy = mutable_row_pointer(hy, d);
    dir.cy = lstm ? mutable_row_pointer(cy, d) : nullptr;

    GemmShape product;  // x W_ih^T
    product.transpose_b = true;
    product.m = N, product.n = G * H, product.k = I;
    product.lda = x.stride(0), product.ldb = I, product.ldc = dir.gates_stride;
    queue.multiply(product, x.const_data_ptr(), p.weight_ih(d).const_data_ptr(), dir.gates);
    check(cuda::stepwise_forward(s, rows.length_pointer(), dir, training, queue.step_gemm(),
                                 mutable_row_pointer(workspace, d), queue.stream),
          "stepwise_forward", p);
  });

  std::vector<int64_t> sizes = p.input.sizes().vec();
  sizes.back() = D * S;
  return {give_rows(output, rows, sizes), hy,
          lstm ? cy.to(p.input.scalar_type()) : at::empty({0}, options), reserve};
}

namespace {

// What one direction's recurrence leaves for its weight gradients, and where these go. Gradients
// that nobody asked for are undefined.
struct WeightGradients {
  Tensor weight_ih, weight_hh, bias_ih, bias_hh, weight_hr;
  Tensor wide_weight_hh;  // fp32, where weight_hh is a 16-bit sum of two products
};

// The rows of all weight_ih [.., I] in the order of the columns of dgates [N, D * dgates_blocks *
// H], up to the last column that belongs to one: dx is a single product. A GRU's n of the recurrent
// side, between its directions, meets zeros.
Tensor stacked_input_weights(const Problem& p) {
  const int64_t H = p.shape.hidden_size;
  if (p.shape.cell != Cell::kGru)
    return p.num_directions == 1 ? p.weight_ih(0) : at::cat({p.weight_ih(0), p.weight_ih(1)});
  std::vector<Tensor> parts;
  for (int d = 0; d < p.num_directions; ++d) {
    if (d > 0) parts.push_back(at::zeros({H, p.input_size}, p.input.options()));
    parts.push_back(p.weight_ih(d).narrow(0, 2 * H, H));
    parts.push_back(p.weight_ih(d).narrow(0, 0, 2 * H));
  }
  return at::cat(parts);
}

}  // namespace

BackwardResult backward_cuda(const Problem& given, const BackwardInputs& in) {
  const c10::cuda::CUDAGuard on_device(given.input.device());
  const at::NoGradGuard no_grad;
  check_device(given.input.device());
  Problem p = given;
  p.weights = contiguous_weights(given);
  const Rows rows = rows_of(p);
  const RecurrenceShape& s = p.shape;
  const int64_t D = p.num_directions, T = s.seq_len, B = s.batch_size, H = s.hidden_size;
  const int64_t S = s.state_size(), I = p.input_size, G = num_gates(s.cell), N = T * B;
  const auto options = p.input.options();
  const auto carried = options.dtype(carried_type(p.input));
  const bool lstm = s.cell == Cell::kLstm, gru = s.cell == Cell::kGru;
  const bool sixteen_bit = carried.dtype() != options.dtype();
  const auto weight_needed = [&](int d, int i) {
    return in.needs_grad[3 + d * p.weights_per_direction + i];
  };

  const Tensor output = take_rows(in.output, rows, p);
  const Tensor reserve = in.reserve.contiguous();
  const Tensor dy = in.d_output ? take_rows(*in.d_output, rows, p) : Tensor();
  const Tensor dc = in.d_cell_states ? take_rows(*in.d_cell_states, rows, p) : Tensor();
  const Tensor hx = contiguous(p.hx), cx = contiguous(p.cx);
  const Tensor dhx = carried_copy(in.d_h_n, {D, B, S}, carried);
  const Tensor dcx = lstm ? carried_copy(in.d_c_n, {D, B, H}, carried) : Tensor();
  const int64_t width = dgates_blocks(s.cell) * H;
  const Tensor dgates = at::empty({N, D * width}, options);
  const Tensor dproj = s.proj_size ? at::empty({D, N, S}, options) : Tensor();
  const Tensor workspace = workspaces(p, cuda::stepwise_backward_workspace(s));

  // The gradients of the weights, and what they are made of besides.
  const int last_weight = p.weights_per_direction - 1;
  std::vector<WeightGradients> gradients(D);
  bool any_weight_ih = false, any_weight_hh = false, any_weight_hr = false;
  for (int d = 0; d < D; ++d) {
    WeightGradients& g = gradients[d];
    if (weight_needed(d, 0)) g.weight_ih = at::empty({G * H, I}, options);
    if (weight_needed(d, 1)) {
      g.weight_hh = at::empty({G * H, S}, options);
      if (sixteen_bit && hx.defined()) g.wide_weight_hh = at::empty({G * H, S}, carried);
    }
    if (p.has_bias && weight_needed(d, 2)) g.bias_ih = at::empty({G * H}, options);
    if (p.has_bias && weight_needed(d, 3)) g.bias_hh = at::empty({G * H}, options);
    if (s.proj_size && weight_needed(d, last_weight)) g.weight_hr = at::empty({S, H}, options);
    any_weight_ih |= g.weight_ih.defined();
    any_weight_hh |= g.weight_hh.defined();
    any_weight_hr |= g.weight_hr.defined();
  }
  const Tensor x = any_weight_ih ? take_masked_rows(p.input, rows, p) : Tensor();
  Tensor first_dgates, started_hx;  // [D, B, width], [D, B, S]: of the sequences that have a step
  if (any_weight_hh && hx.defined() && rows.lengths.defined()) {
    first_dgates = at::empty({D, B, width}, options);
    started_hx = hx.masked_fill(rows.lengths.view({1, B, 1}).le(0), 0);
  }
  const Tensor padding =
      any_weight_hr && rows.lengths.defined() ? padding_mask(rows, p).view({N, 1}) : Tensor();

  for_each_direction(p, [&](int d, const Queue& queue) {
    BackwardDirection dir;
    dir.reverse = d == 1;
    dir.weight_hh = p.weight_hh(d).const_data_ptr();
    dir.weight_hr = s.proj_size ? p.weight_hr(d).const_data_ptr() : nullptr;
    dir.hx = state_pointer(hx, d);
    dir.cx = state_pointer(cx, d);
    dir.output = row_pointer(output, 0, d * S);
    dir.output_stride = output.stride(0);
    dir.reserve = row_pointer(reserve, d);
    dir.reserve_stride = reserve.size(2);
    dir.dy = dy.defined() ? row_pointer(dy, 0, d * S) : nullptr;
    dir.dy_stride = dy.defined() ? dy.stride(0) : 0;
    dir.dc = dc.defined() ? row_pointer(dc, 0, d * H) : nullptr;
    dir.dc_stride = dc.defined() ? dc.stride(0) : 0;
    dir.dgates = mutable_row_pointer(dgates, 0, d * width);
    dir.dgates_stride = dgates.stride(0);
    dir.dproj = s.proj_size ? mutable_row_pointer(dproj, d) : nullptr;
    dir.dhx = mutable_row_pointer(dhx, d);
    dir.dcx = lstm ? mutable_row_pointer(dcx, d) : nullptr;
    void* const first = first_dgates.defined() ? mutable_row_pointer(first_dgates, d) : nullptr;
    check(cuda::stepwise_backward(s, rows.length_pointer(), dir, first, queue.step_gemm(),
                                  mutable_row_pointer(workspace, d), queue.stream),
          "stepwise_backward", p);

    const WeightGradients& g = gradients[d];
    if (g.weight_ih.defined()) {
      for (const InputGateBlocks& block : input_gate_blocks(s.cell)) {
        GemmShape product;  // dW_ih = dgates^T x
        product.transpose_a = true;
        product.m = block.count * H, product.n = I, product.k = N;
        product.lda = dgates.stride(0), product.ldb = x.stride(0), product.ldc = I;
        queue.multiply(product, row_pointer(dgates, 0, d * width + block.column * H),
                       x.const_data_ptr(), mutable_row_pointer(g.weight_ih, block.row * H));
      }
    }
    // The blocks that belong to weight_hh: the last G * H columns.
    const int64_t recurrent = (d + 1) * width - G * H;
    if (g.weight_hh.defined()) {
      // A row continues the row one step, B rows, away: where a sequence starts inside the batch
      // (the reverse direction, shorter lengths) that is a zero past its end. The first rows of all
      // continue hx.
      const bool reverse = d == 1, wide = g.wide_weight_hh.defined();
      const Tensor& sum = wide ? g.wide_weight_hh : g.weight_hh;
      GemmShape product;  // dW_hh = dgates^T (the states that the rows continue)
      product.transpose_a = true;
      product.m = G * H, product.n = S, product.k = (T - 1) * B;
      product.lda = dgates.stride(0), product.ldb = output.stride(0), product.ldc = S;
      product.float_output = wide;
      queue.multiply(product, row_pointer(dgates, reverse ? 0 : B, recurrent),
                     row_pointer(output, reverse ? B : 0, d * S), sum.data_ptr());
      if (hx.defined()) {
        product.k = B, product.ldb = S, product.beta = 1.0f;
        if (first) {
          product.lda = width;
          queue.multiply(product, row_pointer(first_dgates[d], 0, width - G * H),
                         row_pointer(started_hx, d), sum.data_ptr());
        } else {
          queue.multiply(product, row_pointer(dgates, reverse ? (T - 1) * B : 0, recurrent),
                         row_pointer(hx, d), sum.data_ptr());
        }
      }
      if (wide) g.weight_hh.copy_(sum);
    }
    const auto sum_into = [&](Tensor to, int64_t column) {
      at::sum_out(to, dgates.narrow(1, column, to.size(0)), {0});
    };
    if (g.bias_hh.defined()) sum_into(g.bias_hh, recurrent);
    if (g.bias_ih.defined()) {
      if (gru)
        for (const InputGateBlocks& block : input_gate_blocks(s.cell))
          sum_into(g.bias_ih.narrow(0, block.row * H, block.count * H),
                   d * width + block.column * H);
      else if (g.bias_hh.defined())
        g.bias_ih.copy_(g.bias_hh);
      else
        sum_into(g.bias_ih, recurrent);
    }
    if (g.weight_hr.defined()) {
      Tensor h = reserve[d].narrow(1, 4 * H, H).tanh().mul_(reserve[d].narrow(1, 3 * H, H));
      if (padding.defined()) h.masked_fill_(padding, 0);
      GemmShape product;  // dW_hr = dproj^T h
      product.transpose_a = true;
      product.m = S, product.n = H, product.k = N;
      product.lda = S, product.ldb = H, product.ldc = H;
      queue.multiply(product, row_pointer(dproj, d), h.const_data_ptr(), g.weight_hr.data_ptr());
    }
  });

  BackwardResult out;
  const at::ScalarType type = p.input.scalar_type();
  const auto none = [&] { return at::empty({0}, options); };  // results must not share memory
  out.d_hx = in.needs_grad[1] && p.hx ? dhx.to(type) : none();
  out.d_cx = in.needs_grad[2] && p.cx ? dcx.to(type) : none();
  if (in.needs_grad[0]) {
    const Tensor weights = stacked_input_weights(p);
    const Tensor dx = at::empty({N, I}, options);
    GemmShape product;  // dx = dgates W_ih
    product.m = N, product.n = I, product.k = weights.size(0);
    product.lda = dgates.stride(0), product.ldb = I, product.ldc = I;
    current_queue(p).multiply(product, dgates.const_data_ptr(), weights.const_data_ptr(),
                              dx.data_ptr());
    out.d_input = give_rows(dx, rows, p.input.sizes());
  } else {
    out.d_input = none();
  }
  for (const WeightGradients& g : gradients) {
    const auto add = [&](const Tensor& t) { out.d_weights.push_back(t.defined() ? t : none()); };
    add(g.weight_ih);
    add(g.weight_hh);
    if (p.has_bias) add(g.bias_ih), add(g.bias_hh);
    if (s.proj_size) add(g.weight_hr);
  }
  return out;
}

}  // namespace birnn
