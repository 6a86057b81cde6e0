// Mutates texts of PTX, decodes them, and runs what decodes: whatever it is, the interpreter
// answers with a message, not with a crash. Built with the sanitizers on the interpreter itself.
//
//   fuzz TEXTS SEED FILE...      (tests/emulator/fuzz_ptx.py builds and runs it)
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>

#include "images.h"

namespace {

std::mt19937_64 random_numbers;
size_t below(size_t bound) { return bound ? random_numbers() % bound : 0; }

const char* const kFragments[] = {"-1",
                                  "0",
                                  "4294967295",
                                  "18446744073709551615",
                                  "9223372036854775808",
                                  "%r1",
                                  "%rd1",
                                  "%p1",
                                  "[",
                                  "]",
                                  "{",
                                  "}",
                                  ";",
                                  ",",
                                  "_",
                                  "@%p1 ",
                                  ".u8",
                                  ".s64",
                                  ".v4",
                                  ".shared",
                                  ".global",
                                  ".param",
                                  ".local",
                                  "bar.sync 0;",
                                  "ret;",
                                  "0f7FC00000",
                                  "0d7FF0000000000000",
                                  ".align 4096",
                                  "\"",
                                  "/*",
                                  "//",
                                  "\n",
                                  "$L__BB0_2",
                                  ".reg .b64 %r<9>;"};

std::string mutated(std::string text, const std::vector<std::string>& corpus) {
  const size_t first = text.find('{');  // mutations of what is executed, mostly
  const size_t count = 1 + below(4);
  for (size_t n = 0; n < count && !text.empty(); ++n) {
    size_t at = below(8) ? first + below(text.size() - first) : below(text.size());
    if (at >= text.size()) at = 0;
    switch (below(9)) {
      case 0:
        text[at] = static_cast<char>(below(256));
        break;
      case 1:
        text.erase(at, 1 + below(16));
        break;
      case 2:
        text.insert(at, kFragments[below(std::size(kFragments))]);
        break;
      case 3:  // a digit
        at = text.find_first_of("0123456789", at);
        if (at != std::string::npos) text[at] = static_cast<char>('0' + below(10));
        break;
      case 4: {  // a line twice, or away
        const size_t begin = text.rfind('\n', at), end = text.find('\n', at);
        if (begin == std::string::npos || end == std::string::npos) break;
        if (below(2))
          text.erase(begin, end - begin);
        else
          text.insert(end, text.substr(begin, end - begin));
        break;
      }
      case 5: {  // a line from elsewhere
        const std::string& other = corpus[below(corpus.size())];
        const size_t begin = other.find('\n', below(other.size()));
        if (begin == std::string::npos) break;
        const std::string line = other.substr(begin, other.find('\n', begin + 1) - begin);
        const size_t end = text.find('\n', at);
        if (end != std::string::npos) text.insert(end, line);
        break;
      }
      case 6:
        if (below(8) == 0) text.resize(at);
        break;
      case 7: {  // two words change places
        const size_t other = first + below(text.size() - first);
        if (other < text.size()) std::swap(text[at], text[other]);
        break;
      }
      default: {  // a register by another
        at = text.find("%r", at);
        if (at != std::string::npos && at + 3 < text.size()) {
          text[at + 2] = static_cast<char>('0' + below(10));
        }
      }
    }
  }
  return text;
}

// Every entry with pointers to one buffer, and small numbers.
size_t run_all(const std::string& text, unsigned char* buffer) {
  ptx::Binary binary;
  binary.file = "fuzz.ptx";
  binary.text = text;
  size_t launches = 0;
  std::vector<std::pair<std::string, std::vector<uint64_t>>> entries;
  try {
    for (const auto& [name, function] : binary.get_image().module->functions) {
      if (!function.is_entry || !function.has_body || below(4)) continue;
      auto& [kept, sizes] = entries.emplace_back(name, std::vector<uint64_t>());
      for (const ptx::Variable& one : function.parameters) sizes.push_back(one.bytes);
    }
  } catch (const ptx::SyntaxError&) {
    return 0;
  }
  for (const auto& [name, sizes] : entries) {
    ptx::Kernel kernel;
    kernel.binary = &binary;
    kernel.name = name;
    std::vector<std::vector<uint64_t>> values;
    std::vector<void*> arguments;
    for (const uint64_t bytes : sizes) {
      auto& value = values.emplace_back(bytes / 8 + 2, below(40));
      if (bytes == 8) value[0] = reinterpret_cast<uint64_t>(buffer);
    }
    for (auto& value : values) arguments.push_back(value.data());
    birnn::emulator::LaunchConfig config;
    config.threads = below(2) ? 32 : 64;
    config.cluster = 1 + static_cast<uint32_t>(below(3));
    config.grid.x = config.cluster;
    config.shared_bytes = below(8) * 1024;
    config.cooperative = below(2);
    birnn::emulator::options().seed = random_numbers();
    ptx::launch(kernel, config, arguments.data());
    ++launches;
  }
  return launches;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: fuzz TEXTS SEED FILE...\n");
    return 2;
  }
  setenv("PTX_MOST_BRANCHES", "2000", 0);
  const size_t num_texts = std::strtoull(argv[1], nullptr, 10);
  random_numbers.seed(std::strtoull(argv[2], nullptr, 10));
  std::vector<std::string> corpus;
  for (int i = 3; i < argc; ++i) {
    std::ifstream file(argv[i]);
    std::stringstream text;
    text << file.rdbuf();
    corpus.push_back(text.str());
    if (corpus.back().find('{') == std::string::npos) {
      std::fprintf(stderr, "%s: no PTX\n", argv[i]);
      return 2;
    }
  }
  constexpr size_t kBytes = 1 << 16;
  auto* const buffer = static_cast<unsigned char*>(std::aligned_alloc(256, kBytes));
  ptx::allow_global(buffer, kBytes);
  const char* const last = std::getenv("PTX_FUZZ_LAST");  // where the latest text is kept
  size_t num_decoded = 0, num_launches = 0;
  for (size_t i = 0; i < num_texts; ++i) {
    const std::string text = mutated(corpus[below(corpus.size())], corpus);
    if (last) std::ofstream(last) << text;
    if (!ptx::check("fuzz.ptx", text).empty() && below(4)) continue;
    ++num_decoded;
    num_launches += run_all(text, buffer);
  }
  std::printf("%zu texts, %zu run, %zu launches\n", num_texts, num_decoded, num_launches);
  return 0;
}
