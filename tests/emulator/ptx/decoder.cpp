// From the statements of a function to its program.
#include <algorithm>
#include <tuple>

#include "names.h"

namespace ptx {
namespace {

class Decoder {
 public:
  Decoder(Image& image, const Function& function)
      : module_(*image.module),
        function_(function),
        reader_(module_, function.first_token, function.end_token),
        program_(std::make_unique<Program>()),
        names_(image, reader_, *program_) {
    program_->image = &image;
    program_->function = &function;
  }

  std::unique_ptr<Program> run() {
    declare_formals();
    while (!reader_.at_end()) take_statement();
    if (names_.scopes.size() != 1) module_.fail(last_line(), "a scope without an end");
    const Token& end = module_.tokens[function_.end_token];
    add_return(end);
    resolve_labels();
    names_.number_constants();
    find_unwritten_reads(*program_);
    return std::move(program_);
  }

 private:
  uint32_t last_line() const { return module_.tokens[function_.end_token].line; }

  // -- Declarations -------------------------------------------------------------------------------

  uint64_t place(uint64_t& total, const Variable& variable) {
    const uint64_t alignment = std::max(1u, variable.alignment);
    total = (total + alignment - 1) / alignment * alignment;
    const uint64_t offset = total;
    total += variable.bytes;
    return offset;
  }

  void declare_formals() {
    names_.scopes.emplace_back();
    for (const auto* formals : {&function_.results, &function_.parameters}) {
      for (const Variable& formal : *formals) {
        const uint64_t offset = place(program_->parameter_bytes, formal);
        names_.scopes.back().parameters[formal.name] = offset;
        program_->parameter_offsets.push_back(offset);
      }
    }
    program_->formal_bytes = program_->parameter_bytes;
  }

  // .loc file line column [, function_name label, inlined_at file line column]
  void take_source_line(const Token& directive) {
    SourceLine here;
    here.file = static_cast<uint32_t>(reader_.take_number());
    here.line = static_cast<uint32_t>(reader_.take_number());
    const uint64_t column = reader_.take_number();
    const auto file = module_.source_files.find(here.file);
    here.text =
        (file == module_.source_files.end() ? "?" : file->second) + ":" + std::to_string(here.line);
    while (!reader_.at_end() && reader_.peek().line == directive.line) {
      if (reader_.take().text != "inlined_at") continue;
      const uint64_t at_file = reader_.take_number(), at_line = reader_.take_number();
      const auto call = positions_.find({at_file, at_line, reader_.take_number()});
      if (call != positions_.end()) {
        here.inlined_at = call->second;
        here.text = program_->sources[call->second].text + " > " + here.text;
      }
    }
    const auto [known, is_new] =
        texts_.try_emplace(here.text, static_cast<int32_t>(program_->sources.size()));
    if (is_new) program_->sources.push_back(here);
    source_ = known->second;
    positions_[{here.file, here.line, column}] = source_;
  }

  // -- Operands -----------------------------------------------------------------------------------

  Operand take_operand() {
    Operand operand;
    const Token& first = reader_.peek();
    if (reader_.take_if("[")) {
      operand.kind = Operand::kAddress;
      uint64_t address = 0;
      if (names_.find_variable(reader_.peek().text, address, operand.is_parameter))
        reader_.take();
      else
        operand.slot = names_.take_value("no address");
      if (operand.slot == kNoSlot) operand.slot = names_.constant(address);
      while (reader_.take_if("+")) {
        const bool negative = reader_.take_if("-");
        const uint64_t offset = reader_.take_number();
        const uint64_t sum =
            static_cast<uint64_t>(operand.offset) + (negative ? ~offset + 1 : offset);
        operand.offset = static_cast<int64_t>(sum);
      }
      reader_.expect("]");
    } else if (reader_.take_if("{")) {
      operand.kind = Operand::kVector;
      do {
        operand.elements.push_back(names_.take_value("no register, constant or variable"));
      } while (reader_.take_if(","));
      reader_.expect("}");
    } else if (labels_wanted_ || is_clock(first.text)) {
      operand.kind = Operand::kName;
      operand.name = reader_.take().text;
    } else {
      operand.kind = Operand::kSlot;
      operand.slot = names_.take_value("no register, constant or variable");
      if (reader_.take_if("|")) operand.second = names_.take_value("no register");
    }
    return operand;
  }

  // -- Statements ---------------------------------------------------------------------------------

  void take_statement() {
    const Token& first = reader_.take();
    if (first.text == "{") {
      names_.scopes.emplace_back();
    } else if (first.text == "}") {
      if (names_.scopes.size() == 1) module_.fail(first.line, "a scope ends that has not begun");
      names_.scopes.pop_back();
    } else if (first.text == ".loc") {
      take_source_line(first);
    } else if (first.text == ".reg") {
      names_.declare_registers();
    } else if (first.text == ".param" || first.text == ".local") {
      const bool is_parameter = first.text == ".param";
      const Variable variable =
          parse_variable(reader_, is_parameter ? Space::kParam : Space::kLocal);
      Scope& scope = names_.scopes.back();
      if (is_parameter) {
        scope.parameters[variable.name] = place(program_->parameter_bytes, variable);
        parameter_sizes_[variable.name] = variable.bytes;
      } else {
        scope.locals[variable.name] = kLocalBase + place(program_->local_bytes, variable);
      }
      if (program_->local_bytes + program_->parameter_bytes > 1 << 20) {
        module_.fail(first.line, "more local memory than the interpreter gives a thread");
      }
      reader_.expect(";");
    } else if (first.text == ".shared" || first.text == ".pragma" ||
               first.text == ".callprototype") {
      while (!reader_.take_if(";")) reader_.take();
    } else if (first.text == ";") {
    } else if (first.text.front() == '.') {
      module_.fail(first.line, "unknown directive " + std::string(first.text));
    } else if (!reader_.at_end() && reader_.peek().text == ":") {
      reader_.take();
      if (reader_.take_if(".branchtargets")) return take_table(first.text);
      if (!labels_.try_emplace(first.text, program_->code.size()).second) {
        module_.fail(first.line, "label " + std::string(first.text) + " stands twice");
      }
    } else {
      take_instruction(first);
    }
  }

  void take_table(std::string_view name) {
    std::vector<std::string_view> labels;
    do labels.push_back(reader_.take_name());
    while (reader_.take_if(","));
    reader_.expect(";");
    tables_[name] = labels;
  }

  void take_guard(Instruction& instruction) {
    instruction.guard_negated = reader_.take_if("!");
    instruction.guard = names_.take_value("no predicate");
  }

  void take_instruction(const Token& first) {
    Instruction instruction;
    std::fill(instruction.slots, instruction.slots + kMostSlots, kNoSlot);
    if (first.text == "@") take_guard(instruction);
    const Token opcode = first.text == "@" ? reader_.take() : first;
    if (!opcode.is_word()) {
      module_.fail(opcode.line, "'" + std::string(opcode.text) + "' where an opcode should stand");
    }
    Statement statement;
    for (size_t begin = 0; begin <= opcode.text.size();) {
      const size_t dot = std::min(opcode.text.find('.', begin), opcode.text.size());
      statement.parts.push_back(opcode.text.substr(begin, dot - begin));
      begin = dot + 1;
    }
    const std::string_view base = statement.parts[0];
    try {
      if (base == "call") {
        take_call(instruction);
      } else {
        labels_wanted_ = base == "bra" || base == "brx";
        if (base == "brx") {
          labels_wanted_ = false;
          statement.operands.push_back(take_operand());
          reader_.expect(",");
          labels_wanted_ = true;
          statement.operands.push_back(take_operand());
        } else if (reader_.peek().text != ";") {
          do statement.operands.push_back(take_operand());
          while (reader_.take_if(","));
        }
        labels_wanted_ = false;
      }
      reader_.expect(";");
      if (base != "call") decode_statement(statement, instruction, opcode);
    } catch (const std::string& problem) {
      module_.fail(opcode.line, std::string(opcode.text) + ": " + problem);
    }
    add(instruction, first, opcode);
  }

  void decode_statement(const Statement& statement, Instruction& instruction, const Token& opcode) {
    const std::string_view base = statement.parts[0];
    if (base == "bra" || base == "brx") {
      const bool by_table = base == "brx";
      instruction.kind = Class::kControl;
      instruction.run = by_table ? branch_by_table : branch;
      if (statement.operands.size() != (by_table ? 2u : 1u)) throw std::string("wrong operands");
      jumps_.emplace_back(program_->code.size(), statement.operands.back().name, opcode.line);
      if (by_table) {
        instruction.slots[0] = statement.operands[0].slot;
        instruction.num_slots = 1;
      }
      return;
    }
    const bool known =
        decode_arithmetic(statement, instruction) || decode_bits(statement, instruction) ||
        decode_float(statement, instruction) || decode_asynchronous(statement, instruction) ||
        decode_access(statement, instruction) || decode_synchronisation(statement, instruction);
    if (!known) throw std::string("unknown opcode, or a modifier the interpreter does not know");
  }

  uint64_t parameter_offset(const Token& name) {
    uint64_t offset = 0;
    bool is_parameter = false;
    if (!names_.find_variable(name.text, offset, is_parameter) || !is_parameter) {
      module_.fail(name.line, "'" + std::string(name.text) + "' is no parameter");
    }
    return offset;
  }

  void take_call(Instruction& instruction) {
    CallSite site;
    const auto take_list = [&](auto& list) {
      reader_.expect("(");
      while (!reader_.take_if(")")) {
        if (!list.empty()) reader_.expect(",");
        const Token& name = reader_.take();
        list.emplace_back(parameter_offset(name), parameter_sizes_[name.text]);
      }
    };
    if (reader_.peek().text == "(") {
      take_list(site.results);
      reader_.expect(",");
    }
    const Token& name = reader_.take();
    const auto callee = module_.functions.find(name.text);
    if (callee == module_.functions.end()) {
      module_.fail(name.line, "call of " + std::string(name.text) +
                                  ", which is no function of the module (indirect calls are not "
                                  "known)");
    }
    site.callee = &callee->second;
    if (reader_.take_if(",")) take_list(site.arguments);
    if (site.arguments.size() != site.callee->parameters.size() ||
        site.results.size() != site.callee->results.size()) {
      throw std::string("not as many parameters as the function has");
    }
    instruction.kind = Class::kControl;
    instruction.run = call;
    instruction.immediate = static_cast<int64_t>(program_->calls.size());
    program_->calls.push_back(std::move(site));
  }

  void add(const Instruction& instruction, const Token& first, const Token& opcode) {
    const Token& last = module_.tokens[reader_.position() - 1];
    const size_t length =
        static_cast<size_t>(last.text.data() + last.text.size() - first.text.data());
    program_->code.push_back(instruction);
    program_->origins.push_back(
        {opcode.line, source_, opcode.text, std::string_view(first.text.data(), length)});
    names_.check_number_of_slots(opcode.line);
  }

  // A function may end without one.
  void add_return(const Token& end) {
    Instruction instruction;
    std::fill(instruction.slots, instruction.slots + kMostSlots, kNoSlot);
    instruction.kind = Class::kControl;
    instruction.run = return_from;
    program_->code.push_back(instruction);
    program_->origins.push_back({end.line, source_, "ret", end.text});
  }

  int64_t target_of(std::string_view label, uint32_t line) const {
    const auto found = labels_.find(label);
    if (found == labels_.end()) {
      module_.fail(line, "there is no label " + std::string(label));
    }
    return static_cast<int64_t>(found->second);
  }

  void resolve_labels() {
    for (const auto& [index, label, line] : jumps_) {
      Instruction& instruction = program_->code[index];
      if (instruction.run == branch) {
        instruction.immediate = target_of(label, line);
        continue;
      }
      const auto table = tables_.find(label);
      if (table == tables_.end()) {
        module_.fail(line, "there is no .branchtargets " + std::string(label));
      }
      instruction.immediate = static_cast<int64_t>(program_->tables.size());
      auto& targets = program_->tables.emplace_back();
      for (const std::string_view target : table->second) {
        targets.push_back(static_cast<uint32_t>(target_of(target, line)));
      }
    }
  }

  const Module& module_;
  const Function& function_;
  TokenReader reader_;
  std::unique_ptr<Program> program_;
  Names names_;
  std::map<std::string_view, size_t> labels_;
  std::map<std::string_view, std::vector<std::string_view>> tables_;
  std::map<std::string_view, uint64_t> parameter_sizes_;
  std::vector<std::tuple<size_t, std::string_view, uint32_t>> jumps_;
  std::map<std::tuple<uint64_t, uint64_t, uint64_t>, int32_t> positions_;  // of .loc
  std::map<std::string, int32_t> texts_;
  int32_t source_ = -1;
  bool labels_wanted_ = false;
};

}  // namespace

bool Statement::has(std::string_view part) const {
  return std::find(parts.begin() + 1, parts.end(), part) != parts.end();
}

void set_slots(Instruction& instruction, const Statement& statement, int written, int read) {
  std::vector<Slot> slots;
  for (const Operand& operand : statement.operands) {
    if (operand.kind == Operand::kVector) {
      slots.insert(slots.end(), operand.elements.begin(), operand.elements.end());
    } else if (operand.kind == Operand::kSlot || operand.kind == Operand::kAddress) {
      slots.push_back(operand.slot);
      if (operand.kind == Operand::kAddress) instruction.immediate = operand.offset;
    } else {
      throw std::string("an operand that is no value");
    }
    if (operand.second != kNoSlot) throw std::string("'|' where it has no meaning");
  }
  if (slots.size() != static_cast<size_t>(written + read) || slots.size() > kMostSlots) {
    throw std::to_string(slots.size()) + " operands in place of " + std::to_string(written + read);
  }
  std::copy(slots.begin(), slots.end(), instruction.slots);
  instruction.num_written = static_cast<uint8_t>(written);
  instruction.num_slots = static_cast<uint8_t>(slots.size());
  for (int i = written; i < written + read; ++i) {
    if (instruction.slots[i] == kNoSlot) throw std::string("'_' where a value is read");
  }
}

std::unique_ptr<Program> decode(Image& image, const Function& function) {
  return Decoder(image, function).run();
}

}  // namespace ptx
