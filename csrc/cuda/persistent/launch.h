// From a call of a persistent kernel to its launches: what is the same for all four. What differs,
// `launch_cell`, each has in its own launch header; csrc/cuda/instances compiles that once for each
// precision.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/device/device_types.h"
#include "cuda/persistent/instances.h"
#include "cuda/recurrence_cuda.h"
#include "recurrence.h"

namespace birnn::cuda {

namespace persistent {

// Sizes has found an instance.
template <class Tiling, class Sizes, class Arguments>
struct CallOf {
  const RecurrenceShape& shape;
  const Tiling& tiling;
  const Sizes& sizes;
  Arguments args;
  void* fragments;  // that the packing kernel writes
  void* stream;
  const Portion& portion;
  Residency* residency = nullptr;  // to be asked of the driver, instead of the launch
};

// A launch of so many blocks, on the call's stream.
template <class Call>
device::LaunchConfig blocks_of(const Call& call, int64_t blocks, int threads,
                               int64_t shared_bytes = 0) {
  device::LaunchConfig config;
  config.threads = static_cast<uint32_t>(threads);
  config.grid.x = static_cast<uint32_t>(blocks);
  config.shared_bytes = static_cast<size_t>(shared_bytes);
  config.stream = call.stream;
  return config;
}

// By the kernel's own launch_fp16, launch_bf16, launch_tf32 and launch_ieee.
template <class Call>
int launch_in_precision(GemmCompute compute, const Call& call) {
  switch (call.shape.element) {
    case Element::kFloat16:
      return launch_fp16(call);
    case Element::kBFloat16:
      return launch_bf16(call);
    default:
      return compute == GemmCompute::kTf32 ? launch_tf32(call) : launch_ieee(call);
  }
}

// pack() launches the packing kernel, recur(std::integral_constant<int, i>) the recurrence's
// instance i; each where the portion asks for it. Both return the launch's status.
template <int kNumInstances, class Call, class Pack, class Recur>
int launch_packed(const Call& call, bool packs, const Pack& pack, const Recur& recur) {
  const auto status = packs ? pack() : decltype(pack()){};
  int result = static_cast<int>(status);
  if (result != 0 || !call.portion.recurs) return result;
  for_each_index<kNumInstances>([&](auto index) {
    if (call.sizes.instance == index) result = static_cast<int>(recur(index));
  });
  return result;
}

}  // namespace persistent

// By the kernel's own launch_cell(std::integral_constant<Cell, cell>, Precision, call).
template <class Precision, class Call>
int launch_precision(const Call& call) {
  return visit_cell(call.shape.cell,
                    [&](auto cell) { return launch_cell(cell, Precision(), call); });
}

}  // namespace birnn::cuda
