// Integers, bits, predicates, moves and conversions between integers.
#include <chrono>
#include <limits>
#include <type_traits>

#include "program.h"

namespace ptx {
namespace {

template <class T, class Operation>
void unary(State& s, const Instruction& i) {
  s.put(i.slots[0], static_cast<T>(Operation::of(s.get<T>(i.slots[1]))));
}
template <class T, class Operation>
void binary(State& s, const Instruction& i) {
  s.put(i.slots[0], static_cast<T>(Operation::of(s.get<T>(i.slots[1]), s.get<T>(i.slots[2]))));
}

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
constexpr int kBits = std::numeric_limits<Unsigned<T>>::digits;
template <class T>
using Twice = std::conditional_t<
    sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                       std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;

// Arithmetic wraps: done on unsigned numbers of at least 32 bits.
#define PTX_WRAPPING(Name, operation)                                             \
  struct Name {                                                                   \
    template <class T>                                                            \
    static T of(T a, T b) {                                                       \
      using Wide = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;        \
      return static_cast<T>(static_cast<Wide>(a) operation static_cast<Wide>(b)); \
    }                                                                             \
  };
PTX_WRAPPING(Add, +)
PTX_WRAPPING(Subtract, -)
PTX_WRAPPING(MultiplyLow, *)
PTX_WRAPPING(And, &)
PTX_WRAPPING(Or, |)
PTX_WRAPPING(Xor, ^)
#undef PTX_WRAPPING

struct MultiplyHigh {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(static_cast<Twice<T>>(a) * static_cast<Twice<T>>(b) >> kBits<T>);
  }
};
struct Divide {  // by 0: unspecified by the ISA; all ones on the hardware
  template <class T>
  static T of(T a, T b) {
    if (b == 0) return static_cast<T>(~T{0});
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Subtract::of(T{0}, a);
    return static_cast<T>(a / b);
  }
};
struct Remainder {
  template <class T>
  static T of(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
struct Minimum {
  template <class T>
  static T of(T a, T b) {
    return b < a ? b : a;
  }
};
struct Maximum {
  template <class T>
  static T of(T a, T b) {
    return a < b ? b : a;
  }
};
struct Negate {
  template <class T>
  static T of(T a) {
    return Subtract::of(T{0}, a);
  }
};
struct Absolute {
  template <class T>
  static T of(T a) {
    return a < 0 ? Subtract::of(T{0}, a) : a;
  }
};
struct Not {
  template <class T>
  static T of(T a) {
    return static_cast<T>(~a);
  }
};
// Shifts take 32 bits, and clamp them to the width.
template <class T>
void shift_left(State& s, const Instruction& i) {
  const uint32_t by = s.get<uint32_t>(i.slots[2]);
  const Unsigned<T> a = s.get<Unsigned<T>>(i.slots[1]);
  s.put(i.slots[0], static_cast<Unsigned<T>>(by >= kBits<T> ? 0 : a << by));
}
template <class T>
void shift_right(State& s, const Instruction& i) {
  const uint32_t by = s.get<uint32_t>(i.slots[2]);
  const T a = s.get<T>(i.slots[1]);
  const T all = std::is_signed_v<T> && a < 0 ? static_cast<T>(~T{0}) : T{0};
  s.put(i.slots[0], static_cast<T>(by >= kBits<T> ? all : a >> by));
}
template <class T>
void multiply_add(State& s, const Instruction& i) {
  const T product = MultiplyLow::of(s.get<T>(i.slots[1]), s.get<T>(i.slots[2]));
  s.put(i.slots[0], Add::of(product, s.get<T>(i.slots[3])));
}
template <class T>
void multiply_wide(State& s, const Instruction& i) {
  s.put(i.slots[0], static_cast<Twice<T>>(static_cast<Twice<T>>(s.get<T>(i.slots[1])) *
                                          static_cast<Twice<T>>(s.get<T>(i.slots[2]))));
}
template <class T>
void multiply_add_wide(State& s, const Instruction& i) {
  const auto product = static_cast<Twice<T>>(static_cast<Twice<T>>(s.get<T>(i.slots[1])) *
                                             static_cast<Twice<T>>(s.get<T>(i.slots[2])));
  s.put(i.slots[0], Add::of(product, s.get<Twice<T>>(i.slots[3])));
}
template <class T>
void multiply_add_high(State& s, const Instruction& i) {
  const T product = MultiplyHigh::of(s.get<T>(i.slots[1]), s.get<T>(i.slots[2]));
  s.put(i.slots[0], Add::of(product, s.get<T>(i.slots[3])));
}

// Predicates are 0 or 1.
struct LogicalAnd {
  static bool of(bool a, bool b) { return a && b; }
};
struct LogicalOr {
  static bool of(bool a, bool b) { return a || b; }
};
struct LogicalXor {
  static bool of(bool a, bool b) { return a != b; }
};
template <class Operation>
void logical(State& s, const Instruction& i) {
  s.put(i.slots[0],
        Operation::of(s.get<uint64_t>(i.slots[1]) != 0, s.get<uint64_t>(i.slots[2]) != 0));
}
void logical_not(State& s, const Instruction& i) {
  s.put(i.slots[0], s.get<uint64_t>(i.slots[1]) == 0);
}

template <class T>
void move(State& s, const Instruction& i) {
  s.put(i.slots[0], s.get<T>(i.slots[1]));
}
// mov.b64 d, {a, b}, and back: `count` parts of `bytes`.
void pack(State& s, const Instruction& i) {
  uint64_t bits = 0;
  const uint64_t mask = i.bytes == 4 ? 0xffffffffu : i.bytes == 2 ? 0xffffu : 0xffu;
  for (int part = 0; part < i.count; ++part) {
    bits |= (s.get<uint64_t>(i.slots[1 + part]) & mask) << 8 * i.bytes * part;
  }
  s.put(i.slots[0], bits);
}
void unpack(State& s, const Instruction& i) {
  const uint64_t bits = s.get<uint64_t>(i.slots[i.count]);
  const uint64_t mask = i.bytes == 4 ? 0xffffffffu : i.bytes == 2 ? 0xffffu : 0xffu;
  for (int part = 0; part < i.count; ++part) {
    s.put(i.slots[part], bits >> 8 * i.bytes * part & mask);
  }
}
void read_clock(State& s, const Instruction& i) {
  // Not the machine's time: the instructions a thread has run are not those of a GPU.
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
  s.put(i.slots[0], static_cast<uint64_t>(ns));
}
template <class T>
void select(State& s, const Instruction& i) {
  s.put(i.slots[0], s.get<T>(i.slots[s.get<uint64_t>(i.slots[3]) != 0 ? 1 : 2]));
}

// From integer to integer: the source's type decides about the sign, saturation is the
// destination's.
template <class To, class From, bool Saturates>
void convert(State& s, const Instruction& i) {
  const From from = s.get<From>(i.slots[1]);
  To to = static_cast<To>(from);
  if constexpr (Saturates) {
    const __int128 wide = from;
    if (wide > std::numeric_limits<To>::max()) to = std::numeric_limits<To>::max();
    if (wide < std::numeric_limits<To>::min()) to = std::numeric_limits<To>::min();
  }
  // A register may be wider than the type: signs reach its end.
  if constexpr (std::is_signed_v<To>)
    s.put(i.slots[0], static_cast<int64_t>(to));
  else
    s.put(i.slots[0], to);
}

// The handler of an operation for a type; null if there is none. `signs`: whether .b types count.
template <template <class> class Wanted>
Handler for_type(std::string_view type) {
  if (type == "u16" || type == "b16") return Wanted<uint16_t>::value;
  if (type == "s16") return Wanted<int16_t>::value;
  if (type == "u32" || type == "b32") return Wanted<uint32_t>::value;
  if (type == "s32") return Wanted<int32_t>::value;
  if (type == "u64" || type == "b64") return Wanted<uint64_t>::value;
  if (type == "s64") return Wanted<int64_t>::value;
  return nullptr;
}
#define PTX_HANDLERS(Name, handler)             \
  template <class T>                            \
  struct Name {                                 \
    static constexpr Handler value = (handler); \
  };
PTX_HANDLERS(Adds, (binary<T, Add>))
PTX_HANDLERS(Subtracts, (binary<T, Subtract>))
PTX_HANDLERS(MultipliesLow, (binary<T, MultiplyLow>))
PTX_HANDLERS(MultipliesHigh, (binary<T, MultiplyHigh>))
PTX_HANDLERS(Divides, (binary<T, Divide>))
PTX_HANDLERS(Remainders, (binary<T, Remainder>))
PTX_HANDLERS(Minima, (binary<T, Minimum>))
PTX_HANDLERS(Maxima, (binary<T, Maximum>))
PTX_HANDLERS(Ands, (binary<T, And>))
PTX_HANDLERS(Ors, (binary<T, Or>))
PTX_HANDLERS(Xors, (binary<T, Xor>))
PTX_HANDLERS(Negates, (unary<T, Negate>))
PTX_HANDLERS(Absolutes, (unary<T, Absolute>))
PTX_HANDLERS(Nots, (unary<T, Not>))
PTX_HANDLERS(LeftShifts, (shift_left<T>))
PTX_HANDLERS(RightShifts, (shift_right<T>))
PTX_HANDLERS(MultiplyAdds, (multiply_add<T>))
PTX_HANDLERS(MultiplyAddsHigh, (multiply_add_high<T>))
PTX_HANDLERS(Moves, (move<T>))
PTX_HANDLERS(Selects, (select<T>))
#undef PTX_HANDLERS
template <template <class> class Wanted>
Handler for_narrow_type(std::string_view type) {
  if (type == "u16") return Wanted<uint16_t>::value;
  if (type == "s16") return Wanted<int16_t>::value;
  if (type == "u32") return Wanted<uint32_t>::value;
  if (type == "s32") return Wanted<int32_t>::value;
  return nullptr;
}
template <class T>
struct MultipliesWide {
  static constexpr Handler value = multiply_wide<T>;
};
template <class T>
struct MultiplyAddsWide {
  static constexpr Handler value = multiply_add_wide<T>;
};

template <class To, bool Saturates>
Handler conversion_from(std::string_view from) {
  if (from == "u8") return convert<To, uint8_t, Saturates>;
  if (from == "s8") return convert<To, int8_t, Saturates>;
  if (from == "u16") return convert<To, uint16_t, Saturates>;
  if (from == "s16") return convert<To, int16_t, Saturates>;
  if (from == "u32") return convert<To, uint32_t, Saturates>;
  if (from == "s32") return convert<To, int32_t, Saturates>;
  if (from == "u64") return convert<To, uint64_t, Saturates>;
  if (from == "s64") return convert<To, int64_t, Saturates>;
  return nullptr;
}
template <bool Saturates>
Handler conversion(std::string_view to, std::string_view from) {
  if (to == "u8") return conversion_from<uint8_t, Saturates>(from);
  if (to == "s8") return conversion_from<int8_t, Saturates>(from);
  if (to == "u16") return conversion_from<uint16_t, Saturates>(from);
  if (to == "s16") return conversion_from<int16_t, Saturates>(from);
  if (to == "u32") return conversion_from<uint32_t, Saturates>(from);
  if (to == "s32") return conversion_from<int32_t, Saturates>(from);
  if (to == "u64") return conversion_from<uint64_t, Saturates>(from);
  if (to == "s64") return conversion_from<int64_t, Saturates>(from);
  return nullptr;
}

bool is(const Statement& statement, size_t parts) { return statement.parts.size() == parts; }

bool take(Instruction& instruction, Handler handler, const Statement& statement, int read,
          Class kind) {
  if (!handler) return false;
  instruction.run = handler;
  instruction.kind = kind;
  set_slots(instruction, statement, 1, read);
  return true;
}

bool decode_move(const Statement& statement, Instruction& instruction) {
  instruction.kind = Class::kMove;
  if (statement.operands.size() != 2 || !is(statement, 2)) return false;
  const std::string type = "." + std::string(statement.type());
  const Operand &to = statement.operands[0], &from = statement.operands[1];
  if (from.kind == Operand::kName) {  // a clock
    Statement written;
    written.parts = statement.parts;
    written.operands = {to};
    instruction.run = read_clock;
    set_slots(instruction, written, 1, 0);
    return true;
  }
  if (to.kind == Operand::kVector || from.kind == Operand::kVector) {
    const size_t parts = std::max(to.elements.size(), from.elements.size());
    const uint32_t bytes = type_bytes(type);
    if (to.kind == from.kind || (parts != 2 && parts != 4) || bytes < parts) return false;
    instruction.count = static_cast<uint8_t>(parts);
    instruction.bytes = static_cast<uint8_t>(bytes / parts);
    const bool packs = from.kind == Operand::kVector;
    instruction.run = packs ? pack : unpack;
    const int written = packs ? 1 : static_cast<int>(parts);
    set_slots(instruction, statement, written, static_cast<int>(parts) + 1 - written);
    return true;
  }
  Handler handler = for_type<Moves>(statement.type());
  if (statement.type() == "f32") handler = move<uint32_t>;
  if (statement.type() == "f64") handler = move<uint64_t>;
  if (statement.type() == "pred") handler = move<uint64_t>;
  return take(instruction, handler, statement, 1, Class::kMove);
}

}  // namespace

bool decode_arithmetic(const Statement& statement, Instruction& instruction) {
  const std::string_view base = statement.parts[0], type = statement.type();
  const auto simple = [&](Handler handler, int read) {
    return is(statement, 2) && take(instruction, handler, statement, read, Class::kInteger);
  };
  const auto middle = [&](std::string_view part, Handler handler, int read) {
    return is(statement, 3) && statement.parts[1] == part &&
           take(instruction, handler, statement, read, Class::kInteger);
  };
  if (base == "mov") return decode_move(statement, instruction);
  if (base == "add") return simple(for_type<Adds>(type), 2);
  if (base == "sub") return simple(for_type<Subtracts>(type), 2);
  if (base == "mul" || base == "mad") {
    const bool adds = base == "mad";
    const int read = adds ? 3 : 2;
    return middle("lo", adds ? for_type<MultiplyAdds>(type) : for_type<MultipliesLow>(type),
                  read) ||
           middle("hi", adds ? for_type<MultiplyAddsHigh>(type) : for_type<MultipliesHigh>(type),
                  read) ||
           middle("wide",
                  adds ? for_narrow_type<MultiplyAddsWide>(type)
                       : for_narrow_type<MultipliesWide>(type),
                  read);
  }
  if (base == "div") return simple(for_type<Divides>(type), 2);
  if (base == "rem") return simple(for_type<Remainders>(type), 2);
  if (base == "min") return simple(for_type<Minima>(type), 2);
  if (base == "max") return simple(for_type<Maxima>(type), 2);
  if (base == "neg") return simple(for_type<Negates>(type), 1);
  if (base == "abs") return type[0] == 's' && simple(for_type<Absolutes>(type), 1);
  if (base == "shl") return simple(for_type<LeftShifts>(type), 2);
  if (base == "shr") return simple(for_type<RightShifts>(type), 2);
  if (type == "pred" && is(statement, 2)) {
    const Handler handler = base == "and"   ? logical<LogicalAnd>
                            : base == "or"  ? logical<LogicalOr>
                            : base == "xor" ? logical<LogicalXor>
                            : base == "not" ? logical_not
                                            : nullptr;
    return take(instruction, handler, statement, base == "not" ? 1 : 2, Class::kPredicate);
  }
  if (base == "and") return simple(for_type<Ands>(type), 2);
  if (base == "or") return simple(for_type<Ors>(type), 2);
  if (base == "xor") return simple(for_type<Xors>(type), 2);
  if (base == "not") return simple(for_type<Nots>(type), 1);
  if (base == "selp") {
    Handler handler = for_type<Selects>(type);
    if (type == "f32") handler = select<uint32_t>;
    if (type == "f64") handler = select<uint64_t>;
    instruction.selects = true;
    return is(statement, 2) && take(instruction, handler, statement, 3, Class::kPredicate);
  }
  if (base == "cvt" && (is(statement, 3) || (is(statement, 4) && statement.parts[1] == "sat"))) {
    const std::string_view to = statement.parts[statement.parts.size() - 2];
    return take(instruction,
                is(statement, 4) ? conversion<true>(to, type) : conversion<false>(to, type),
                statement, 1, Class::kConvert);
  }
  return false;
}

}  // namespace ptx
