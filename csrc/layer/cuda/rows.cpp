#include "layer/cuda/rows.h"

#include <ATen/ATen.h>

#include "layer/cuda/runtime.h"

namespace birnn {
namespace {

// Not in a CUDA graph: its replays would read the host's memory anew.
Tensor copy_to_device(const Tensor& host, const Problem& p, const char* what) {
  TORCH_CHECK(!gpu::is_capturing(), "birnn_cuda: ", what,
              " cannot be captured in a CUDA graph, whose replays would not see "
              "them: give lengths= as a tensor on ",
              p.input.device());
  return gpu::copy_to_device(host, p.input.device());
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

}  // namespace

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

Tensor give_rows(const Tensor& flat, const Rows& rows, at::IntArrayRef sizes) {
  if (rows.padded_rows.defined()) return flat.index_select(0, rows.padded_rows);
  return flat.view(sizes);
}

Tensor continued_rows(const Tensor& output, const Problem& p) {
  const int64_t T = p.shape.seq_len, B = p.shape.batch_size, S = p.shape.state_size();
  const Tensor begins = p.resets->unsqueeze(2);  // [T, B, 1]
  const Tensor states = output.clone(at::MemoryFormat::Contiguous).view({T, B, -1});
  // Forward a row is continued by the next, in reverse by the one before it.
  states.narrow(2, 0, S).narrow(0, 0, T - 1).masked_fill_(begins.narrow(0, 1, T - 1), 0);
  if (p.num_directions > 1) states.narrow(2, S, S).masked_fill_(begins, 0);
  return states.view({T * B, -1});
}

Tensor continued_states(const Tensor& states, const Tensor& initial, const Rows& rows,
                        const Problem& p, int d) {
  const int64_t T = states.size(0), B = states.size(1);
  const bool reverse = d == 1;
  Tensor first = initial.defined() ? initial[d].unsqueeze(0)
                                   : at::zeros({1, B, states.size(2)}, states.options());
  if (initial.defined() && rows.lengths.defined())  // nothing continues an empty sequence's
    first = first.masked_fill(rows.lengths.view({1, B, 1}).le(0), 0);
  Tensor before = reverse ? at::cat({states.narrow(0, 1, T - 1), first})
                          : at::cat({first, states.narrow(0, 0, T - 1)});
  if (p.resets) {  // the border that a step begins behind: in reverse that of the step after
    const Tensor begins = p.resets->unsqueeze(2);
    before = reverse
                 ? at::cat({before.narrow(0, 0, T - 1).masked_fill(begins.narrow(0, 1, T - 1), 0),
                            before.narrow(0, T - 1, 1)})
                 : before.masked_fill(begins, 0);
  }
  if (reverse && initial.defined() && rows.lengths.defined()) {
    const Tensor steps = at::arange(1, T + 1, rows.lengths.options()).view({T, 1, 1});
    before = at::where(steps.eq(rows.lengths.view({1, B, 1})), first, before);
  }
  return before;
}

Tensor padding_mask(const Rows& rows, const Problem& p) {
  const Tensor steps = at::arange(p.shape.seq_len, rows.lengths.options());
  return steps.view({-1, 1, 1}).ge(rows.lengths.view({1, -1, 1}));
}

Tensor take_masked_rows(const Tensor& t, const Rows& rows, const Problem& p) {
  if (!rows.lengths.defined() || rows.padded_rows.defined()) return take_rows(t, rows, p);
  return take_rows(t.masked_fill(padding_mask(rows, p), 0), rows, p);
}

}  // namespace birnn
