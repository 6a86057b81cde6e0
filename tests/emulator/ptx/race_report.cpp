// Behind each report of ThreadSanitizer: which lines the addresses are that stand for instructions.
#include <cstdio>

#include "images.h"
#include "races.h"

extern "C" {
int __tsan_get_report_data(void* report, const char** description, int* count, int* num_stacks,
                           int* num_mops, int* num_locs, int* num_mutexes, int* num_threads,
                           int* num_unique_tids, void** sleep_trace, unsigned long trace_size)
    __attribute__((weak));
int __tsan_get_report_mop(void* report, unsigned long index, int* tid, void** address, int* size,
                          int* write, int* atomic, void** trace, unsigned long trace_size)
    __attribute__((weak));
void __tsan_on_report(void* report);
}

namespace ptx {
namespace {

std::map<uintptr_t, const Program*>& programs_by_pc() {
  static std::map<uintptr_t, const Program*> programs;
  return programs;
}

}  // namespace

void know_race_pcs(const Program& program) { programs_by_pc()[program.race_pc] = &program; }

std::string describe_race_pc(uintptr_t pc) {
  auto found = programs_by_pc().upper_bound(pc);
  if (found == programs_by_pc().begin()) return {};
  const Program& program = *(--found)->second;
  const size_t index = (pc - program.race_pc) / 16;
  if (index >= program.code.size()) return {};
  return std::string(program.origins[index].opcode) + " at " +
         birnn::emulator::describe(program.location(program.code[index]));
}

}  // namespace ptx

void __tsan_on_report(void* report) {
  if (!__tsan_get_report_data || !__tsan_get_report_mop) return;
  const char* description = nullptr;
  int count = 0, stacks = 0, mops = 0, locs = 0, mutexes = 0, threads = 0, tids = 0;
  void* sleep[16];
  __tsan_get_report_data(report, &description, &count, &stacks, &mops, &locs, &mutexes, &threads,
                         &tids, sleep, 16);
  for (int i = 0; i < mops; ++i) {
    void *address = nullptr, *trace[16] = {};
    int tid = 0, size = 0, write = 0, atomic = 0;
    __tsan_get_report_mop(report, static_cast<unsigned long>(i), &tid, &address, &size, &write,
                          &atomic, trace, 16);
    for (void* pc : trace) {
      if (!pc) break;
      const std::string text = ptx::describe_race_pc(reinterpret_cast<uintptr_t>(pc));
      if (text.empty()) continue;
      std::fprintf(stderr, "  %s of %d bytes: %s\n", write ? "write" : "read", size, text.c_str());
    }
  }
  std::fflush(stderr);
}
