// setp: comparisons of floats and integers.
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "rounding.h"

namespace ptx {
namespace {

enum Comparison : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kNum, kNan };

template <class T>
bool compare(int comparison, T a, T b) {
  switch (comparison) {
    case kEq:
      return a == b;
    case kNe:
      return a < b || b < a;  // ordered
    case kLt:
      return a < b;
    case kLe:
      return a <= b;
    case kGt:
      return a > b;
    case kGe:
      return a >= b;
    case kNum:
      return a == a && b == b;
    default:
      return a != a || b != b;
  }
}

// detail: the comparison; 8: or unordered; 16, 32, 48: with a third operand by and, or, xor.
constexpr uint8_t kUnordered = 8, kCombined = 48;
template <class T>
void set_predicate(State& s, const Instruction& i) {
  T a = s.get<T>(i.slots[i.num_written]), b = s.get<T>(i.slots[i.num_written + 1]);
  if constexpr (sizeof(T) == 4 && !std::numeric_limits<T>::is_integer) {
    if (i.count == kFlush) {
      a = std::fpclassify(a) == FP_SUBNORMAL ? 0 : a;
      b = std::fpclassify(b) == FP_SUBNORMAL ? 0 : b;
    }
  }
  const auto combined = [&](bool result) {
    if (!(i.detail & kCombined)) return result;
    const bool third = s.get<uint64_t>(i.slots[i.num_written + 2]) != 0;
    const int how = (i.detail & kCombined) >> 4;
    return how == 1 ? result && third : how == 2 ? result || third : result != third;
  };
  bool result = compare(i.detail & 7, a, b);
  if (i.detail & kUnordered) result = result || compare(kNan, a, b);
  s.put(i.slots[0], combined(result));
  if (i.num_written == 2) s.put(i.slots[1], combined(!result));
}

}  // namespace

bool decode_setp(const Statement& statement, Instruction& instruction) {
  static const std::map<std::string_view, uint8_t> comparisons{{"eq", kEq},
                                                               {"ne", kNe},
                                                               {"lt", kLt},
                                                               {"le", kLe},
                                                               {"gt", kGt},
                                                               {"ge", kGe},
                                                               {"lo", kLt},
                                                               {"ls", kLe},
                                                               {"hi", kGt},
                                                               {"hs", kGe},
                                                               {"num", kNum},
                                                               {"nan", kNan},
                                                               {"equ", kEq | kUnordered},
                                                               {"neu", kNe | kUnordered},
                                                               {"ltu", kLt | kUnordered},
                                                               {"leu", kLe | kUnordered},
                                                               {"gtu", kGt | kUnordered},
                                                               {"geu", kGe | kUnordered}};
  static const std::map<std::string_view, uint8_t> combinations{
      {"and", 16}, {"or", 32}, {"xor", 48}};
  static const std::map<std::string_view, Handler> handlers{
      {"b16", set_predicate<uint16_t>}, {"u16", set_predicate<uint16_t>},
      {"s16", set_predicate<int16_t>},  {"b32", set_predicate<uint32_t>},
      {"u32", set_predicate<uint32_t>}, {"s32", set_predicate<int32_t>},
      {"b64", set_predicate<uint64_t>}, {"u64", set_predicate<uint64_t>},
      {"s64", set_predicate<int64_t>},  {"f32", set_predicate<float>},
      {"f64", set_predicate<double>}};
  const auto handler = handlers.find(statement.type());
  if (handler == handlers.end() || statement.parts.size() < 3) return false;
  int read = 2;
  instruction.count = 0;  // or kFlush
  const auto comparison = comparisons.find(statement.parts[1]);
  if (comparison == comparisons.end()) return false;
  instruction.detail = comparison->second;
  for (size_t part = 2; part + 1 < statement.parts.size(); ++part) {
    const auto combination = combinations.find(statement.parts[part]);
    if (combination != combinations.end()) {
      instruction.detail |= combination->second;
      read = 3;
    } else if (statement.parts[part] == "ftz") {
      instruction.count = kFlush;
    } else {
      return false;
    }
  }
  Statement operands = statement;
  int written = 1;
  if (!operands.operands.empty() && operands.operands[0].second != kNoSlot) {
    Operand second;
    second.kind = Operand::kSlot;
    second.slot = std::exchange(operands.operands[0].second, kNoSlot);
    operands.operands.insert(operands.operands.begin() + 1, second);
    written = 2;
  }
  instruction.run = handler->second;
  instruction.kind = Class::kPredicate;
  set_slots(instruction, operands, written, read);
  return true;
}

}  // namespace ptx
