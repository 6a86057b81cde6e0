#include "cuda/plan/request.h"

namespace birnn::cuda {

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

const std::vector<DeviceLimits>& known_devices() {
  constexpr int64_t kKilobyte = 1024, kGigabyte = 1'000'000'000;
  static const std::vector<DeviceLimits> devices = {
      {"v100", 70, 80, 96 * kKilobyte, 1, 32 * kGigabyte},
      {"t4", 75, 40, 64 * kKilobyte, 1, 16 * kGigabyte},
      {"a100", 80, 108, 163 * kKilobyte, 1, 80 * kGigabyte},
      {"rtx3090", 86, 82, 99 * kKilobyte, 1, 24 * kGigabyte},
      {"l4", 89, 58, 99 * kKilobyte, 1, 24 * kGigabyte},
      {"rtx4090", 89, 128, 99 * kKilobyte, 1, 24 * kGigabyte},
      {"h100", 90, 132, 227 * kKilobyte, 16, 80 * kGigabyte},
      {"h200", 90, 132, 227 * kKilobyte, 16, 141 * kGigabyte},
      {"b200", 100, 148, 227 * kKilobyte, 16, 180 * kGigabyte},
      {"rtx5090", 120, 170, 99 * kKilobyte, 8, 32 * kGigabyte},
  };
  return devices;
}

int max_cluster_size(int compute_capability) {
  // 16 blocks, more than is portable, is what the chips of data centres allow.
  if (compute_capability < 90) return 1;
  return compute_capability < 110 ? 16 : 8;
}

const char* name_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::kBlock:
      return "block";
    case Kernel::kCluster:
      return "cluster";
    case Kernel::kGrid:
      return "grid";
    case Kernel::kStepwise:
      break;
  }
  return "stepwise";
}

std::optional<Kernel> kernel_of(const std::string& name) {
  for (const Kernel kernel : kKernels)
    if (name == name_of(kernel)) return kernel;
  return {};
}

std::string no_such_kernel(const std::string& name) {
  std::vector<std::string> names;
  for (const Kernel kernel : kKernels) names.push_back(name_of(kernel));
  return "there is no kernel \"" + name + "\"; valid: " + join(names);
}

}  // namespace birnn::cuda
