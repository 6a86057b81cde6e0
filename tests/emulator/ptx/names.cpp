#include "names.h"

#include <charconv>

namespace ptx {
namespace {

const std::map<std::string_view, Special>& special_registers() {
  using enum Special;
  static const std::map<std::string_view, Special> registers{
      {"%tid.x", kTidX},
      {"%tid.y", kTidY},
      {"%tid.z", kTidZ},
      {"%ntid.x", kNtidX},
      {"%ntid.y", kNtidY},
      {"%ntid.z", kNtidZ},
      {"%ctaid.x", kCtaidX},
      {"%ctaid.y", kCtaidY},
      {"%ctaid.z", kCtaidZ},
      {"%nctaid.x", kNctaidX},
      {"%nctaid.y", kNctaidY},
      {"%nctaid.z", kNctaidZ},
      {"%laneid", kLaneid},
      {"%warpid", kWarpid},
      {"%nwarpid", kNwarpid},
      {"%cluster_ctarank", kClusterCtarank},
      {"%cluster_nctarank", kClusterNctarank},
      {"%cluster_ctaid.x", kClusterCtaidX},
      {"%cluster_ctaid.y", kZero},
      {"%cluster_ctaid.z", kZero},
      {"%cluster_nctaid.x", kClusterNctaidX},
      {"%cluster_nctaid.y", kOne},
      {"%cluster_nctaid.z", kOne},
      {"%clusterid.x", kClusteridX},
      {"%nclusterid.x", kNclusteridX},
      {"%smid", kSmid},
      {"%envreg0", kEnvreg0},
      {"%dynamic_smem_size", kDynamicSmemSize},
      {"%lanemask_lt", kLanemaskLt},
      {"%lanemask_le", kLanemaskLe},
      {"%lanemask_gt", kLanemaskGt},
      {"%lanemask_ge", kLanemaskGe},
      {"%lanemask_eq", kLanemaskEq},
  };
  return registers;
}

}  // namespace

bool is_clock(std::string_view name) {
  return name == "%clock" || name == "%clock_hi" || name == "%clock64" || name == "%globaltimer" ||
         name == "%globaltimer_lo";
}

size_t Names::new_register(std::string name) {
  program_.names.push_back(std::move(name));
  return program_.num_slots++;
}

void Names::declare_registers() {
  const Token& type = reader_.take();
  if (type_bytes(type.text) == 0) {
    module_.fail(type.line, "registers of unknown type " + std::string(type.text));
  }
  do {
    const Token& name = reader_.take();
    if (!name.is_word()) module_.fail(name.line, "a register without a name");
    if (reader_.take_if("<")) {
      const uint64_t count = reader_.take_number();
      reader_.expect(">");
      if (count > 60000) module_.fail(name.line, "more registers than the interpreter numbers");
      scopes.back().families[name.text] = {program_.num_slots, count};
      for (uint64_t i = 0; i < count; ++i) {
        new_register(std::string(name.text) + std::to_string(i));
      }
    } else {
      scopes.back().registers[name.text] = new_register(std::string(name.text));
    }
    check_number_of_slots(name.line);
  } while (reader_.take_if(","));
  reader_.expect(";");
}

void Names::check_number_of_slots(uint32_t line) const {
  if (program_.num_slots + constants_.size() >= kNoSlot) {
    module_.fail(line, "more registers than the interpreter numbers");
  }
}

bool Names::find_register(std::string_view name, Slot& slot) const {
  for (auto scope = scopes.rbegin(); scope != scopes.rend(); ++scope) {
    const auto found = scope->registers.find(name);
    if (found != scope->registers.end()) {
      slot = static_cast<Slot>(found->second);
      return true;
    }
    size_t digits = name.size();
    while (digits > 0 && name[digits - 1] >= '0' && name[digits - 1] <= '9') --digits;
    if (digits == name.size()) continue;
    const auto family = scope->families.find(name.substr(0, digits));
    size_t number = 0;
    std::from_chars(name.data() + digits, name.data() + name.size(), number);
    if (family != scope->families.end() && number < family->second.count) {
      slot = static_cast<Slot>(family->second.first + number);
      return true;
    }
  }
  return false;
}

Slot Names::constant(uint64_t bits) {
  const auto [found, is_new] = constants_.try_emplace(bits, constants_.size());
  return static_cast<Slot>(kFirstConstant - found->second);
}

Slot Names::special(std::string_view name, Special which) {
  const auto found = specials_.find(name);
  if (found != specials_.end()) return found->second;
  const Slot slot = static_cast<Slot>(new_register(std::string(name)));
  program_.specials.emplace_back(slot, which);
  specials_[name] = slot;
  return slot;
}

// A number of the text; `negative`: a minus stood before it.
bool Names::literal(std::string_view text, bool negative, uint64_t& bits) const {
  const char* const end = text.data() + text.size();
  if (text.size() > 2 && text[0] == '0' &&
      (text[1] == 'f' || text[1] == 'F' || text[1] == 'd' || text[1] == 'D')) {
    const bool is_double = text[1] == 'd' || text[1] == 'D';
    const auto [stop, error] = std::from_chars(text.data() + 2, end, bits, 16);
    const bool whole = error == std::errc() && stop == end && text.size() == (is_double ? 18 : 10);
    if (negative) bits ^= uint64_t{1} << (is_double ? 63 : 31);
    return whole;
  }
  if (!parse_integer(text, bits)) return false;
  if (negative) bits = ~bits + 1;
  return true;
}

Slot Names::take_value(const char* what) {
  const bool negative = reader_.take_if("-");
  const Token& token = reader_.take();
  Slot slot = kNoSlot;
  uint64_t bits = 0;
  if (token.text == "_") return kNoSlot;
  if (find_register(token.text, slot) && !negative) return slot;
  if (literal(token.text, negative, bits)) return constant(bits);
  const auto known = special_registers().find(token.text);
  if (known != special_registers().end()) return special(token.text, known->second);
  uint64_t address = 0;
  bool is_parameter = false;
  if (find_variable(token.text, address, is_parameter)) return constant(address);
  module_.fail(token.line, "'" + std::string(token.text) + "' is " + what);
}

bool Names::find_variable(std::string_view name, uint64_t& address, bool& is_parameter) const {
  for (auto scope = scopes.rbegin(); scope != scopes.rend(); ++scope) {
    const auto parameter = scope->parameters.find(name);
    const auto local = scope->locals.find(name);
    is_parameter = parameter != scope->parameters.end();
    if (is_parameter) address = parameter->second;
    if (local != scope->locals.end()) address = local->second;
    if (is_parameter || local != scope->locals.end()) return true;
  }
  const auto variable = image_.addresses.find(name);
  if (variable != image_.addresses.end()) address = variable->second;
  return variable != image_.addresses.end();
}

// Constants were numbered from the end; now they follow the registers.
void Names::number_constants() {
  const size_t first = program_.num_slots;
  const auto renumber = [&](Slot& slot) {
    if (slot != kNoSlot && slot >= first) {
      slot = static_cast<Slot>(first + (kFirstConstant - slot));
    }
  };
  for (Instruction& instruction : program_.code) {
    for (Slot& slot : instruction.slots) renumber(slot);
    renumber(instruction.guard);
  }
  program_.constants.resize(constants_.size());
  for (const auto& [bits, number] : constants_) {
    program_.constants[number] = {static_cast<Slot>(first + number), bits};
  }
  program_.num_slots += constants_.size();
  program_.names.resize(program_.num_slots, "a constant");
}

}  // namespace ptx
