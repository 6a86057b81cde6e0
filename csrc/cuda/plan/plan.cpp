#include "cuda/plan/plan.h"

#include <algorithm>
#include <initializer_list>
#include <iomanip>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <tuple>

#include "cuda/plan/division.h"
#include "cuda/plan/residency.h"
#include "cuda/stepwise/sizes.h"

namespace birnn::cuda {
namespace {

constexpr int kMinComputeCapability = 80;
constexpr int64_t kGigabyte = 1'000'000'000;

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
  constexpr int64_t kMaxBlocks = 6, kMaxElementBytes = 8;
  const int64_t columns = std::max(product({kMaxBlocks, s.hidden_size}), request.input_size);
  if (product({kMaxBlocks, s.hidden_size}) < 0 ||
      product({2, s.seq_len, s.batch_size, columns, kMaxElementBytes}) < 0)
    return "seq_len " + std::to_string(s.seq_len) + " * batch_size " +
           std::to_string(s.batch_size) + " * hidden_size " + std::to_string(s.hidden_size) +
           " does not fit in 64 bits";
  return "";
}

std::string element_words(const PlanRequest& request, Kernel kernel) {
  switch (request.shape.element) {
    case Element::kFloat64:
      return "products and cell in fp64";
    case Element::kFloat32:
      if (!request.ieee) return "products in tf32, cell in fp32";
      return kernel == Kernel::kStepwise
                 ? "products in fp32, cell in fp32"
                 : "products in fp32 by three products of tf32, cell in fp32";
    case Element::kFloat16:
      return "products of fp16 summed in fp32, cell in fp32";
    case Element::kBFloat16:
      break;
  }
  return "products of bf16 summed in fp32, cell in fp32";
}

// The best way to run a shape by one kernel, if there is one.
struct Best {
  std::optional<Choice> choice;
  std::string refusal;  // of the best of those that could cost less, if there is one
};
Best best_of(const PlanRequest& request, Pass pass, Kernel kernel,
             const cost::Constants& constants = {}) {
  // Between estimates that are the same, fewer blocks leave more of the chip to others.
  constexpr double kBlockWorth = 0.0005;
  const auto worth = [](const Candidate& one) {
    return one.choice.microseconds_per_step + kBlockWorth * static_cast<double>(one.ctas);
  };
  std::vector<Candidate> all = candidates(request, pass, kernel, constants);
  std::stable_sort(all.begin(), all.end(),
                   [&](const Candidate& a, const Candidate& b) { return worth(a) < worth(b); });
  Best best;
  double least = 0;
  for (Candidate& one : all) {
    if (best.choice && worth(one) >= least) break;
    const std::string refusal = settle(request, pass, constants, one);
    if (best.refusal.empty()) best.refusal = refusal;
    if (!refusal.empty() || (best.choice && worth(one) >= least)) continue;
    best.choice = one.choice;
    least = worth(one);
  }
  return best;
}

// ---- words

std::string decimal(double value) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(value < 10 ? 2 : 1) << value;
  return text.str();
}

std::string division_words(const PlanRequest& request, const Choice& choice, const Fit& fit) {
  std::ostringstream words;
  if (choice.kernel == Kernel::kBlock)
    words << "one block";
  else if (choice.kernel == Kernel::kCluster)
    words << "a cluster of " << choice.blocks << " blocks";
  else
    words << choice.blocks << " blocks";
  words << " to each " << 8 * choice.batch_tiles << " sequences of a direction";
  if (fit.groups > 1) words << ", " << fit.groups << " such groups";
  if (choice.kernel != Kernel::kGrid)
    words << ", " << choice.resident_clusters
          << (choice.kernel == Kernel::kBlock ? " blocks" : " clusters")
          << " on the device at once (" << residency_source(request) << ")";
  return words.str();
}

// Why no kernel but stepwise takes a shape.
std::string only_stepwise_words(const PlanRequest& request) {
  if (request.shape.element == Element::kFloat64)
    return "fp64 has no products that a persistent kernel could use";
  if (request.shape.proj_size > 0)
    return "an LSTM with proj_size runs stepwise, a second product a step";
  if (request.shape.cell == Cell::kGruResetBefore)
    return "a GRU with the reset gate before the product runs stepwise, a second product a step";
  if (request.shape.cell == Cell::kLstmPeepholes)
    return "an LSTM with peepholes runs stepwise, where each gate reads c";
  if (request.shape.zoneout) return "zoneout runs stepwise, which mixes states with those before";
  return "W_hh of " + std::to_string(request.shape.hidden_size) +
         " hidden units does not fit on the chip";
}

std::string reason_words(const PlanRequest& request, Pass pass, const Choice& choice,
                         const Fit& fit) {
  std::string words;
  const auto& divided = pass == Pass::kForward ? request.forward : request.backward;
  if (!request.kernel.empty() || divided) words = "asked for; ";
  if (choice.kernel != Kernel::kStepwise) words += division_words(request, choice, fit) + "; ";
  std::string others, refused;
  for (const Kernel kernel : kKernels) {
    if (kernel == choice.kernel && divided) continue;
    const Best best = best_of(request, pass, kernel);
    if (!best.refusal.empty())
      refused +=
          (refused.empty() ? "; " : ", ") + std::string(name_of(kernel)) + ": " + best.refusal;
    if (kernel != choice.kernel && best.choice)
      others += (others.empty() ? "" : ", ") + std::string(name_of(kernel)) + " " +
                decimal(best.choice->microseconds_per_step);
  }
  if (pass == Pass::kBackward && backward_parts(request, choice) > 1)
    words += "in " + std::to_string(backward_parts(request, choice)) +
             " parts, the weight gradients of one beside the next; ";
  words += "by the cost model " + decimal(choice.microseconds_per_step) + " us a step " +
           (request.captured ? "in a CUDA graph" : "in an eager call");
  if (!others.empty())
    words += " (" + others + ")";
  else if (refused.empty())
    words += ", and no other kernel takes it: " + only_stepwise_words(request);
  return words + refused + "; " + element_words(request, choice.kernel);
}

PassPlan plan_stepwise(const PlanRequest& request, Pass pass) {
  const RecurrenceShape& s = request.shape;
  const device::LaunchConfig config = stepwise::config_for(s.hidden_size, s.batch_size, nullptr);
  PassPlan plan;
  plan.ctas = int64_t{config.grid.x} * config.grid.y;
  plan.threads = config.threads;
  // Each step a product and a kernel, twice with a projection and with the reset gate before the
  // product; one kernel ends the backward pass.
  const bool twice = s.proj_size || s.cell == Cell::kGruResetBefore;
  plan.launches = (twice ? 4 : 2) * s.seq_len + (pass == Pass::kBackward ? 1 : 0);
  plan.workspace_bytes = request.num_directions *
                         (pass == Pass::kForward ? stepwise::ForwardWorkspace(s, nullptr).bytes
                                                 : stepwise::BackwardWorkspace(s, nullptr).bytes);
  return plan;
}

PassPlan plan_pass(const PlanRequest& request, Pass pass, const Choice& choice) {
  PassPlan plan;
  Fit fit;
  if (choice.kernel == Kernel::kStepwise) {
    plan = plan_stepwise(request, pass);
  } else {
    fit = fit_of(request, pass, choice);
    plan.ctas = fit.ctas;
    plan.threads = fit.threads;
    plan.launches = fit.launches;
    plan.workspace_bytes = fit.workspace_bytes;
  }
  plan.choice = choice;
  if (pass == Pass::kBackward) plan.parts = backward_parts(request, choice);
  plan.launches = choice.kernel == Kernel::kStepwise ? plan.launches : plan.launches * plan.parts;
  plan.reason = reason_words(request, pass, choice, fit);
  return plan;
}

// Why nothing at all runs on the device, or an empty string.
std::string check_device(const DeviceLimits& device) {
  if (device.compute_capability >= kMinComputeCapability) return "";
  return device.name + " has compute capability " + capability_name(device.compute_capability) +
         ", at least " + capability_name(kMinComputeCapability) +
         " is needed (A100, RTX 30 series and newer)";
}

bool is_same(const Choice& a, const Choice& b) {
  return a.kernel == b.kernel && a.blocks == b.blocks && a.batch_tiles == b.batch_tiles &&
         a.k_split == b.k_split && a.groups_at_once == b.groups_at_once;
}

// The division that is asked for, if the pass can be run so.
ChoiceResult take(const PlanRequest& request, Pass pass, const Choice& asked) {
  std::string refusal;
  for (Candidate& one : candidates(request, pass, asked.kernel, {})) {
    if (!is_same(one.choice, asked)) continue;
    refusal = settle(request, pass, {}, one);
    if (refusal.empty()) return {one.choice, ""};
    refusal = ": " + refusal;
  }
  const std::string in_words =
      std::string(name_of(asked.kernel)) + " of blocks " + std::to_string(asked.blocks) +
      ", batch_tiles " + std::to_string(asked.batch_tiles) + ", k_split " +
      std::to_string(asked.k_split) + ", groups_at_once " + std::to_string(asked.groups_at_once);
  return {{},
          "no " + in_words + " runs this " + (pass == Pass::kForward ? "forward" : "backward") +
              " pass on " + request.device.name + refusal + "; divisions() lists those that do"};
}

ChoiceResult search(const PlanRequest& request, Pass pass, const cost::Constants& constants = {}) {
  std::vector<std::string> able;
  std::string refusal;
  std::optional<Choice> best;
  if (const std::string old = check_device(request.device); !old.empty()) return {{}, old};
  if (const auto& asked = pass == Pass::kForward ? request.forward : request.backward)
    return take(request, pass, *asked);
  if (!request.kernel.empty() && !kernel_of(request.kernel))
    return {{}, no_such_kernel(request.kernel)};
  for (const Kernel kernel : kKernels) {
    const bool asked_for = request.kernel == name_of(kernel);
    const auto [choice, refused] = best_of(request, pass, kernel, constants);
    if (asked_for && !refused.empty()) refusal = ": " + refused;
    if (!choice) continue;
    able.push_back(name_of(kernel));
    if (!request.kernel.empty() && !asked_for) continue;
    // The kernels come in the order of what they ask of a device; a model that is right to some ten
    // percent must promise more than that of one that asks for more.
    constexpr double kWorthwhile = 0.9;
    if (!best || choice->microseconds_per_step < kWorthwhile * best->microseconds_per_step)
      best = choice;
  }
  if (best) return {*best, ""};
  return {{},
          "the kernel \"" + request.kernel + "\" does not take this " +
              (pass == Pass::kForward ? "forward" : "backward") + " pass on " +
              request.device.name + refusal + "; those that do: " + join(able)};
}

std::mutex& forced_mutex() {
  static std::mutex mutex;
  return mutex;
}
Forced& forced_now() {
  static Forced value;
  return value;
}

}  // namespace

// A search costs some ten microseconds, and asks the driver, so what it found is remembered. The
// number of steps decides nothing but whether offsets fit into 32 bits.
ChoiceResult choose(const PlanRequest& request, Pass pass) {
  if (request.forward || request.backward || request.answers) return search(request, pass);
  const RecurrenceShape& s = request.shape;
  const DeviceLimits& device = request.device;
  const bool is_long = s.seq_len > INT32_MAX / std::max<int64_t>(s.batch_size, 1);
  using Key = std::tuple<Pass, Cell, Element, bool, int64_t, int64_t, int64_t, bool, bool, bool,
                         bool, bool, int, int, int, int64_t, int, int, std::string>;
  const Key key{pass,
                s.cell,
                s.element,
                is_long,
                s.batch_size,
                s.hidden_size,
                s.proj_size,
                request.ieee,
                s.resets,
                s.recurrent_dropout,
                s.zoneout,
                request.captured,
                request.num_directions,
                device.compute_capability,
                device.num_multiprocessors,
                device.shared_bytes_per_block,
                device.max_cluster_size,
                device.index,
                request.kernel};
  static std::mutex mutex;
  static std::map<Key, ChoiceResult> found;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto known = found.find(key); known != found.end()) return known->second;
  }
  const ChoiceResult result = search(request, pass);
  constexpr size_t kMostRemembered = 4096;
  const std::lock_guard<std::mutex> lock(mutex);
  if (found.size() >= kMostRemembered) found.clear();
  found.emplace(key, result);
  return result;
}

Divisions divisions(const PlanRequest& request, Pass pass, const cost::Constants& constants) {
  Divisions all;
  all.error = check_sizes(request);
  if (!all.error.empty()) return all;
  const ChoiceResult chosen = search(request, pass, constants);
  all.error = chosen.error;
  if (!all.error.empty()) return all;
  for (const Kernel kernel : kKernels)
    for (Candidate& one : candidates(request, pass, kernel, constants)) {
      if (!settle(request, pass, constants, one).empty()) continue;
      if (is_same(one.choice, chosen.choice)) all.chosen = static_cast<int>(all.choices.size());
      all.choices.push_back(one.choice);
    }
  return all;
}

int backward_parts(const PlanRequest& request, const Choice& choice) {
  const RecurrenceShape& s = request.shape;
  // With lengths the steps of a part lie at different times, with resets a part would have to know
  // whether the one before it in time ends there; stepwise takes turns with products as it is.
  if (request.has_lengths || s.resets || choice.kernel == Kernel::kStepwise) return 1;
  if (const int parts = forced().backward_parts; parts > 0)
    return static_cast<int>(std::min<int64_t>(parts, s.seq_len));
  return 1;
}

Forced forced() {
  const std::lock_guard<std::mutex> lock(forced_mutex());
  return forced_now();
}

std::string force(const Forced& forced) {
  if (!forced.kernel.empty() && !kernel_of(forced.kernel)) return no_such_kernel(forced.kernel);
  if (forced.backward_parts < 0)
    return "backward_parts must be 0 (as the plan says) or more, got " +
           std::to_string(forced.backward_parts);
  const std::lock_guard<std::mutex> lock(forced_mutex());
  forced_now() = forced;
  return "";
}

Plan plan(const PlanRequest& request) {
  const std::string wrong = check_sizes(request);
  if (!wrong.empty()) return refuse(wrong);
  const DeviceLimits& device = request.device;
  Plan plan;
  const RecurrenceShape& s = request.shape;
  const ChoiceResult forward = choose(request, Pass::kForward);
  if (!forward.error.empty()) return refuse(forward.error);
  plan.forward = plan_pass(request, Pass::kForward, forward.choice);
  if (request.training) {
    const ChoiceResult backward = choose(request, Pass::kBackward);
    if (!backward.error.empty()) return refuse(backward.error);
    plan.backward = plan_pass(request, Pass::kBackward, backward.choice);
    plan.reserve_bytes = product({request.num_directions, s.seq_len, s.batch_size,
                                  reserve_blocks(s), s.hidden_size, element_bytes(s.element)});
  }
  const int64_t workspace = std::max(plan.forward.workspace_bytes, plan.backward.workspace_bytes);
  if (device.memory_bytes > 0 && plan.reserve_bytes > device.memory_bytes - workspace)
    return refuse("the reserve and workspace need " +
                  std::to_string((plan.reserve_bytes + workspace) / kGigabyte) + " GB, but " +
                  device.name + " has " + std::to_string(device.memory_bytes / kGigabyte) +
                  " GB; fewer steps or sequences at once, or inference, need less");
  return plan;
}

}  // namespace birnn::cuda
