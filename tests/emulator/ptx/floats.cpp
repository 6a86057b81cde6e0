// Floating point: every operation with the rounding it names; the approximate
// functions err as much as the emulator's do.
#include <cmath>

#include "rounding.h"

namespace ptx {
namespace {

using birnn::emulator::approximate;

// noinline: between the changes of the rounding mode, and not computed beforehand.
template <class T>
[[gnu::noinline]] T add(T a, T b) {
  return a + b;
}
template <class T>
[[gnu::noinline]] T multiply(T a, T b) {
  return a * b;
}
template <class T>
[[gnu::noinline]] T divide(T a, T b) {
  return a / b;
}

#define PTX_BINARY(name, expression)                                                    \
  template <class T>                                                                    \
  void name(State& s, const Instruction& i) {                                           \
    const T a = flushed(s.get<T>(i.slots[1]), i), b = flushed(s.get<T>(i.slots[2]), i); \
    const Rounding rounding(rounding_of(i));                                            \
    s.put(i.slots[0], finished<T>(expression, i));                                      \
  }
#define PTX_UNARY(name, expression)                \
  template <class T>                               \
  void name(State& s, const Instruction& i) {      \
    const T a = flushed(s.get<T>(i.slots[1]), i);  \
    const Rounding rounding(rounding_of(i));       \
    s.put(i.slots[0], finished<T>(expression, i)); \
  }
PTX_BINARY(do_add, add(a, b))
PTX_BINARY(do_subtract, add(a, -b))
PTX_BINARY(do_multiply, multiply(a, b))
PTX_BINARY(do_divide, divide(a, b))
PTX_BINARY(do_minimum, std::fmin(a, b))
PTX_BINARY(do_maximum, std::fmax(a, b))
PTX_BINARY(do_copysign, std::copysign(b, a))
PTX_UNARY(do_negate, -a)
PTX_UNARY(do_absolute, std::fabs(a))
PTX_UNARY(do_reciprocal, divide(T{1}, a))
PTX_UNARY(do_root, std::sqrt(a))
PTX_UNARY(approximate_reciprocal, static_cast<T>(approximate(static_cast<float>(1 / a), 0x1p-23f)))
PTX_UNARY(approximate_root, static_cast<T>(approximate(std::sqrt(a), 0x1p-23f)))
PTX_UNARY(approximate_reverse_root, static_cast<T>(approximate(1 / std::sqrt(a), 0x1p-22f)))
// Of whole numbers exact, which the CUDA library's functions of doubles build on.
PTX_UNARY(approximate_exponential,
          static_cast<T>(a == std::nearbyint(a) ? std::exp2(a)
                                                : approximate(std::exp2(a), 0x1p-22f)))
PTX_UNARY(approximate_logarithm, static_cast<T>(approximate(std::log2(a), 0x1p-22f)))
PTX_UNARY(approximate_sine, static_cast<T>(approximate(std::sin(a), 0x1p-20f)))
PTX_UNARY(approximate_cosine, static_cast<T>(approximate(std::cos(a), 0x1p-20f)))
PTX_UNARY(approximate_tangent, static_cast<T>(approximate(std::tanh(a), 0x1p-11f)))
PTX_BINARY(approximate_quotient, static_cast<T>(approximate(static_cast<float>(a / b), 0x1p-22f)))

template <class T>
void do_multiply_add(State& s, const Instruction& i) {
  const T a = flushed(s.get<T>(i.slots[1]), i), b = flushed(s.get<T>(i.slots[2]), i);
  const T c = flushed(s.get<T>(i.slots[3]), i);
  const Rounding rounding(rounding_of(i));
  s.put(i.slots[0], finished<T>(std::fma(a, b, c), i));
}

// rcp.approx.ftz.f64: of the upper halves alone, to about 20 bits.
void gross_reciprocal(State& s, const Instruction& i) {
  uint64_t bits = s.get<uint64_t>(i.slots[1]) & ~uint64_t{0xffffffff};
  double value;
  std::memcpy(&value, &bits, sizeof value);
  if (std::fpclassify(value) == FP_SUBNORMAL) value = std::copysign(0.0, value);
  value = 1 / value;
  if (std::fpclassify(value) == FP_SUBNORMAL) value = std::copysign(0.0, value);
  std::memcpy(&bits, &value, sizeof bits);
  s.put(i.slots[0], std::isnan(value) ? bits : bits & ~uint64_t{0xffffffff});
}

// ---------------------------------------------------------------------------------------------

struct Operation {
  std::string_view base;
  Handler f32, f64;
  int read;
  bool approximate;  // asks for .approx (or .full), and is the special unit's
};

const Operation kOperations[] = {
    {"add", do_add<float>, do_add<double>, 2, false},
    {"sub", do_subtract<float>, do_subtract<double>, 2, false},
    {"mul", do_multiply<float>, do_multiply<double>, 2, false},
    {"div", do_divide<float>, do_divide<double>, 2, false},
    {"fma", do_multiply_add<float>, do_multiply_add<double>, 3, false},
    {"mad", do_multiply_add<float>, do_multiply_add<double>, 3, false},
    {"min", do_minimum<float>, do_minimum<double>, 2, false},
    {"max", do_maximum<float>, do_maximum<double>, 2, false},
    {"neg", do_negate<float>, do_negate<double>, 1, false},
    {"abs", do_absolute<float>, do_absolute<double>, 1, false},
    {"copysign", do_copysign<float>, do_copysign<double>, 2, false},
    {"rcp", do_reciprocal<float>, do_reciprocal<double>, 1, false},
    {"sqrt", do_root<float>, do_root<double>, 1, false},
    {"rcp", approximate_reciprocal<float>, gross_reciprocal, 1, true},
    {"sqrt", approximate_root<float>, nullptr, 1, true},
    {"rsqrt", approximate_reverse_root<float>, nullptr, 1, true},
    {"ex2", approximate_exponential<float>, nullptr, 1, true},
    {"lg2", approximate_logarithm<float>, nullptr, 1, true},
    {"sin", approximate_sine<float>, nullptr, 1, true},
    {"cos", approximate_cosine<float>, nullptr, 1, true},
    {"tanh", approximate_tangent<float>, nullptr, 1, true},
    {"div", approximate_quotient<float>, nullptr, 2, true},
};

}  // namespace

bool decode_float(const Statement& statement, Instruction& instruction) {
  const std::string_view base = statement.parts[0], type = statement.type();
  if (base == "setp") return decode_setp(statement, instruction);
  if (base == "cvt") return decode_conversion(statement, instruction);
  if (type != "f32" && type != "f64") return false;
  bool approximate = false;
  uint8_t detail = 0;
  for (size_t part = 1; part + 1 < statement.parts.size(); ++part) {
    const std::string_view modifier = statement.parts[part];
    if (modifier == "approx" || modifier == "full")
      approximate = true;
    else if (modifier == "ftz")
      detail |= kFlush;
    else if (modifier == "sat")
      detail |= kSaturate;
    else if (modifier == "rz")
      detail |= 1 << kRoundShift;
    else if (modifier == "rm")
      detail |= 2 << kRoundShift;
    else if (modifier == "rp")
      detail |= 3 << kRoundShift;
    else if (modifier != "rn")
      return false;
  }
  for (const Operation& operation : kOperations) {
    if (operation.base != base || operation.approximate != approximate) continue;
    instruction.run = type == "f32" ? operation.f32 : operation.f64;
    if (!instruction.run) return false;
    instruction.detail = detail;
    instruction.kind = approximate     ? Class::kSpecial
                       : type == "f32" ? Class::kFloat
                                       : Class::kDouble;
    set_slots(instruction, statement, 1, operation.read);
    return true;
  }
  return false;
}

}  // namespace ptx
