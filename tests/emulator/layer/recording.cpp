// What torch's operators read, write, allocate and free, for the timeline (streams/timeline.h).
#include <ATen/ATen.h>
#include <ATen/core/function_schema.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <map>
#include <optional>

#include "runtime.h"
#include "streams/timeline.h"

namespace birnn::gpu {
namespace {

namespace timeline = emulator::timeline;

// Row by row, as far as rows lie together.
void access_tensor(const at::Tensor& t, bool writes) {
  if (!t.defined() || !t.has_storage() || t.numel() == 0) return;
  const auto walk = [&](const auto& self, const char* at, int64_t dim) -> void {
    if (dim == t.dim()) return timeline::access(at, t.element_size(), writes);
    if (dim == t.dim() - 1 && t.stride(dim) == 1)
      return timeline::access(at, t.size(dim) * t.element_size(), writes);
    for (int64_t i = 0; i < t.size(dim); ++i)
      self(self, at + i * t.stride(dim) * t.element_size(), dim + 1);
  };
  walk(walk, static_cast<const char*>(t.const_data_ptr()), 0);
}

std::vector<at::Tensor> tensors_of(const at::IValue& value) {
  if (value.isTensor()) return {value.toTensor()};
  if (value.isTensorList()) return value.toTensorVector();
  return {};
}

struct Accesses : at::ObserverContext {
  std::vector<at::Tensor> read, written;
};

std::unique_ptr<at::ObserverContext> operator_begins(const at::RecordFunction& function) {
  const auto schema = function.operator_schema();
  if (!schema) return nullptr;
  const std::string name = function.name();
  for (const char* const silent : {"aten::empty", "aten::new_empty"})
    if (name.rfind(silent, 0) == 0) return nullptr;  // touches nothing
  auto accesses = std::make_unique<Accesses>();
  for (size_t i = 0; i < function.inputs().size() && i < schema->arguments().size(); ++i) {
    const c10::AliasInfo* const alias = schema->arguments()[i].alias_info();
    for (const at::Tensor& t : tensors_of(function.inputs()[i])) {
      if (!alias) accesses->read.push_back(t);
      if (alias && alias->isWrite()) accesses->written.push_back(t);
    }
  }
  return accesses;
}

void operator_ends(const at::RecordFunction& function, at::ObserverContext* context) {
  if (!context) return;
  const auto schema = function.operator_schema();
  auto& accesses = static_cast<Accesses&>(*context);
  for (size_t i = 0; i < function.outputs().size() && i < schema->returns().size(); ++i)
    if (!schema->returns()[i].alias_info())
      for (const at::Tensor& t : tensors_of(function.outputs()[i])) accesses.written.push_back(t);
  if (accesses.read.empty() && accesses.written.empty()) return;
  const timeline::Enqueued enqueued(timeline::current(), function.name());
  for (const at::Tensor& t : accesses.read) access_tensor(t, false);
  for (const at::Tensor& t : accesses.written) access_tensor(t, true);
}

struct MemoryReports : c10::MemoryReportingInfoBase {
  void reportMemoryUsage(void* memory, int64_t bytes, size_t, size_t, c10::Device) override {
    if (bytes > 0)
      timeline::allocated(memory, static_cast<size_t>(bytes));
    else
      timeline::freed(memory);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

// From the beginning of a call to its end.
struct Recorder {
  c10::DebugInfoGuard memory{c10::DebugInfoKind::PROFILER_STATE, std::make_shared<MemoryReports>()};
  at::CallbackHandle operators =
      at::addThreadLocalCallback(at::RecordFunctionCallback(operator_begins, operator_ends)
                                     .needsInputs(true)
                                     .needsOutputs(true)
                                     .scopes({at::RecordScope::FUNCTION}));
  ~Recorder() { at::removeCallback(operators); }
};
std::optional<Recorder> recorder;

}  // namespace

// Streams that callers use, by number and priority, the same ones in every recording.
timeline::Stream* caller_of(int number, int priority) {
  static std::map<std::pair<int, int>, timeline::Stream*> callers;
  timeline::Stream*& caller = callers[{number, priority}];
  if (!caller) caller = timeline::new_stream(priority);
  return caller;
}

// Returns the allocations that hold these tensors, by number.
// mistake: a forgotten wait, an allocation that is freed, after which operation (timeline.h).
std::vector<int> begin_recording(const std::vector<at::Tensor>& known, bool capturing, int caller,
                                 int priority, const std::tuple<int, int, int>& mistake) {
  emulator::launch_observer = [](const device::LaunchConfig& config, bool begins) {
    static std::optional<timeline::Enqueued> launch;
    launch.reset();
    if (begins)
      launch.emplace(static_cast<timeline::Stream*>(config.stream),
                     config.cooperative ? "a cooperative kernel" : "a kernel");
  };
  const auto [forgotten_wait, freed_allocation, freed_after] = mistake;
  timeline::begin(caller_of(caller, priority), capturing,
                  {forgotten_wait, freed_allocation, freed_after});
  std::vector<int> numbers;
  for (const at::Tensor& t : known)
    numbers.push_back(timeline::know(t.storage().data(), t.storage().nbytes()));
  recorder.emplace();
  return numbers;
}

// Operations as tuples of their fields, the allocations that hold these results, violations; the
// stream that owns each allocation; the number of waits, and the most bytes at once.
using RecordedOperation = std::tuple<std::string, int, int, uint32_t, std::vector<uint32_t>,
                                     std::set<int>, std::set<int>, std::set<int>>;
std::tuple<std::vector<RecordedOperation>, std::vector<int>, std::vector<std::string>,
           std::vector<int>, int, size_t>
end_recording(const std::vector<at::Tensor>& results) {
  recorder.reset();
  std::vector<int> numbers;
  for (const at::Tensor& t : results)
    numbers.push_back(t.numel() ? timeline::number_of(t.storage().data()) : -1);
  const timeline::Recording recording = timeline::end();
  std::vector<RecordedOperation> operations;
  for (const timeline::Operation& one : recording.operations)
    operations.emplace_back(one.what, one.stream, one.priority, one.index,
                            std::vector<uint32_t>(one.clock.begin(), one.clock.end()), one.reads,
                            one.writes, one.sources);
  return {operations,          numbers, recording.violations, recording.owners, recording.num_waits,
          recording.peak_bytes};
}

}  // namespace birnn::gpu
