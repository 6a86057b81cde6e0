#include "layer/cuda/layer.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <map>
#include <mutex>
#include <sstream>
#include <tuple>

namespace birnn::gpu {

namespace {

const char* name_of(Cell cell) {
  switch (cell) {
    case Cell::kTanh:
      return "tanh";
    case Cell::kRelu:
      return "relu";
    case Cell::kGru:
      return "gru";
    case Cell::kGruResetBefore:
      return "gru_reset_before";
    case Cell::kLstmPeepholes:
      return "lstm_peepholes";
    case Cell::kLstm:
      break;
  }
  return "lstm";
}

}  // namespace

void check(int code, const char* what, const Problem& p) {
  if (code == 0) return;
  const RecurrenceShape& s = p.shape;
  std::ostringstream shape;
  shape << "cell " << name_of(s.cell) << ", " << p.input.scalar_type() << ", " << s.seq_len
        << " steps, batch " << s.batch_size << ", input " << p.input_size << ", hidden "
        << s.hidden_size;
  if (s.proj_size) shape << ", projected " << s.proj_size;
  TORCH_CHECK(false, "birnn_cuda: ", what, " failed: ", take_error_text(code), " (code ", code,
              "); ", shape.str(), ", on ", p.input.device(),
              ". If an earlier kernel may be the cause, run with CUDA_LAUNCH_BLOCKING=1");
}

cuda::PlanRequest request_of(const Problem& p, bool training) {
  cuda::PlanRequest request;
  request.shape = p.shape;
  request.input_size = p.input_size;
  request.num_directions = p.num_directions;
  request.ieee = p.ieee;
  request.training = training;
  request.has_lengths = p.lengths.has_value() || p.is_packed();
  request.captured = is_capturing();
  request.device = limits_of(p.input.device());
  const cuda::Forced forced = cuda::forced();
  request.kernel = forced.kernel;
  request.forward = forced.forward;
  request.backward = forced.backward;
  return request;
}

cuda::Choice choose_kernel(const cuda::PlanRequest& request, cuda::Pass pass) {
  const cuda::ChoiceResult result = cuda::choose(request, pass);
  TORCH_CHECK(result.error.empty(), "birnn_cuda: ", result.error);
  return result.choice;
}

at::ScalarType carried_type(const Tensor& t) { return at::toOpMathType(t.scalar_type()); }

std::vector<Tensor> contiguous_weights(const Problem& p) {
  std::vector<Tensor> weights;
  for (const Tensor& w : p.weights) weights.push_back(w.contiguous());
  return weights;
}

Tensor contiguous(const OptionalTensor& t) { return t ? t->contiguous() : Tensor(); }

RegulariserOperands::RegulariserOperands(const Problem& p, const Rows& rows) {
  const auto& [mask, shares_h, shares_c] = p.regularisers;
  recurrent_mask = contiguous(mask);
  const auto take_shares = [&](const OptionalTensor& shares) {
    if (!shares) return Tensor();
    return is_one_row(*shares) ? shares->reshape({1, -1}).contiguous()
                               : take_rows(*shares, rows, p);
  };
  zoneout_h = take_shares(shares_h), zoneout_c = take_shares(shares_c);
  directions = regularisers_of(p, recurrent_mask, zoneout_h, zoneout_c);
}

Workspace make_workspace(const Problem& p, int64_t bytes, const cuda::Choice& choice) {
  Workspace workspace;
  workspace.bytes = at::empty({bytes}, p.input.options().dtype(at::kByte));
  if (!cuda::runs_directions_together(choice)) workspace.of_direction = bytes / p.num_directions;
  return workspace;
}

}  // namespace birnn::gpu
