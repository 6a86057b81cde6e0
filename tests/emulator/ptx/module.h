// The text of a PTX module, taken apart: variables, and functions as lists of statements. What the
// statements mean is the decoder's business.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

// What is wrong with a text, with its file and line.
struct SyntaxError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// One lexical element. Words are identifiers, opcodes with their modifiers, directives, numbers
// and strings; all else is a character of punctuation.
struct Token {
  std::string_view text;
  uint32_t line = 0;
  bool is_word() const;
};

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kCluster, kLocal, kParam, kConst };

// A variable of a state space, or a formal parameter.
struct Variable {
  std::string_view name;
  Space space = Space::kGeneric;
  uint32_t alignment = 1;
  uint64_t bytes = 0;  // 0: as much as the launch gives (extern shared)
  std::vector<unsigned char> initial;
  uint32_t line = 0;
};

// A .loc: where in the source an instruction comes from. Inlined code has the place of its call.
struct SourceLine {
  uint32_t file = 0, line = 0;
  int32_t inlined_at = -1;  // an index of Module::source_lines
  std::string text;         // "kernel.cu:12 > header.h:3": calls first
};

struct Function {
  std::string_view name;
  bool is_entry = false;
  std::vector<Variable> parameters, results;
  uint32_t max_threads = 0;  // .maxntid; 0: none given
  uint32_t cluster = 0;      // .reqnctapercluster; 0: the launch says
  size_t first_token = 0;    // of the body, behind its brace
  size_t end_token = 0;      // its closing brace
  bool has_body = false;
  uint32_t line = 0;
};

struct Module {
  std::string file;  // its name in diagnoses
  std::string text;
  std::vector<Token> tokens;
  std::string_view target;
  std::vector<Variable> variables;
  std::map<std::string_view, Function> functions;
  std::map<uint32_t, std::string> source_files;  // by the numbers of .file

  [[noreturn]] void fail(uint32_t line, const std::string& message) const;
  int architecture() const;  // 90 of sm_90a
};

// Splits the text and finds its functions. Throws SyntaxError.
std::unique_ptr<Module> parse_module(std::string file, std::string text);

// A reader of tokens, for what is inside of functions.
class TokenReader {
 public:
  TokenReader(const Module& module, size_t first, size_t end)
      : module_(module), position_(first), end_(end) {}
  bool at_end() const { return position_ >= end_; }
  const Token& peek() const;
  const Token& take();
  bool take_if(std::string_view text);
  void expect(std::string_view text);
  uint64_t take_number();
  std::string_view take_name();
  // The rest of the line that `first` stands on.
  void skip_line(const Token& first);
  size_t position() const { return position_; }
  void seek(size_t position) { position_ = position; }
  const Module& module() const { return module_; }

 private:
  const Module& module_;
  size_t position_, end_;
};

// Of ".u32" and so on; 0 if there is no such type.
uint32_t type_bytes(std::string_view type);
// A variable behind its state space: alignment, type, name, extent, initial values.
Variable parse_variable(TokenReader& reader, Space space);
// An integer of the text, in any of the bases of C.
bool parse_integer(std::string_view text, uint64_t& value);

}  // namespace ptx
