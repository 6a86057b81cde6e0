#include "counts.h"

#include <algorithm>

namespace ptx {
namespace {

bool counting = false;
std::vector<std::string> launches;

// The bytes that one thread moves by one execution.
uint64_t bytes_of(const Program& program, const Instruction& i) {
  if (i.kind == Class::kAsync && i.bytes == 1) {  // cp.async: a constant of the text
    for (const auto& [slot, bits] : program.constants) {
      if (slot == i.slots[2]) return bits;
    }
  }
  return uint64_t{i.bytes} * i.count;
}

}  // namespace

void Counter::add_program(const Program& program) {
  for (const auto& [known, first] : programs_) {
    if (known == &program) return;
  }
  programs_.emplace_back(&program, num_instructions_);
  num_instructions_ += program.code.size();
  for (const CallSite& site : program.calls) {
    if (site.callee->has_body) add_program(program.image->program(site.callee->name));
  }
}

size_t Counter::index_of(const Program& program) const {
  for (const auto& [known, first] : programs_) {
    if (known == &program) return first;
  }
  return 0;
}

void Counter::add(const birnn::emulator::ThreadContext& thread,
                  const std::vector<uint32_t>& counts) {
  auto& warp = warps_[{thread.block.x, thread.block.y, thread.block.z, thread.warp}];
  warp.resize(num_instructions_, 0);
  for (size_t i = 0; i < num_instructions_; ++i) warp[i] = std::max(warp[i], counts[i]);
}

std::string Counter::json() const {
  std::string text =
      "{\"kernel\": \"" + std::string(programs_[0].first->function->name) + "\", \"warps\": [";
  const char* separator = "";
  for (const auto& [place, counts] : warps_) {
    uint64_t by_class[kNumClasses] = {}, loaded[7] = {}, stored[7] = {}, total = 0;
    std::map<std::string_view, uint64_t> by_opcode;
    for (const auto& [program, first] : programs_) {
      for (size_t n = 0; n < program->code.size(); ++n) {
        const uint32_t count = counts[first + n];
        if (count == 0) continue;
        const Instruction& i = program->code[n];
        total += count;
        by_class[static_cast<int>(i.kind)] += count;
        by_opcode[program->origins[n].opcode] += count;
        const auto space = static_cast<int>(i.space);
        const bool writes = i.stores || (i.kind == Class::kAsync && i.count > 1);
        (writes ? stored : loaded)[space] += count * bytes_of(*program, i) * 32;
      }
    }
    const auto& [x, y, z, warp] = place;
    text += std::string(separator) + "\n{\"block\": [" + std::to_string(x) + ", " +
            std::to_string(y) + ", " + std::to_string(z) + "], \"warp\": " + std::to_string(warp) +
            ", \"instructions\": " + std::to_string(total);
    const auto add_object = [&](const char* name, const auto& entries) {
      text += std::string(", \"") + name + "\": {";
      const char* comma = "";
      for (const auto& [key, value] : entries) {
        if (value == 0) continue;
        text += std::string(comma) + "\"" + std::string(key) + "\": " + std::to_string(value);
        comma = ", ";
      }
      text += "}";
    };
    std::map<std::string_view, uint64_t> classes, loads, stores;
    for (int c = 0; c < kNumClasses; ++c) classes[kClassNames[c]] = by_class[c];
    for (int space = 0; space < 7; ++space) {
      loads[kSpaceNames[space]] = loaded[space];
      stores[kSpaceNames[space]] = stored[space];
    }
    add_object("classes", classes);
    add_object("bytes_loaded", loads);
    add_object("bytes_stored", stores);
    add_object("opcodes", by_opcode);
    text += "}";
    separator = ",";
  }
  return text + "]}";
}

void count_launches(bool on) {
  counting = on;
  launches.clear();
}
bool counts_launches() { return counting; }
void keep_counts(const Counter& counter) { launches.push_back(counter.json()); }

std::string counts_json() {
  std::string text = "[";
  for (size_t i = 0; i < launches.size(); ++i) text += (i ? ",\n" : "") + launches[i];
  return text + "]\n";
}

}  // namespace ptx
