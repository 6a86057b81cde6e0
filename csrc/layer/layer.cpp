#include "layer/layer.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <sstream>

#include "layer/profile.h"

namespace birnn {
namespace {

Cell parse_cell(const std::string& name) {
  if (name == "tanh") return Cell::kTanh;
  if (name == "relu") return Cell::kRelu;
  if (name == "gru") return Cell::kGru;
  if (name == "lstm") return Cell::kLstm;
  if (name == "gru_reset_before") return Cell::kGruResetBefore;
  if (name == "lstm_peepholes") return Cell::kLstmPeepholes;
  TORCH_CHECK(false,
              "birnn_cuda: cell must be 'tanh', 'relu', 'gru', 'lstm', 'gru_reset_before' or "
              "'lstm_peepholes', got '",
              name, "'");
}

Element parse_element(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Element::kFloat32;
    case at::kDouble:
      return Element::kFloat64;
    case at::kHalf:
      return Element::kFloat16;
    case at::kBFloat16:
      return Element::kBFloat16;
    default:
      TORCH_CHECK(false, "birnn_cuda: dtype must be float32, float64, float16 or bfloat16, got ",
                  type);
  }
}

void check_sizes(const Tensor& t, const char* name, at::IntArrayRef sizes) {
  TORCH_CHECK(t.sizes() == sizes, "birnn_cuda: expected ", name, " of size ", sizes, ", got ",
              t.sizes());
}

void check_like_input(const Tensor& t, const Tensor& input, const char* name,
                      at::IntArrayRef sizes) {
  check_sizes(t, name, sizes);
  TORCH_CHECK(t.scalar_type() == input.scalar_type(), "birnn_cuda: expected ", name, " of dtype ",
              input.scalar_type(), " like the input, got ", t.scalar_type());
  TORCH_CHECK(t.device() == input.device(), "birnn_cuda: expected ", name, " on ", input.device(),
              " like the input, got ", t.device());
}

void check_regularisers(const RegulariserTensors& given, const Problem& p,
                        const std::string& cell) {
  const int64_t D = p.num_directions, S = p.shape.state_size();
  if (given.recurrent_mask)
    check_like_input(*given.recurrent_mask, p.input, "recurrent_mask", {D, p.shape.batch_size, S});
  const auto check_shares = [&](const OptionalTensor& shares, const char* name, int64_t columns) {
    if (!shares) return;
    std::vector<int64_t> sizes = p.input.sizes().vec();
    if (shares->dim() == p.input.dim() && is_one_row(*shares))
      std::fill(sizes.begin(), sizes.end(), 1);
    sizes.back() = columns;
    check_like_input(*shares, p.input, name, sizes);
  };
  check_shares(given.zoneout_h, "zoneout_h", D * S);
  TORCH_CHECK(!given.zoneout_c || is_lstm(p.shape.cell),
              "birnn_cuda: zoneout_c needs cell 'lstm', got '", cell, "'");
  check_shares(given.zoneout_c, "zoneout_c", D * p.shape.hidden_size);
}

Problem check_problem(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                      at::TensorList weights, const OptionalTensor& lengths,
                      const OptionalTensor& batch_sizes, const std::string& cell,
                      int64_t num_directions, const std::string& precision,
                      const OptionalTensor& resets, const RegulariserTensors& regularisers = {},
                      at::TensorList scales = {}) {
  Problem p;
  p.shape.cell = parse_cell(cell);
  p.shape.element = parse_element(input.scalar_type());
  TORCH_CHECK(num_directions == 1 || num_directions == 2,
              "birnn_cuda: num_directions must be 1 or 2, got ", num_directions);
  TORCH_CHECK(precision == "ieee" || precision == "tf32",
              "birnn_cuda: precision must be 'ieee' or 'tf32', got '", precision, "'");
  p.ieee = precision == "ieee";
  p.num_directions = static_cast<int>(num_directions);
  TORCH_CHECK(!weights.empty() && weights.size() % num_directions == 0,
              "birnn_cuda: expected 2 to 5 weights for each of ", num_directions,
              " directions, got ", weights.size(), " in all");
  p.weights_per_direction = static_cast<int>(weights.size() / num_directions);
  TORCH_CHECK(p.weights_per_direction >= 2 && p.weights_per_direction <= 5,
              "birnn_cuda: expected 2 to 5 weights for each direction, got ",
              p.weights_per_direction);
  p.has_bias = p.weights_per_direction >= 4;
  TORCH_CHECK(!p.has_peepholes() || p.weights_per_direction % 2 == 1,
              "birnn_cuda: cell 'lstm_peepholes' needs weight_ch as the last of 3 or 5 weights for "
              "each direction, got ",
              p.weights_per_direction);
  const bool projected = p.weights_per_direction % 2 == 1 && !p.has_peepholes();
  TORCH_CHECK(!projected || p.shape.cell == Cell::kLstm,
              "birnn_cuda: a projection (weight_hr) needs cell 'lstm', got '", cell, "'");

  p.input = input;
  p.weights = weights.vec();
  p.hx = hx;
  p.cx = is_lstm(p.shape.cell) ? cx : std::nullopt;
  p.lengths = lengths;
  p.batch_sizes = batch_sizes;
  if (batch_sizes) {
    TORCH_CHECK(!lengths, "birnn_cuda: give lengths or batch_sizes, not both");
    TORCH_CHECK(input.dim() == 2, "birnn_cuda: a packed input has 2 dimensions, got ", input.dim());
    TORCH_CHECK(batch_sizes->dim() == 1 && batch_sizes->scalar_type() == at::kLong &&
                    batch_sizes->device().is_cpu() && batch_sizes->size(0) > 0,
                "birnn_cuda: batch_sizes must be a non-empty int64 vector on the CPU, got ",
                batch_sizes->scalar_type(), " of size ", batch_sizes->sizes(), " on ",
                batch_sizes->device());
    const Tensor sizes = batch_sizes->contiguous();
    const int64_t* size = sizes.const_data_ptr<int64_t>();
    p.shape.seq_len = sizes.size(0);
    p.shape.batch_size = size[0];
    for (int64_t t = 0; t < p.shape.seq_len; ++t) {
      TORCH_CHECK(size[t] > 0 && (t == 0 || size[t] <= size[t - 1]),
                  "birnn_cuda: batch_sizes must be positive and never grow, got ", size[t],
                  " at step ", t);
      p.num_rows += size[t];
    }
    TORCH_CHECK(p.num_rows == input.size(0), "birnn_cuda: batch_sizes sum to ", p.num_rows,
                " but the packed input has ", input.size(0), " rows");
    p.batch_sizes = sizes;
  } else {
    TORCH_CHECK(input.dim() == 3, "birnn_cuda: a padded input has 3 dimensions, got ", input.dim());
    p.shape.seq_len = input.size(0);
    p.shape.batch_size = input.size(1);
    p.num_rows = p.shape.seq_len * p.shape.batch_size;
  }
  p.input_size = input.size(-1);

  TORCH_CHECK(p.weight_hh(0).dim() == 2, "birnn_cuda: weight_hh must have 2 dimensions, got ",
              p.weight_hh(0).dim());
  const int64_t gates = num_gates(p.shape.cell);
  TORCH_CHECK(p.weight_hh(0).size(0) % gates == 0 && p.weight_hh(0).size(0) > 0,
              "birnn_cuda: weight_hh of cell '", cell, "' must have a multiple of ", gates,
              " rows, got ", p.weight_hh(0).size(0));
  p.shape.hidden_size = p.weight_hh(0).size(0) / gates;
  p.shape.proj_size = projected ? p.weight_hr(0).size(0) : 0;
  const int64_t H = p.shape.hidden_size, S = p.shape.state_size(), D = p.num_directions;
  const int64_t B = p.shape.batch_size;
  p.scales = scales.vec();
  TORCH_CHECK(!p.is_quantized() || !runs_in_plain_numbers(p.shape.cell),
              "birnn_cuda: int8 weights need cell 'tanh', 'relu', 'gru' or 'lstm', got '", cell,
              "'");
  const auto check_matrix = [&](int d, int index, const Tensor& t, const char* name, int64_t rows,
                                int64_t columns) {
    if (!p.is_quantized()) return check_like_input(t, input, name, {rows, columns});
    check_sizes(t, name, {rows, columns});
    TORCH_CHECK(t.scalar_type() == at::kChar && t.device() == input.device(),
                "birnn_cuda: expected ", name, " of dtype int8 on ", input.device(), ", got ",
                t.scalar_type(), " on ", t.device());
    const Tensor& scale = p.scales[d * (projected ? 3 : 2) + index];
    check_like_input(scale, input, (std::string("the scale of ") + name).c_str(), {rows});
  };
  TORCH_CHECK(!p.is_quantized() || p.scales.size() == static_cast<size_t>(D * (projected ? 3 : 2)),
              "birnn_cuda: expected ", D * (projected ? 3 : 2), " scales, got ", p.scales.size());
  for (int d = 0; d < D; ++d) {
    check_matrix(d, 0, p.weight_ih(d), "weight_ih", gates * H, p.input_size);
    check_matrix(d, 1, p.weight_hh(d), "weight_hh", gates * H, S);
    if (p.has_bias) {
      check_like_input(p.bias_ih(d), input, "bias_ih", {gates * H});
      check_like_input(p.bias_hh(d), input, "bias_hh", {gates * H});
    }
    if (projected) check_matrix(d, 2, p.weight_hr(d), "weight_hr", S, H);
    if (p.has_peepholes()) check_like_input(p.weight_ch(d), input, "weight_ch", {3 * H});
  }
  if (p.hx) check_like_input(*p.hx, input, "hx", {D, B, S});
  if (p.cx) check_like_input(*p.cx, input, "cx", {D, B, H});
  if (p.lengths) {
    TORCH_CHECK(p.lengths->dim() == 1 && p.lengths->size(0) == B,
                "birnn_cuda: expected lengths of size [", B, "], got ", p.lengths->sizes());
    TORCH_CHECK(p.lengths->scalar_type() == at::kLong || p.lengths->scalar_type() == at::kInt,
                "birnn_cuda: expected lengths of dtype int64 or int32, got ",
                p.lengths->scalar_type());
  }
  if (resets) {
    TORCH_CHECK(!batch_sizes, "birnn_cuda: resets need a padded input, got batch_sizes of ",
                batch_sizes->size(0), " steps");
    check_sizes(*resets, "resets", {p.shape.seq_len, B});
    TORCH_CHECK(resets->scalar_type() == at::kBool,
                "birnn_cuda: expected resets of dtype Bool, got ", resets->scalar_type());
    TORCH_CHECK(resets->device() == input.device(), "birnn_cuda: expected resets on ",
                input.device(), " like the input, got ", resets->device());
    p.resets = resets->contiguous();
  }
  check_regularisers(regularisers, p, cell);
  p.regularisers = regularisers;
  p.shape.resets = p.resets.has_value();
  p.shape.recurrent_dropout = regularisers.recurrent_mask.has_value();
  p.shape.zoneout = regularisers.zoneout_h || regularisers.zoneout_c;
  return p;
}

// No sequences, or no step: nothing for a backend to do.
bool is_empty(const Problem& p) { return p.shape.batch_size == 0 || p.shape.seq_len == 0; }

// The state that a batch without sequences, or with no step, leaves.
Tensor initial_state(const Problem& p, const OptionalTensor& state, int64_t size) {
  return state ? state->contiguous().clone()
               : at::zeros({p.num_directions, p.shape.batch_size, size}, p.input.options());
}

// The reserve on the CPU keeps the rows of a packed batch, and is fp32 for 16-bit types.
at::ScalarType reserve_type(const Problem& p) {
  const at::ScalarType type = p.input.scalar_type();
  return uses_gpu(p.input) ? type : at::toOpMathType(type);
}

std::vector<int64_t> reserve_sizes(const Problem& p) {
  return {p.num_directions, uses_gpu(p.input) ? p.shape.seq_len * p.shape.batch_size : p.num_rows,
          reserve_blocks(p.shape) * p.shape.hidden_size};
}

ForwardResult forward_on_device(const Problem& p, bool training) {
#if defined(BIRNN_WITH_CUDA)
  if (uses_gpu(p.input)) return forward_cuda(p, training);
#endif
  return forward_cpu(p, training);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_checked(const Problem& p, bool training) {
  const Tensor& input = p.input;
  check_device_is_built(input.device());
  if (is_empty(p)) {
    if (p.lengths && p.lengths->is_cpu()) check_length_values(*p.lengths, p.shape.seq_len);
    const int64_t T = p.shape.seq_len, B = p.shape.batch_size, S = p.shape.state_size();
    const auto options = input.options();
    const bool lstm = is_lstm(p.shape.cell);
    return {at::empty({T, B, p.num_directions * S}, options), initial_state(p, p.hx, S),
            lstm ? initial_state(p, p.cx, p.shape.hidden_size) : at::empty({0}, options),
            training ? at::empty(reserve_sizes(p), options.dtype(reserve_type(p)))
                     : at::empty({0}, options)};
  }
  ForwardResult r = forward_on_device(p, training);
  return {r.output, r.h_n, r.c_n, r.reserve};
}

BackwardResult backward_on_device(const Problem& p, const BackwardInputs& inputs) {
#if defined(BIRNN_WITH_CUDA)
  if (uses_gpu(p.input)) return backward_cuda(p, inputs);
#endif
  return backward_cpu(p, inputs);
}

}  // namespace

void check_device_is_built(const at::Device& device) {
  if (device.is_cpu()) return;
#if defined(BIRNN_WITH_CUDA)
  if (device.is_cuda()) return;
#endif
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "birnn_cuda: this build has kernels for the CPU only, got tensors on ", device,
      ". Move the layer and its input to the CPU, or convert the layer with "
      "birnn_cuda.to_torch to run torch's own on that device");
}

bool uses_gpu(const Tensor& t) {
#if defined(BIRNN_GPU_BACKEND_ALONE)
  return t.defined();
#else
  return t.is_cuda();
#endif
}

void check_length_values(const Tensor& lengths, int64_t seq_len) {
  const Tensor values = lengths.to(at::kLong).contiguous();
  const int64_t* length = values.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < values.size(0); ++b)
    TORCH_CHECK_VALUE(length[b] >= 0 && length[b] <= seq_len, "lengths[", b, "] is ", length[b],
                      " but must be between 0 and the ", seq_len, " steps of the input");
}

void check_reset_values(const Tensor& resets, const Tensor& lengths) {
  const int64_t B = lengths.size(0), T = resets.size(0);
  const int64_t* length = lengths.const_data_ptr<int64_t>();
  const bool* reset = resets.const_data_ptr<bool>();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = length[b]; t < T; ++t)
      TORCH_CHECK_VALUE(!reset[t * B + b], "resets are true at step ", t, " of sequence ", b,
                        ", which ends before it: lengths[", b, "] is ", length[b]);
}

ForwardDirection forward_direction(const Problem& p, const ForwardTensors& tensors, int d) {
  ForwardDirection dir;
  dir.reverse = d == 1;
  dir.weight_hh = p.weight_hh(d).const_data_ptr();
  dir.weight_hr = p.shape.proj_size ? p.weight_hr(d).const_data_ptr() : nullptr;
  dir.weight_ch = p.has_peepholes() ? p.weight_ch(d).const_data_ptr() : nullptr;
  dir.bias_ih = p.has_bias ? p.bias_ih(d).const_data_ptr() : nullptr;
  dir.bias_hh = p.has_bias ? p.bias_hh(d).const_data_ptr() : nullptr;
  dir.hx = state_pointer(tensors.hx, d);
  dir.cx = state_pointer(tensors.cx, d);
  dir.output = mutable_row_pointer(tensors.output, 0, d * p.shape.state_size());
  dir.output_stride = tensors.output.stride(0);
  dir.hy = mutable_row_pointer(tensors.hy, d);
  dir.cy = mutable_state_pointer(tensors.cy, d);
  return dir;
}

BackwardDirection backward_direction(const Problem& p, const BackwardTensors& tensors, int d,
                                     int64_t first_row) {
  const int64_t H = p.shape.hidden_size, S = p.shape.state_size();
  const auto& [hx, cx, dhx, dcx, output, dy, dc, reserve, dproj] = tensors;
  BackwardDirection dir;
  dir.reverse = d == 1;
  dir.weight_hh = p.weight_hh(d).const_data_ptr();
  dir.weight_hr = p.shape.proj_size ? p.weight_hr(d).const_data_ptr() : nullptr;
  dir.weight_ch = p.has_peepholes() ? p.weight_ch(d).const_data_ptr() : nullptr;
  dir.hx = state_pointer(hx, d);
  dir.cx = state_pointer(cx, d);
  dir.output = row_pointer(output, first_row, d * S);
  dir.output_stride = output.stride(0);
  dir.reserve = row_pointer(reserve, d, first_row * reserve.stride(1));
  dir.reserve_stride = reserve.size(2);
  dir.dy = dy.defined() ? row_pointer(dy, first_row, d * S) : nullptr;
  dir.dy_stride = dy.defined() ? dy.stride(0) : 0;
  dir.dc = dc.defined() ? row_pointer(dc, first_row, d * H) : nullptr;
  dir.dc_stride = dc.defined() ? dc.stride(0) : 0;
  dir.dproj = dproj.defined() ? mutable_row_pointer(dproj, d, first_row * S) : nullptr;
  dir.dhx = mutable_row_pointer(dhx, d);
  dir.dcx = mutable_state_pointer(dcx, d);
  return dir;
}

std::vector<Regularisers> regularisers_of(const Problem& p, const Tensor& recurrent_mask,
                                          const Tensor& zoneout_h, const Tensor& zoneout_c) {
  std::vector<Regularisers> all;
  if (!p.shape.recurrent_dropout && !p.shape.zoneout) return all;
  const auto row_of = [](const Tensor& shares, int64_t column) -> const void* {
    return shares.defined() ? row_pointer(shares, 0, column) : nullptr;
  };
  const auto stride_of = [](const Tensor& shares) {
    return shares.defined() && shares.size(0) > 1 ? shares.stride(0) : 0;
  };
  for (int d = 0; d < p.num_directions; ++d) {
    Regularisers& own = all.emplace_back();
    own.recurrent_mask = state_pointer(recurrent_mask, d);
    own.zoneout_h = row_of(zoneout_h, d * p.shape.state_size());
    own.zoneout_h_stride = stride_of(zoneout_h);
    own.zoneout_c = row_of(zoneout_c, d * p.shape.hidden_size);
    own.zoneout_c_stride = stride_of(zoneout_c);
  }
  return all;
}

std::string profile_name(const Problem& p, const char* pass, const char* kernel) {
  constexpr const char* kCells[] = {"tanh",          "relu", "gru", "lstm", "gru_reset_before",
                                    "lstm_peepholes"};
  constexpr const char* kElements[] = {"float64", "float32", "float16", "bfloat16"};
  const RecurrenceShape& s = p.shape;
  std::ostringstream name;
  name << "birnn_cuda " << kCells[static_cast<int>(s.cell)] << ' ' << pass << " T=" << s.seq_len
       << " B=" << s.batch_size;
  if (p.is_packed()) name << " N=" << p.num_rows;
  name << " I=" << p.input_size << " H=" << s.hidden_size;
  if (s.proj_size) name << " P=" << s.proj_size;
  const char* element = p.is_quantized() ? "int8" : kElements[static_cast<int>(s.element)];
  name << " D=" << p.num_directions << ' ' << element << ' ' << kernel;
  return name.str();
}

std::vector<InputGateBlocks> input_gate_blocks(Cell cell) {
  if (cell == Cell::kGru) return {{1, 0, 2}, {0, 2, 1}};
  return {{0, 0, num_gates(cell)}};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    const OptionalTensor& lengths, const OptionalTensor& batch_sizes, std::string cell,
    int64_t num_directions, bool training, std::string precision, const OptionalTensor& resets,
    const OptionalTensor& recurrent_mask, const OptionalTensor& zoneout_h,
    const OptionalTensor& zoneout_c) {
  return forward_checked(
      check_problem(input, hx, cx, weights, lengths, batch_sizes, cell, num_directions, precision,
                    resets, {recurrent_mask, zoneout_h, zoneout_c}),
      training);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_quantized_forward(
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    at::TensorList scales, const OptionalTensor& lengths, const OptionalTensor& batch_sizes,
    std::string cell, int64_t num_directions, bool with_reserve, const OptionalTensor& resets,
    const OptionalTensor& packed_weights) {
  TORCH_CHECK(input.scalar_type() == at::kFloat,
              "birnn_cuda: an int8 layer takes a float32 input, got ", input.scalar_type());
  TORCH_CHECK(!scales.empty(), "birnn_cuda: int8 weights need scales, got none");
  Problem p = check_problem(input, hx, cx, weights, lengths, batch_sizes, cell, num_directions,
                            "ieee", resets, {}, scales);
  if (packed_weights) {
    TORCH_CHECK(packed_weights->scalar_type() == at::kByte && packed_weights->dim() == 1 &&
                    packed_weights->is_contiguous() && packed_weights->device().is_cpu(),
                "birnn_cuda: expected packed_weights as pack_quantized makes them, uint8 of one "
                "dimension on the CPU, got ",
                packed_weights->scalar_type(), " of size ", packed_weights->sizes(), " on ",
                packed_weights->device());
    p.packed_weights = packed_weights;
  }
  return forward_checked(p, with_reserve);
}

Tensor layer_pack_quantized(at::TensorList weights, at::TensorList scales, std::string cell,
                            int64_t num_directions) {
  TORCH_CHECK(!scales.empty(), "birnn_cuda: int8 weights need scales, got none");
  TORCH_CHECK(!weights.empty() && weights[0].dim() == 2,
              "birnn_cuda: expected weight_ih of 2 dimensions as the first of the weights");
  const Tensor input =
      at::empty({0, 0, weights[0].size(1)}, weights[0].options().dtype(at::kFloat));
  return pack_weights_cpu(check_problem(input, std::nullopt, std::nullopt, weights, std::nullopt,
                                        std::nullopt, cell, num_directions, "ieee", std::nullopt,
                                        {}, scales));
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    const OptionalTensor& d_output, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
    const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    const OptionalTensor& lengths, const OptionalTensor& batch_sizes, const Tensor& output,
    const Tensor& reserve, std::string cell, int64_t num_directions, std::string precision,
    std::vector<bool> needs_grad, const OptionalTensor& d_cell_states, const OptionalTensor& resets,
    const OptionalTensor& recurrent_mask, const OptionalTensor& zoneout_h,
    const OptionalTensor& zoneout_c) {
  const Problem p =
      check_problem(input, hx, cx, weights, lengths, batch_sizes, cell, num_directions, precision,
                    resets, {recurrent_mask, zoneout_h, zoneout_c});
  check_device_is_built(input.device());
  const int64_t D = p.num_directions, B = p.shape.batch_size, S = p.shape.state_size();
  TORCH_CHECK(needs_grad.size() == 3 + p.weights.size(), "birnn_cuda: expected needs_grad of ",
              3 + p.weights.size(), " values (input, hx, cx, weights), got ", needs_grad.size());
  std::vector<int64_t> output_sizes(input.sizes().begin(), input.sizes().end());
  output_sizes.back() = D * S;
  check_like_input(output, input, "output", output_sizes);
  TORCH_CHECK(reserve.sizes() == reserve_sizes(p) && reserve.scalar_type() == reserve_type(p) &&
                  reserve.device() == input.device(),
              "birnn_cuda: expected a reserve of size ", reserve_sizes(p), ", dtype ",
              reserve_type(p), " on ", input.device(), ", got ", reserve.sizes(), ", ",
              reserve.scalar_type(), " on ", reserve.device(),
              ": backward needs the reserve of a forward with training=True");
  if (d_output) check_like_input(*d_output, input, "d_output", output_sizes);
  if (d_h_n) check_like_input(*d_h_n, input, "d_h_n", {D, B, S});
  const bool lstm = is_lstm(p.shape.cell);
  if (d_c_n && lstm) check_like_input(*d_c_n, input, "d_c_n", {D, B, p.shape.hidden_size});
  if (d_cell_states) {
    TORCH_CHECK(lstm, "birnn_cuda: d_cell_states needs cell 'lstm', got '", cell, "'");
    output_sizes.back() = D * p.shape.hidden_size;
    check_like_input(*d_cell_states, input, "d_cell_states", output_sizes);
  }

  if (is_empty(p)) {
    const Tensor not_asked_for = at::empty({0}, input.options());
    const auto zeros = [&](bool needed, const Tensor& like) {
      return needed ? at::zeros(like.sizes(), input.options()) : not_asked_for;
    };
    // The final state is the initial one.
    const auto passed_on = [&](bool needed, const OptionalTensor& state, const OptionalTensor& d) {
      if (!needed || !state) return not_asked_for;
      return d ? d->contiguous().clone() : at::zeros(state->sizes(), input.options());
    };
    std::vector<Tensor> d_weights;
    for (size_t i = 0; i < p.weights.size(); ++i)
      d_weights.push_back(zeros(needs_grad[3 + i], p.weights[i]));
    return {zeros(needs_grad[0], input), passed_on(needs_grad[1], p.hx, d_h_n),
            passed_on(needs_grad[2], p.cx, d_c_n), d_weights};
  }
  // The backends walk the rows of the reserve by its sizes alone.
  BackwardResult r =
      backward_on_device(p, {d_output, d_h_n, lstm ? d_c_n : std::nullopt, d_cell_states, output,
                             reserve.contiguous(), needs_grad});
  return {r.d_input, r.d_hx, r.d_cx, r.d_weights};
}

}  // namespace birnn
