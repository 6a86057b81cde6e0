#include "cuda/plan/residency.h"

#include <algorithm>
#include <mutex>

#include "cuda/plan/division.h"

namespace birnn::cuda {
namespace {

// Clusters of a size that a device holds at once, its blocks having a multiprocessor each.
int64_t published_clusters(const DeviceLimits& device, int size) {
  if (size <= 2) return device.num_multiprocessors / size;
  // A cluster lies in one GPC, of 16 SMs or a few more; the H100's 132 SMs hold 30 clusters of 4,
  // 15 of 8 and 7 of 16.
  constexpr int kGpcMultiprocessors = 16;
  return device.num_multiprocessors * 15 * (kGpcMultiprocessors / size) / (2 * 132);
}

// How many blocks a multiprocessor holds.
int64_t counted_blocks(const DeviceLimits& device, const Fit& fit) {
  // Kernels are compiled for as many registers as a thread can have, so these are the limit, as
  // long as shared memory is not.
  constexpr int64_t kRegisters = 64 * 1024, kRegistersOfThread = 256, kReservedBytes = 1024;
  const int64_t by_registers = kRegisters / (kRegistersOfThread * fit.threads);
  const int64_t by_memory = (device.shared_bytes_per_block + kReservedBytes) /
                            (std::max<int64_t>(fit.shared_bytes, 0) + kReservedBytes);
  return std::max<int64_t>(std::min(by_registers, by_memory), 1);
}

// A question takes microseconds, and the first one of a kernel loads it.
Residency asked(const PlanRequest& request, Pass pass, const Choice& choice, const Fit& fit) {
  const RecurrenceShape& s = request.shape;
  using Key = std::tuple<int, Pass, Cell, Element, bool, int, int, int64_t, int64_t>;
  const Key launch{request.device.index, pass,          s.cell,      s.element,       request.ieee,
                   fit.instance,         choice.blocks, fit.threads, fit.shared_bytes};
  static std::mutex mutex;
  static std::map<Key, Residency> found;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto known = found.find(launch); known != found.end()) return known->second;
  constexpr size_t kMostRemembered = 4096;
  if (found.size() >= kMostRemembered) found.clear();
  return found.emplace(launch, request.device.ask_driver(request, pass, choice)).first->second;
}

std::string refusal(const PlanRequest& request, const Choice& choice, const Fit& fit,
                    const std::string& error) {
  const std::string what =
      choice.blocks == 1 ? "block" : "cluster of " + std::to_string(choice.blocks) + " blocks";
  return "room for no " + what + " of " + std::to_string(fit.threads) + " threads and " +
         std::to_string(fit.shared_bytes) + " bytes of shared memory (" +
         residency_source(request) + (error.empty() ? "" : ": " + error) + ")";
}

}  // namespace

const char* residency_source(const PlanRequest& request) {
  return request.answers || request.device.ask_driver ? "asked of the driver" : "published table";
}

std::string find_residency(const PlanRequest& request, Pass pass, const Fit& fit, Choice& choice) {
  std::string error;
  if (request.answers) {
    const auto known = request.answers->find({choice.blocks, choice.batch_tiles, choice.k_split});
    if (known != request.answers->end())
      std::tie(choice.resident_clusters, choice.clusters_apart) = known->second;
  } else if (request.device.ask_driver) {
    const Residency found = asked(request, pass, choice, fit);
    error = found.error;
    choice.resident_clusters = found.clusters;
    choice.clusters_apart = found.clusters / std::max(found.blocks_of_multiprocessor, 1);
  } else {
    choice.clusters_apart = published_clusters(request.device, choice.blocks);
    choice.resident_clusters = choice.clusters_apart * counted_blocks(request.device, fit);
  }
  if (choice.resident_clusters < 1) return refusal(request, choice, fit, error);
  choice.clusters_apart = std::max<int64_t>(choice.clusters_apart, 1);
  return "";
}

}  // namespace birnn::cuda
