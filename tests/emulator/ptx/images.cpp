#include "images.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "counts.h"

namespace ptx {
namespace {

namespace emulator = birnn::emulator;

std::vector<std::unique_ptr<Binary>>& binaries() {
  static std::vector<std::unique_ptr<Binary>> all;
  return all;
}
std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> all;
  return all;
}

template <class T>
T word_at(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

// $PTX_SAVE names a folder: diagnoses give lines of these files.
void save(const Binary& binary) {
  const char* const folder = std::getenv("PTX_SAVE");
  if (!folder || !*folder) return;
  const std::string path = std::string(folder) + "/" + binary.file;
  if (std::FILE* const out = std::fopen(path.c_str(), "w")) {
    std::fwrite(binary.text.data(), 1, binary.text.size(), out);
    std::fclose(out);
  }
}

}  // namespace

void read_fat_binary(const void* data, Binary& binary) {
  // A header, and behind it entries: kind (1: PTX), size of the entry's header, size of what
  // follows; in the header the architecture and the name of the source.
  const char* const bytes = static_cast<const char*>(data);
  constexpr uint32_t kMagic = 0xba55ed50;
  constexpr uint16_t kPtx = 1;
  if (word_at<uint32_t>(bytes) != kMagic) throw SyntaxError("not a fat binary");
  const char* entry = bytes + word_at<uint16_t>(bytes + 6);
  const char* const end = entry + word_at<uint64_t>(bytes + 8);
  while (entry + 64 <= end) {
    const uint32_t header = word_at<uint32_t>(entry + 4);
    const uint64_t size = word_at<uint64_t>(entry + 8);
    const int architecture = word_at<int>(entry + 28);
    if (word_at<uint16_t>(entry) == kPtx && architecture > binary.architecture) {
      const uint32_t name = word_at<uint32_t>(entry + 32);
      const uint32_t length = word_at<uint32_t>(entry + 36);
      std::string source(entry + name, name + length <= header ? length : 0);
      source = source.substr(source.rfind('/') + 1);
      binary.file = source.substr(0, source.rfind('.')) + ".ptx";
      binary.architecture = architecture;
      binary.text.assign(entry + header, size);
      while (!binary.text.empty() && binary.text.back() == '\0') binary.text.pop_back();
    }
    entry += header + size;
  }
  if (binary.text.empty()) {
    throw SyntaxError(
        "no PTX in the fat binary: compile with -gencode "
        "arch=compute_90a,code=compute_90a");
  }
  if (binary.text.find(".version") == std::string::npos) {
    throw SyntaxError("the PTX is compressed: compile with --compress-mode=none");
  }
  save(binary);
}

Image& Binary::get_image() {
  if (!image) image = make_image(parse_module(file, std::move(text)));
  return *image;
}

std::string check(const std::string& file, const std::string& text) {
  try {
    const std::unique_ptr<Image> image = make_image(parse_module(file, text));
    for (const auto& [name, function] : image->module->functions) {
      if (function.has_body) image->program(name);
    }
    return {};
  } catch (const SyntaxError& error) {
    return error.what();
  }
}

Binary* add_binary(const void* data) {
  auto binary = std::make_unique<Binary>();
  read_fat_binary(data, *binary);
  return binaries().emplace_back(std::move(binary)).get();
}

void add_kernel(Binary* binary, const void* host_function, const std::string& name) {
  Kernel& kernel = kernels()[host_function];
  kernel.binary = binary;
  kernel.name = name;
}

Kernel* find_kernel(const void* host_function) {
  const auto found = kernels().find(host_function);
  return found == kernels().end() ? nullptr : &found->second;
}

int architecture() { return binaries().empty() ? 90 : binaries().front()->architecture; }

int launch(Kernel& kernel, const emulator::LaunchConfig& given, void* const* arguments) {
  try {
    Image& image = kernel.binary->get_image();
    const Program& program = image.program(kernel.name);
    const Function& function = *program.function;
    if (function.max_threads && given.threads > function.max_threads) {
      throw SyntaxError("launch: " + std::to_string(given.threads) +
                        " threads of a kernel for at most " + std::to_string(function.max_threads));
    }
    emulator::LaunchConfig config = given;
    if (config.cluster == 1 && function.cluster) config.cluster = function.cluster;
    config.shared_bytes += image.static_shared_bytes + image.gap_bytes;
    emulator::gap_bytes = image.gap_bytes;
    Entry entry{&program, {}, static_cast<uint32_t>(config.shared_bytes), nullptr};
    entry.parameters.resize(program.formal_bytes);
    for (size_t i = 0; i < function.parameters.size(); ++i) {
      std::memcpy(entry.parameters.data() + program.parameter_offsets[i], arguments[i],
                  function.parameters[i].bytes);
    }
    if (!counts_launches()) return emulator::run_grid(config, run_thread, &entry);
    Counter counter(program);
    entry.counter = &counter;
    const int status = emulator::run_grid(config, run_thread, &entry);
    if (status == 0) keep_counts(counter);
    return status;
  } catch (const SyntaxError& error) {
    emulator::set_last_error(error.what());
    return 1;
  }
}

}  // namespace ptx
