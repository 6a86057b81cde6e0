// A launch of a cluster kernel, or the question to the driver how many of its clusters run at once:
// of the same instance with the same attributes, as both are one call.
#pragma once

#include <string>

#include "cuda/persistent/launch.h"

namespace birnn::cuda::persistent {

// Queues the kernel, or, of a call that asks, fills in call.residency.
template <class Call, class... Parameters>
device::Status launch_or_ask(const Call& call, const device::LaunchConfig& config,
                             void (*kernel)(Parameters...)) {
  if (!call.residency) return device::launch(config, kernel, call.args);
  Residency& found = *call.residency;
  constexpr int kClusterCapability = 90;
  int built_for = 0, blocks = 0;
  device::Status status = device::code_capability(kernel, &built_for);
  if (status == device::kSuccess && config.cluster > 1 && built_for < kClusterCapability) {
    // The driver may say that it can form clusters of them, but they trap there.
    found.error = "its code is for compute capability " + std::to_string(built_for / 10) + "." +
                  std::to_string(built_for % 10) + ", which has no clusters";
    return status;
  }
  if (status == device::kSuccess) status = device::max_resident_blocks(config, kernel, &blocks);
  if (status == device::kSuccess)
    status = device::blocks_of_multiprocessor(config, kernel, &found.blocks_of_multiprocessor);
  if (status == device::kSuccess)
    found.clusters = blocks / static_cast<int>(config.cluster);
  else
    found.error = device::error_message(status);
  return status;
}

template <class Call, class Sizes, class Tiling>
Residency ask(const RecurrenceShape& shape, GemmCompute compute, const Tiling& tiling) {
  const Sizes sizes(shape, tiling);
  Residency residency;
  Portion portion;
  portion.packs = false;
  if (sizes.instance >= 0)
    launch_in_precision(compute,
                        Call{shape, tiling, sizes, {}, nullptr, nullptr, portion, &residency});
  return residency;
}

}  // namespace birnn::cuda::persistent
