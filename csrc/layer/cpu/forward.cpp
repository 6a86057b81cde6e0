// The forward pass of a layer on the CPU.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "cpu/kept_memory.h"
#include "layer/cpu/operands.h"
#include "layer/profile.h"

namespace birnn {

using namespace cpu;

ForwardResult forward_cpu(const Problem& given, bool training) {
  const Numbers numbers(given.weight_hh(0).scalar_type(), given.shape);
  const ProfiledCall call(given, "forward", numbers.instruction_set);
  const at::AutoDispatchBelowADInplaceOrView no_tracking;
  const Rows rows = rows_of(given);
  Problem p = given;
  p.weights = weights_for(given, numbers, false);
  const RegulariserOperands regularisers(p, rows, numbers.sums);
  const cpu::Layer layer = cpu_layer(p, rows, regularisers, numbers.kernels);
  const RecurrenceShape& s = layer.shape;
  const int64_t D = p.num_directions, B = s.batch_size, H = s.hidden_size;
  const int64_t S = s.state_size();
  const at::ScalarType type = p.input.scalar_type();
  const auto options = p.input.options().dtype(numbers.sums);
  const auto row_options = options.dtype(numbers.rows);
  const bool lstm = is_lstm(s.cell);

  const Tensor x = take_rows(p.input, rows, numbers.rows);
  ForwardTensors tensors;
  tensors.output = cpu::empty_large({rows.num_rows, D * S}, row_options);
  if (p.hx) tensors.hx = read_state(*p.hx, rows, numbers.rows);
  tensors.hy = at::empty({D, B, S}, row_options);
  if (lstm) tensors.cy = take_state(p.cx, rows, {D, B, H}, options);
  const int64_t reserve_width = reserve_blocks(s) * H;
  const Tensor reserve = training ? cpu::empty_large({D, p.num_rows, reserve_width}, options)
                                  : at::empty({0}, p.input.options());

  Tensor gates = reserve;
  int64_t gates_width = reserve_width;
  if (s.cell == Cell::kGruResetBefore && !training) {  // of a step (cpu/reset_before.h)
    gates_width = 2 * H;
    gates = cpu::empty_large({D, B, gates_width}, options);
  }

  std::vector<const void*> weight_ih(D);
  std::vector<cpu::WeightScales> scales(D);
  std::vector<Tensor> contiguous_scales;
  for (const Tensor& scale : p.scales) contiguous_scales.push_back(scale.contiguous());
  std::vector<ForwardDirection> directions(D);
  for (int d = 0; d < D; ++d) {
    ForwardDirection& dir = directions[d];
    dir = forward_direction(p, tensors, d);
    if (gates.dim() == 3 && gates_width > 0) dir.gates = mutable_row_pointer(gates, d);
    dir.gates_stride = gates_width;
    weight_ih[d] = p.weight_ih(d).const_data_ptr();
    if (p.is_quantized()) {
      const Tensor* scale = &contiguous_scales[d * p.scales.size() / D];
      scales[d] = {scale[0].const_data_ptr<float>(), scale[1].const_data_ptr<float>(),
                   s.proj_size ? scale[2].const_data_ptr<float>() : nullptr};
    }
  }

  if (p.packed_weights) {
    const int64_t bytes = cpu::packed_weights_bytes(layer);
    TORCH_CHECK(p.packed_weights->numel() == bytes, "birnn_cuda: expected packed_weights of ",
                bytes, " bytes, as pack_quantized makes them of these weights, got ",
                p.packed_weights->numel());
  }
  const void* packed = p.packed_weights ? p.packed_weights->const_data_ptr() : nullptr;
  const Tensor workspace = cpu::empty_large(
      {cpu::forward_workspace_bytes(layer, packed != nullptr)}, options.dtype(at::kByte));
  cpu::forward(layer, directions.data(), x.const_data_ptr(), x.stride(0), weight_ih.data(),
               scales.data(), packed, workspace.data_ptr());

  std::vector<int64_t> sizes = p.input.sizes().vec();
  sizes.back() = D * S;
  return {give_rows(tensors.output, rows, sizes, type), give_state(tensors.hy, rows, type),
          lstm ? give_state(tensors.cy, rows, type) : at::empty({0}, p.input.options()), reserve};
}

Tensor pack_weights_cpu(const Problem& given) {
  const Numbers numbers(given.weight_hh(0).scalar_type(), given.shape);
  const at::AutoDispatchBelowADInplaceOrView no_tracking;
  Problem p = given;
  p.weights = weights_for(given, numbers, false);
  cpu::Layer layer{p.shape, {}, p.num_directions, p.input_size, numbers.kernels};
  std::vector<const void*> weight_ih(p.num_directions);
  std::vector<ForwardDirection> directions(p.num_directions);
  for (int d = 0; d < p.num_directions; ++d) {
    weight_ih[d] = p.weight_ih(d).const_data_ptr();
    directions[d].weight_hh = p.weight_hh(d).const_data_ptr();
    if (p.shape.proj_size) directions[d].weight_hr = p.weight_hr(d).const_data_ptr();
  }
  Tensor packed =
      cpu::empty_large({cpu::packed_weights_bytes(layer)}, p.input.options().dtype(at::kByte));
  cpu::pack_weights(layer, directions.data(), weight_ih.data(), packed.data_ptr());
  return packed;
}

}  // namespace birnn
