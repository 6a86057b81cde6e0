// cvt from and to floats.
#include <cmath>
#include <limits>
#include <map>
#include <type_traits>

#include "float_formats.h"
#include "rounding.h"

namespace ptx {
namespace {

float half(uint16_t bits) { return birnn::emulator::half_to_float(bits); }
float bfloat(uint16_t bits) { return birnn::emulator::bfloat16_to_float(bits); }

template <float (*Read)(uint16_t)>
void widen_16_bit(State& s, const Instruction& i) {
  s.put(i.slots[0], Read(s.get<uint16_t>(i.slots[1])));
}
template <uint16_t (*Write)(float)>
void narrow_to_16_bit(State& s, const Instruction& i) {
  s.put(i.slots[0], Write(flushed(s.get<float>(i.slots[1]), i)));
}
// cvt.rn.f16x2.f32 d, a, b: a in the upper half.
template <uint16_t (*Write)(float)>
void narrow_pair(State& s, const Instruction& i) {
  const uint32_t upper = Write(s.get<float>(i.slots[1])), lower = Write(s.get<float>(i.slots[2]));
  s.put(i.slots[0], upper << 16 | lower);
}
void round_to_tf32(State& s, const Instruction& i) {
  s.put(i.slots[0], birnn::emulator::float_to_tf32(s.get<float>(i.slots[1])));
}

template <class To, class From>
void between_floats(State& s, const Instruction& i) {
  const From from = s.get<From>(i.slots[1]);
  const Rounding rounding(rounding_of(i));
  const volatile From kept = from;
  s.put(i.slots[0], finished<To>(static_cast<To>(kept), i));
}
// Rounds to an integral value: the rounding is one of rni, rzi, rmi, rpi.
template <class T>
void to_integral(State& s, const Instruction& i) {
  const T a = flushed(s.get<T>(i.slots[1]), i);
  const Rounding rounding(rounding_of(i));
  s.put(i.slots[0], finished<T>(std::nearbyint(a), i));
}
template <class To, class From>
void float_to_integer(State& s, const Instruction& i) {
  const From a = flushed(s.get<From>(i.slots[1]), i);
  From integral;
  {
    const Rounding rounding(rounding_of(i));
    integral = std::nearbyint(a);
  }
  using Limits = std::numeric_limits<To>;
  To result;
  if (std::isnan(integral)) {
    result = sizeof(From) == 8 && sizeof(To) == 8 ? Limits::min() : To{0};
  } else if (integral <= static_cast<From>(Limits::min())) {
    result = Limits::min();
  } else if (integral >= static_cast<From>(Limits::max())) {
    result = Limits::max();
  } else {
    result = static_cast<To>(integral);
  }
  if constexpr (std::is_signed_v<To>)
    s.put(i.slots[0], static_cast<int64_t>(result));
  else
    s.put(i.slots[0], result);
}
template <class To, class From>
void integer_to_float(State& s, const Instruction& i) {
  const volatile From from = s.get<From>(i.slots[1]);
  const Rounding rounding(rounding_of(i));
  s.put(i.slots[0], static_cast<To>(from));
}

template <class From>
Handler to_integer(std::string_view to) {
  if (to == "u8") return float_to_integer<uint8_t, From>;
  if (to == "s8") return float_to_integer<int8_t, From>;
  if (to == "u16") return float_to_integer<uint16_t, From>;
  if (to == "s16") return float_to_integer<int16_t, From>;
  if (to == "u32") return float_to_integer<uint32_t, From>;
  if (to == "s32") return float_to_integer<int32_t, From>;
  if (to == "u64") return float_to_integer<uint64_t, From>;
  if (to == "s64") return float_to_integer<int64_t, From>;
  return nullptr;
}
template <class To>
Handler from_integer(std::string_view from) {
  if (from == "u8") return integer_to_float<To, uint8_t>;
  if (from == "s8") return integer_to_float<To, int8_t>;
  if (from == "u16") return integer_to_float<To, uint16_t>;
  if (from == "s16") return integer_to_float<To, int16_t>;
  if (from == "u32") return integer_to_float<To, uint32_t>;
  if (from == "s32") return integer_to_float<To, int32_t>;
  if (from == "u64") return integer_to_float<To, uint64_t>;
  if (from == "s64") return integer_to_float<To, int64_t>;
  return nullptr;
}

}  // namespace

bool decode_conversion(const Statement& statement, Instruction& instruction) {
  if (statement.parts.size() < 3) return false;
  const std::string_view from = statement.type();
  const std::string_view to = statement.parts[statement.parts.size() - 2];
  std::string_view rounding;
  for (size_t part = 1; part + 2 < statement.parts.size(); ++part) {
    const std::string_view modifier = statement.parts[part];
    static const std::map<std::string_view, uint8_t> roundings{{"rn", 0},  {"rz", 1},  {"rm", 2},
                                                               {"rp", 3},  {"rni", 0}, {"rzi", 1},
                                                               {"rmi", 2}, {"rpi", 3}, {"rna", 0}};
    const auto found = roundings.find(modifier);
    if (found != roundings.end() && rounding.empty()) {
      rounding = modifier;
      instruction.detail |= static_cast<uint8_t>(found->second << kRoundShift);
    } else if (modifier == "ftz") {
      instruction.detail |= kFlush;
    } else if (modifier == "sat") {
      instruction.detail |= kSaturate;
    } else {
      return false;
    }
  }
  const bool integral = rounding.size() == 3 && rounding[2] == 'i';
  using namespace birnn::emulator;
  Handler handler = nullptr;
  int read = 1;
  if (to == "f32" && from == "f16") handler = widen_16_bit<half>;
  if (to == "f32" && from == "bf16") handler = widen_16_bit<bfloat>;
  if (from == "f32" && rounding == "rn" && !(instruction.detail & kSaturate)) {
    if (to == "f16") handler = narrow_to_16_bit<float_to_half>;
    if (to == "bf16") handler = narrow_to_16_bit<float_to_bfloat16>;
    if (to == "f16x2") handler = narrow_pair<float_to_half>;
    if (to == "bf16x2") handler = narrow_pair<float_to_bfloat16>;
    if (to == "f16x2" || to == "bf16x2") read = 2;
  }
  if (to == "tf32" && from == "f32" && rounding == "rna") handler = round_to_tf32;
  if (to == "f32" && from == "f32")
    handler = integral ? to_integral<float> : between_floats<float, float>;
  if (to == "f64" && from == "f64") {
    handler = integral ? to_integral<double> : between_floats<double, double>;
  }
  if (to == "f64" && from == "f32") handler = between_floats<double, float>;
  if (to == "f32" && from == "f64") handler = between_floats<float, double>;
  if (!handler && integral && from == "f32") handler = to_integer<float>(to);
  if (!handler && integral && from == "f64") handler = to_integer<double>(to);
  if (!handler && to == "f32" && !rounding.empty()) handler = from_integer<float>(from);
  if (!handler && to == "f64" && !rounding.empty()) handler = from_integer<double>(from);
  if (!handler) return false;
  instruction.run = handler;
  instruction.kind = Class::kConvert;
  set_slots(instruction, statement, 1, read);
  return true;
}

}  // namespace ptx
