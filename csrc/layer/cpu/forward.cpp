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
  const Numbers numbers(given.weight_hh(0).scalar_type(), given.shape.batch_size);
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
  const bool lstm = s.cell == Cell::kLstm;

  const Tensor x = take_rows(p.input, rows, numbers.rows);
  ForwardTensors tensors;
  tensors.output = cpu::empty_large({rows.num_rows, D * S}, row_options);
  if (p.hx) tensors.hx = read_state(*p.hx, rows, numbers.rows);
  tensors.hy = at::empty({D, B, S}, row_options);
  if (lstm) tensors.cy = take_state(p.cx, rows, {D, B, H}, options);
  const int64_t reserve_width = reserve_blocks(s) * H;
  const Tensor reserve = training ? cpu::empty_large({D, p.num_rows, reserve_width}, options)
                                  : at::empty({0}, p.input.options());

  std::vector<const void*> weight_ih(D);
  std::vector<cpu::WeightScales> scales(D);
  std::vector<Tensor> contiguous_scales;
  for (const Tensor& scale : p.scales) contiguous_scales.push_back(scale.contiguous());
  std::vector<ForwardDirection> directions(D);
  for (int d = 0; d < D; ++d) {
    ForwardDirection& dir = directions[d];
    dir = forward_direction(p, tensors, d);
    if (training && reserve_width > 0) dir.gates = mutable_row_pointer(reserve, d);
    dir.gates_stride = reserve_width;
    weight_ih[d] = p.weight_ih(d).const_data_ptr();
    if (p.is_quantized()) {
      const Tensor* scale = &contiguous_scales[d * p.scales.size() / D];
      scales[d] = {scale[0].const_data_ptr<float>(), scale[1].const_data_ptr<float>(),
                   s.proj_size ? scale[2].const_data_ptr<float>() : nullptr};
    }
  }

  const Tensor workspace =
      cpu::empty_large({cpu::forward_workspace_bytes(layer)}, options.dtype(at::kByte));
  cpu::forward(layer, directions.data(), x.const_data_ptr(), x.stride(0), weight_ih.data(),
               scales.data(), workspace.data_ptr());

  std::vector<int64_t> sizes = p.input.sizes().vec();
  sizes.back() = D * S;
  return {give_rows(tensors.output, rows, sizes, type), give_state(tensors.hy, rows, type),
          lstm ? give_state(tensors.cy, rows, type) : at::empty({0}, p.input.options()), reserve};
}

}  // namespace birnn
