// What the names of a function stand for, in the scopes of its text: slots, places, numbers.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "program.h"

namespace ptx {

// Registers declared together: %r<20>.
struct Family {
  size_t first, count;
};

struct Scope {
  std::map<std::string_view, size_t> registers;
  std::map<std::string_view, Family> families;
  std::map<std::string_view, uint64_t> parameters, locals;
};

// Read anew each time: operands by name, which mov knows.
bool is_clock(std::string_view name);

class Names {
 public:
  Names(const Image& image, TokenReader& reader, Program& program)
      : image_(image), module_(*image.module), reader_(reader), program_(program) {}

  // Behind .reg
  void declare_registers();
  void check_number_of_slots(uint32_t line) const;
  // A register, constant, special register, or the address of a variable; kNoSlot for "_".
  Slot take_value(const char* what);
  bool find_variable(std::string_view name, uint64_t& address, bool& is_parameter) const;
  Slot constant(uint64_t bits);
  // At the end: constants, counted from the last slot downwards so far, follow the registers.
  void number_constants();

  std::vector<Scope> scopes;

 private:
  static constexpr size_t kFirstConstant = kNoSlot - 1;

  size_t new_register(std::string name);
  bool find_register(std::string_view name, Slot& slot) const;
  Slot special(std::string_view name, Special which);
  bool literal(std::string_view text, bool negative, uint64_t& bits) const;

  const Image& image_;
  const Module& module_;
  TokenReader& reader_;
  Program& program_;
  std::map<uint64_t, size_t> constants_;
  std::map<std::string_view, Slot> specials_;
};

}  // namespace ptx
