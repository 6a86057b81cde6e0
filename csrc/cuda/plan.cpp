#include "plan.h"

#include <algorithm>
#include <initializer_list>

#include "stepwise_sizes.h"

namespace birnn::cuda {
namespace {

constexpr int kMinComputeCapability = 80;
constexpr int64_t kGigabyte = 1'000'000'000;
const std::vector<std::string> kKernels = {"stepwise"};

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::string capability_name(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

// The product, or -1 if no int64 holds it.
int64_t product(std::initializer_list<int64_t> factors) {
  int64_t result = 1;
  for (const int64_t factor : factors)
    if (__builtin_mul_overflow(result, factor, &result)) return -1;
  return result;
}

Plan refuse(const std::string& sentence) {
  Plan plan;
  plan.error = sentence;
  return plan;
}

std::string check_sizes(const PlanRequest& request) {
  const RecurrenceShape& s = request.shape;
  const struct {
    const char* name;
    int64_t value;
  } sizes[] = {{"seq_len", s.seq_len},
               {"batch_size", s.batch_size},
               {"input_size", request.input_size},
               {"hidden_size", s.hidden_size}};
  for (const auto& [name, value] : sizes)
    if (value < 1) return std::string(name) + " must be at least 1, got " + std::to_string(value);
  if (s.proj_size != 0 && s.cell != Cell::kLstm)
    return "proj_size is for LSTMs only, got " + std::to_string(s.proj_size);
  if (s.proj_size < 0 || (s.proj_size > 0 && s.proj_size >= s.hidden_size))
    return "proj_size must be 0 (none) or less than hidden_size " + std::to_string(s.hidden_size) +
           ", got " + std::to_string(s.proj_size);
  if (request.num_directions != 1 && request.num_directions != 2)
    return "num_directions must be 1 or 2, got " + std::to_string(request.num_directions);
  constexpr int64_t kMaxBlocks = 5, kMaxElementBytes = 8;
  const int64_t columns = std::max(product({kMaxBlocks, s.hidden_size}), request.input_size);
  if (product({kMaxBlocks, s.hidden_size}) < 0 ||
      product({2, s.seq_len, s.batch_size, columns, kMaxElementBytes}) < 0)
    return "seq_len " + std::to_string(s.seq_len) + " * batch_size " +
           std::to_string(s.batch_size) + " * hidden_size " + std::to_string(s.hidden_size) +
           " does not fit in 64 bits";
  return "";
}

std::string element_words(const PlanRequest& request) {
  switch (request.shape.element) {
    case Element::kFloat64:
      return "products and cell in fp64";
    case Element::kFloat32:
      return request.ieee ? "products in fp32, cell in fp32" : "products in tf32, cell in fp32";
    case Element::kFloat16:
      return "products of fp16 summed in fp32, cell in fp32";
    case Element::kBFloat16:
      break;
  }
  return "products of bf16 summed in fp32, cell in fp32";
}

Plan plan_stepwise(const PlanRequest& request) {
  const RecurrenceShape& s = request.shape;
  const device::LaunchConfig config = stepwise::config_for(s.hidden_size, s.batch_size, nullptr);
  Plan plan;
  plan.kernel = "stepwise";
  plan.ctas = int64_t{config.grid.x} * config.grid.y;
  plan.threads = config.threads;
  // Each step a product and a kernel, twice with a projection; one kernel ends the backward pass.
  const int64_t launches = (s.proj_size ? 4 : 2) * s.seq_len;
  plan.launches_forward = launches;
  plan.launches_backward = request.training ? launches + 1 : 0;
  plan.workspace_bytes = stepwise::ForwardWorkspace(s, nullptr).bytes;
  if (request.training) {
    plan.workspace_bytes =
        std::max(plan.workspace_bytes, stepwise::BackwardWorkspace(s, nullptr).bytes);
    plan.reserve_bytes =
        product({request.num_directions, s.seq_len, s.batch_size, reserve_blocks(s.cell),
                 s.hidden_size, stepwise::element_bytes(s.element)});
  }
  plan.workspace_bytes *= request.num_directions;
  plan.reason = (request.kernel.empty() ? "it takes every shape and element type, and no other "
                                          "kernel is there to beat it; "
                                        : "asked for; ") +
                element_words(request);
  return plan;
}

}  // namespace

const std::vector<DeviceLimits>& known_devices() {
  constexpr int64_t kKilobyte = 1024;
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

Plan plan(const PlanRequest& request) {
  const std::string wrong = check_sizes(request);
  if (!wrong.empty()) return refuse(wrong);
  const DeviceLimits& device = request.device;
  if (device.compute_capability < kMinComputeCapability)
    return refuse(device.name + " has compute capability " +
                  capability_name(device.compute_capability) + ", at least " +
                  capability_name(kMinComputeCapability) +
                  " is needed (A100, RTX 30 series and newer)");
  if (!request.kernel.empty() &&
      std::find(kKernels.begin(), kKernels.end(), request.kernel) == kKernels.end())
    return refuse("there is no kernel \"" + request.kernel + "\"; valid: " + join(kKernels));

  Plan plan = plan_stepwise(request);
  if (device.memory_bytes > 0 && plan.reserve_bytes > device.memory_bytes - plan.workspace_bytes)
    return refuse("the reserve and workspace need " +
                  std::to_string((plan.reserve_bytes + plan.workspace_bytes) / kGigabyte) +
                  " GB, but " + device.name + " has " +
                  std::to_string(device.memory_bytes / kGigabyte) +
                  " GB; fewer steps or sequences at once, or inference, need less");
  return plan;
}

}  // namespace birnn::cuda
