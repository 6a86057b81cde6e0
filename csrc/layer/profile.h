// What a call is named in a profile of torch.
#pragma once

#include <ATen/record_function.h>

#include <optional>
#include <utility>

#include "layer/layer.h"

namespace birnn {

// Cell, pass, sizes, dtype and kernel, as in
// "birnn_cuda lstm forward T=100 B=8 I=64 H=128 D=2 float32 avx512"; a packed batch has N rows.
std::string profile_name(const Problem& p, const char* pass, const char* kernel);

// For as long as it lives, what runs is shown under that name; nothing is done where nobody
// records.
class ProfiledCall {
 public:
  ProfiledCall(const Problem& p, const char* pass, const char* kernel) {
    auto callbacks = at::getStepCallbacksUnlessEmpty(at::RecordScope::USER_SCOPE);
    if (!callbacks) return;
    record_.emplace(std::move(*callbacks));
    record_->before(profile_name(p, pass, kernel));
  }

 private:
  std::optional<at::RecordFunction> record_;
};

}  // namespace birnn
