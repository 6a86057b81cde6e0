// Where the variables of a module lie, and its functions by name.
#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "program.h"
#include "races.h"

namespace ptx {

const char* const kClassNames[kNumClasses] = {
    "integer", "float", "double",  "convert", "special", "move",  "predicate", "control",
    "matrix",  "warp",  "barrier", "load",    "store",   "async", "atomic",    "fence"};
const char* const kSpaceNames[7] = {"generic", "global", "shared", "shared::cluster",
                                    "local",   "param",  "const"};

namespace {

uint64_t aligned(uint64_t offset, uint64_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

// Variables that stand inside of functions, too: each has one place in a block.
std::vector<Variable> shared_variables(const Module& module) {
  std::vector<Variable> found;
  for (const Variable& variable : module.variables) {
    if (variable.space == Space::kShared) found.push_back(variable);
  }
  for (const auto& [name, function] : module.functions) {
    TokenReader reader(module, function.first_token, function.end_token);
    while (!reader.at_end()) {
      if (reader.take().text != ".shared") continue;
      found.push_back(parse_variable(reader, Space::kShared));
    }
  }
  return found;
}

}  // namespace

std::unique_ptr<Image> make_image(std::unique_ptr<Module> module) {
  auto image = std::make_unique<Image>();
  std::vector<Variable> shared = shared_variables(*module);
  uint64_t offset = kSharedBase;
  for (const Variable& variable : shared) {
    if (variable.bytes == 0) continue;
    offset = aligned(offset, variable.alignment);
    image->addresses[variable.name] = offset;
    offset += variable.bytes;
  }
  if (offset > kOffsetMask) module->fail(1, "more shared memory than an address can tell apart");
  uint64_t alignment = 16;
  for (const Variable& variable : shared) {
    if (variable.bytes == 0) alignment = std::max<uint64_t>(alignment, variable.alignment);
  }
  offset = aligned(offset, alignment);
  image->static_shared_bytes = offset - kSharedBase;
  for (const Variable& variable : shared) {  // all dynamic arrays begin where the others end
    if (variable.bytes == 0) image->addresses[variable.name] = offset;
  }
  for (const Variable& variable : module->variables) {
    if (variable.space == Space::kShared) continue;
    // 256 bytes more, to begin at any alignment.
    auto& memory = image->globals[variable.name];
    memory.assign(variable.bytes + 256, 0);
    const uint64_t begin = reinterpret_cast<uint64_t>(memory.data());
    const uint64_t address = aligned(begin, std::min(variable.alignment, 256u));
    std::copy(variable.initial.begin(), variable.initial.end(),
              memory.begin() + static_cast<ptrdiff_t>(address - begin));
    image->addresses[variable.name] = address;
  }
  if (module->text.find(kSharedArray) != std::string::npos) image->gap_bytes = kMostGapBytes;
  image->module = std::move(module);
  return image;
}

const Program& Image::program(std::string_view name) {
  const auto function = module->functions.find(name);
  if (function == module->functions.end() || !function->second.has_body) {
    throw SyntaxError(module->file + ": there is no function " + std::string(name));
  }
  std::unique_ptr<Program>& program = programs[function->first];
  if (!program) {
    program = decode(*this, function->second);
    // Addresses that stand for its instructions in the reports of ThreadSanitizer: nobody else's.
    const size_t bytes = (program->code.size() + 2) * 16;
    void* const reserved =
        mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved != MAP_FAILED) program->race_pc = reinterpret_cast<uintptr_t>(reserved) + 16;
    know_race_pcs(*program);
  }
  return *program;
}

Location Program::location(const Instruction& instruction) const {
  const Origin& origin = origins[static_cast<size_t>(&instruction - code.data())];
  const char* source = origin.source < 0 ? "" : sources[origin.source].text.c_str();
  return Location(image->module->file.c_str(), origin.line, source);
}

void fail(const State& state, const Instruction& instruction, const std::string& message) {
  const size_t index = static_cast<size_t>(&instruction - state.program->code.data());
  birnn::emulator::fail(std::string(state.program->origins[index].opcode) + ": " + message,
                        state.where(instruction));
}

}  // namespace ptx
