#include "module.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace ptx {
namespace {

constexpr int kNewestMajor = 9, kNewestMinor = 0;  // the ISA of nvcc 13.0
constexpr uint64_t kMostBytes = 1 << 24;           // of a variable
constexpr std::string_view kEmulated = "emulated.";

bool is_word_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' ||
         c == '.';
}

void split(Module& module) {
  const std::string& text = module.text;
  uint32_t line = 1;
  size_t i = 0, closing_quote = std::string::npos;
  const auto add = [&](size_t begin, size_t end) {
    module.tokens.push_back({std::string_view(text).substr(begin, end - begin), line});
  };
  while (i < text.size()) {
    const char c = text[i];
    if (c == '\n') ++line;
    if (std::isspace(static_cast<unsigned char>(c)) || c == '\0') {
      ++i;
    } else if (text.compare(i, 2, "//") == 0) {
      while (i < text.size() && text[i] != '\n') ++i;
    } else if (text.compare(i, 2, "/*") == 0) {
      const size_t end = text.find("*/", i + 2);
      if (end == std::string::npos) module.fail(line, "a comment without an end");
      for (; i < end + 2; ++i) line += text[i] == '\n';
    } else if (i == closing_quote) {
      ++i;
    } else if (c == '"') {
      const size_t end = text.find_first_of("\"\n", i + 1);
      if (end == std::string::npos || text[end] == '\n') {
        module.fail(line, "a string without an end");
      }
      const bool is_for_us = text.compare(i + 1, kEmulated.size(), kEmulated) == 0 &&
                             !module.tokens.empty() && module.tokens.back().text == ".pragma";
      if (is_for_us) {  // a statement, between quotes for everybody else
        module.tokens.pop_back();
        closing_quote = end;
        ++i;
      } else {
        add(i, end + 1);
        i = end + 1;
      }
    } else if (is_word_character(c)) {
      const size_t begin = i;
      while (i < text.size()) {
        if (is_word_character(text[i])) {
          ++i;
        } else if (text.compare(i, 2, "::") == 0) {
          i += 2;
        } else {
          break;
        }
      }
      add(begin, i);
    } else {
      add(i, i + 1);
      ++i;
    }
  }
}

void check_version(const Module& module, const Token& number) {
  int major = 0, minor = 0;
  const char* end = number.text.data() + number.text.size();
  const auto [dot, error] = std::from_chars(number.text.data(), end, major);
  const bool read = error == std::errc() && dot != end && *dot == '.' &&
                    std::from_chars(dot + 1, end, minor).ptr == end;
  if (!read) module.fail(number.line, ".version " + std::string(number.text) + " is no version");
  if (major > kNewestMajor || (major == kNewestMajor && minor > kNewestMinor)) {
    module.fail(number.line, ".version " + std::string(number.text) +
                                 " is newer than the interpreter, which knows PTX up to " +
                                 std::to_string(kNewestMajor) + "." + std::to_string(kNewestMinor));
  }
}

std::vector<Variable> parse_formals(TokenReader& reader) {
  std::vector<Variable> formals;
  reader.expect("(");
  while (!reader.take_if(")")) {
    if (!formals.empty()) reader.expect(",");
    reader.expect(".param");
    formals.push_back(parse_variable(reader, Space::kParam));
  }
  return formals;
}

// Behind ".entry" or ".func".
void parse_function(TokenReader& reader, Module& module, bool is_entry) {
  Function function;
  function.is_entry = is_entry;
  function.line = reader.peek().line;
  if (!is_entry && reader.peek().text == "(") function.results = parse_formals(reader);
  function.name = reader.take_name();
  if (reader.peek().text == "(") function.parameters = parse_formals(reader);
  while (reader.peek().text.front() == '.') {  // .maxntid 256, 1, 1 and its like
    const std::string_view directive = reader.take().text;
    std::vector<uint64_t> numbers;
    while (reader.peek().text != "{" && reader.peek().text != ";" &&
           reader.peek().text.front() != '.') {
      if (!numbers.empty()) reader.expect(",");
      numbers.push_back(reader.take_number());
    }
    uint64_t product = numbers.empty() ? 0 : 1;
    for (const uint64_t number : numbers) product = std::min<uint64_t>(product * number, 1 << 20);
    if (directive == ".maxntid") function.max_threads = static_cast<uint32_t>(product);
    if (directive == ".reqnctapercluster") function.cluster = static_cast<uint32_t>(product);
  }
  if (reader.take_if(";")) {  // declared, and defined further on or built in
    module.functions.try_emplace(function.name, function);
    return;
  }
  reader.expect("{");
  function.has_body = true;
  function.first_token = reader.position();
  for (int depth = 1; depth > 0;) {
    if (reader.at_end()) {
      module.fail(module.tokens.back().line,
                  "the file ends inside of function " + std::string(function.name));
    }
    function.end_token = reader.position();
    const std::string_view text = reader.take().text;
    depth += text == "{" ? 1 : text == "}" ? -1 : 0;
  }
  Function& kept = module.functions[function.name];
  if (kept.has_body) {
    module.fail(function.line, "function " + std::string(function.name) + " is defined twice");
  }
  kept = function;
}

void parse_file(TokenReader& reader, Module& module) {
  const uint64_t number = reader.take_number();
  const std::string_view quoted = reader.take().text;
  if (quoted.size() < 2 || quoted.front() != '"') {
    module.fail(reader.peek().line, ".file without a name");
  }
  std::string name(quoted.substr(1, quoted.size() - 2));
  module.source_files[static_cast<uint32_t>(number)] = name.substr(name.rfind('/') + 1);
}

// The module's own `.section`s hold debug information.
void skip_section(TokenReader& reader, const Module& module) {
  while (reader.peek().text != "{") reader.take();
  for (int depth = 0;;) {
    if (reader.at_end()) module.fail(module.tokens.back().line, "the file ends inside a .section");
    const std::string_view text = reader.take().text;
    depth += text == "{" ? 1 : text == "}" ? -1 : 0;
    if (depth == 0) return;
  }
}

}  // namespace

bool Token::is_word() const { return is_word_character(text.front()); }

void Module::fail(uint32_t line, const std::string& message) const {
  throw SyntaxError(file + ":" + std::to_string(line) + ": " + message);
}

int Module::architecture() const {
  const size_t digits = target.find_first_of("0123456789");
  int number = 0;
  if (digits != std::string_view::npos) {
    std::from_chars(target.data() + digits, target.data() + target.size(), number);
  }
  return number;
}

const Token& TokenReader::peek() const {
  if (at_end()) {
    const uint32_t line = module_.tokens.empty() ? 1 : module_.tokens.back().line;
    module_.fail(std::min<size_t>(position_, end_) < module_.tokens.size()
                     ? module_.tokens[end_].line
                     : line,
                 "ends in the middle of a statement");
  }
  return module_.tokens[position_];
}

const Token& TokenReader::take() {
  const Token& token = peek();
  ++position_;
  return token;
}

bool TokenReader::take_if(std::string_view text) {
  if (at_end() || peek().text != text) return false;
  ++position_;
  return true;
}

void TokenReader::expect(std::string_view text) {
  const Token& token = take();
  if (token.text == text) return;
  module_.fail(token.line,
               "'" + std::string(token.text) + "' where '" + std::string(text) + "' should stand");
}

uint64_t TokenReader::take_number() {
  const Token& token = take();
  uint64_t value = 0;
  if (!parse_integer(token.text, value)) {
    module_.fail(token.line, "'" + std::string(token.text) + "' where a number should stand");
  }
  return value;
}

std::string_view TokenReader::take_name() {
  const Token& token = take();
  if (!token.is_word() || token.text.front() == '.') {
    module_.fail(token.line, "'" + std::string(token.text) + "' where a name should stand");
  }
  return token.text;
}

void TokenReader::skip_line(const Token& first) {
  while (!at_end() && peek().line == first.line) ++position_;
}

uint32_t type_bytes(std::string_view type) {
  static const std::map<std::string_view, uint32_t> sizes{
      {".b8", 1},  {".u8", 1},  {".s8", 1},  {".b16", 2}, {".u16", 2}, {".s16", 2},
      {".f16", 2}, {".b32", 4}, {".u32", 4}, {".s32", 4}, {".f32", 4}, {".b64", 8},
      {".u64", 8}, {".s64", 8}, {".f64", 8}, {".pred", 1}};
  const auto found = sizes.find(type);
  return found == sizes.end() ? 0 : found->second;
}

bool parse_integer(std::string_view text, uint64_t& value) {
  int base = 10;
  if (text.size() > 1 && text.back() == 'U') text.remove_suffix(1);
  if (text.size() > 2 && text.front() == '0') {
    const char letter = text[1];
    base = letter == 'x' || letter == 'X' ? 16 : letter == 'b' || letter == 'B' ? 2 : 8;
    text.remove_prefix(base == 8 ? 1 : 2);
  }
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value, base);
  return error == std::errc() && stop == end;
}

Variable parse_variable(TokenReader& reader, Space space) {
  Variable variable;
  variable.space = space;
  uint32_t element = 0, vector = 1;
  while (reader.peek().text.front() == '.') {
    const Token& token = reader.take();
    if (token.text == ".align") {
      const uint64_t alignment = reader.take_number();
      if (alignment == 0 || alignment > 4096 || (alignment & (alignment - 1)) != 0) {
        reader.module().fail(token.line, ".align is no power of two up to 4096");
      }
      variable.alignment = static_cast<uint32_t>(alignment);
    } else if (token.text == ".v2" || token.text == ".v4") {
      vector = token.text == ".v2" ? 2 : 4;
    } else if (token.text == ".ptr") {  // of a parameter: what it points to
      while (reader.peek().text.front() == '.' && reader.peek().text != ".align") reader.take();
      if (reader.take_if(".align")) reader.take_number();
    } else {
      element = type_bytes(token.text);
      if (element == 0) {
        reader.module().fail(token.line, "unknown type " + std::string(token.text));
      }
    }
  }
  variable.line = reader.peek().line;
  variable.name = reader.take_name();
  if (element == 0) reader.module().fail(variable.line, "a variable without a type");
  variable.bytes = uint64_t{element} * vector;
  variable.alignment = std::max(variable.alignment, element * vector);
  bool unbounded = false;
  while (reader.take_if("[")) {
    if (reader.take_if("]")) {
      unbounded = true;
      continue;
    }
    const uint64_t count = reader.take_number();
    if (count > kMostBytes) reader.module().fail(variable.line, "an array too large");
    variable.bytes *= count;
    if (variable.bytes > kMostBytes) reader.module().fail(variable.line, "an array too large");
    reader.expect("]");
  }
  if (unbounded) variable.bytes = 0;
  if (reader.take_if("=")) {
    const auto take_value = [&] {
      const bool negative = reader.take_if("-");
      uint64_t value = reader.take_number();
      if (negative) value = ~value + 1;
      for (uint32_t i = 0; i < element; ++i) {
        variable.initial.push_back(static_cast<unsigned char>(value >> 8 * i));
      }
    };
    if (reader.take_if("{")) {
      take_value();
      while (reader.take_if(",")) take_value();
      reader.expect("}");
    } else {
      take_value();
    }
    if (variable.initial.size() > variable.bytes) {
      reader.module().fail(variable.line, "more initial values than the variable has elements");
    }
  }
  return variable;
}

std::unique_ptr<Module> parse_module(std::string file, std::string text) {
  auto module = std::make_unique<Module>();
  module->file = std::move(file);
  module->text = std::move(text);
  split(*module);
  TokenReader reader(*module, 0, module->tokens.size());
  static const std::map<std::string_view, Space> spaces{
      {".global", Space::kGlobal}, {".shared", Space::kShared}, {".const", Space::kConst}};
  bool has_version = false;
  while (!reader.at_end()) {
    const Token token = reader.take();
    if (!has_version && token.text != ".version") {
      module->fail(token.line, "no .version at the head of the file");
    }
    if (token.text == ".version") {
      check_version(*module, reader.take());
      has_version = true;
    } else if (token.text == ".target") {
      module->target = reader.take().text;
      reader.skip_line(token);
    } else if (token.text == ".address_size") {
      if (reader.take_number() != 64) module->fail(token.line, "addresses are not of 64 bits");
    } else if (token.text == ".file") {
      parse_file(reader, *module);
      reader.skip_line(token);
    } else if (token.text == ".section") {
      skip_section(reader, *module);
    } else if (token.text == ".entry" || token.text == ".func") {
      parse_function(reader, *module, token.text == ".entry");
    } else if (spaces.contains(token.text)) {
      module->variables.push_back(parse_variable(reader, spaces.at(token.text)));
      reader.expect(";");
    } else if (token.text == ".pragma") {
      while (!reader.take_if(";")) reader.take();
    } else if (token.text != ".visible" && token.text != ".extern" && token.text != ".weak" &&
               token.text != ".common") {
      module->fail(token.line, "unknown directive " + std::string(token.text));
    }
  }
  if (!has_version) module->fail(1, "an empty file");
  return module;
}

}  // namespace ptx
