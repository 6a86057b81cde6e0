// Memory for what grows with T * B: kept for the next pass when a tensor gives it back.
#pragma once

#include <ATen/core/Tensor.h>

namespace birnn::cpu {

// An uninitialised tensor on the CPU. Large ones lie in large pages where the system offers them on
// request, in blocks that are kept on release, up to 512 MB in all: a malloc hands blocks of this
// size back to the system, and the next pass pays for fresh pages of zeros: a fifth of a training
// step at T = 100, B = 32, H = 128. What is kept belongs to the system as soon as it runs short
// (MADV_FREE). Where that cannot be said, nothing is kept.
at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace birnn::cpu
