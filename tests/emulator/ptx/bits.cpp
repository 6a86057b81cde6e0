// Bits: counted, reversed, inserted, extracted, permuted.
#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <type_traits>

#include "program.h"

namespace ptx {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
constexpr int kBits = std::numeric_limits<Unsigned<T>>::digits;

template <class To, class From, To (*Function)(From)>
void unary(State& s, const Instruction& i) {
  s.put(i.slots[0], Function(s.get<From>(i.slots[1])));
}

template <class T>
uint32_t leading_zeros(T a) {
  return static_cast<uint32_t>(std::countl_zero(a));
}
template <class T>
uint32_t ones(T a) {
  return static_cast<uint32_t>(std::popcount(a));
}
template <class T>
T reversed(T a) {
  T result = 0;
  for (int bit = 0; bit < kBits<T>; ++bit) result |= (a >> bit & 1) << (kBits<T> - 1 - bit);
  return result;
}

template <bool Left, bool Wraps>
void funnel_shift(State& s, const Instruction& i) {
  uint32_t by = s.get<uint32_t>(i.slots[3]);
  by = Wraps ? by & 31 : by > 32 ? 32 : by;
  const uint64_t both =
      s.get<uint32_t>(i.slots[1]) | static_cast<uint64_t>(s.get<uint32_t>(i.slots[2])) << 32;
  s.put(i.slots[0], static_cast<uint32_t>(Left ? both >> (32 - by) : both >> by));
}

template <class T>
void insert_bits(State& s, const Instruction& i) {
  const T a = s.get<T>(i.slots[1]), b = s.get<T>(i.slots[2]);
  const uint32_t position = s.get<uint32_t>(i.slots[3]) & 0xff;
  const uint32_t length = s.get<uint32_t>(i.slots[4]) & 0xff;
  T result = b;
  for (uint32_t bit = 0; bit < length && position + bit < static_cast<uint32_t>(kBits<T>); ++bit) {
    const T mask = static_cast<T>(T{1} << (position + bit));
    result = (result & ~mask) | ((a >> bit & 1) << (position + bit));
  }
  s.put(i.slots[0], result);
}
template <class T>
void extract_bits(State& s, const Instruction& i) {
  const T a = s.get<T>(i.slots[1]);
  const uint32_t position = s.get<uint32_t>(i.slots[2]) & 0xff;
  const uint32_t length = s.get<uint32_t>(i.slots[3]) & 0xff;
  const uint32_t last = std::min<uint32_t>(position + length - 1, kBits<T> - 1);
  const bool sign = std::is_signed_v<T> && length > 0 && (a >> last & 1);
  Unsigned<T> result = 0;
  for (uint32_t bit = 0; bit < static_cast<uint32_t>(kBits<T>); ++bit) {
    const uint32_t from = position + bit;
    const bool one = bit < length && from < static_cast<uint32_t>(kBits<T>) ? a >> from & 1 : sign;
    result |= static_cast<Unsigned<T>>(one) << bit;
  }
  s.put(i.slots[0], result);
}
void permute_bytes(State& s, const Instruction& i) {
  const uint64_t bytes =
      s.get<uint32_t>(i.slots[1]) | static_cast<uint64_t>(s.get<uint32_t>(i.slots[2])) << 32;
  const uint32_t selector = s.get<uint32_t>(i.slots[3]);
  uint32_t result = 0;
  for (int byte = 0; byte < 4; ++byte) {
    const uint32_t which = selector >> 4 * byte & 0xf;
    uint32_t value = bytes >> 8 * (which & 7) & 0xff;
    if (which & 8) value = value & 0x80 ? 0xff : 0;
    result |= value << 8 * byte;
  }
  s.put(i.slots[0], result);
}
void lookup_bits(State& s, const Instruction& i) {
  const uint32_t a = s.get<uint32_t>(i.slots[1]), b = s.get<uint32_t>(i.slots[2]);
  const uint32_t c = s.get<uint32_t>(i.slots[3]), table = s.get<uint32_t>(i.slots[4]);
  uint32_t result = 0;
  for (int bit = 0; bit < 32; ++bit) {
    const uint32_t row = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1);
    result |= (table >> row & 1) << bit;
  }
  s.put(i.slots[0], result);
}

}  // namespace

bool decode_bits(const Statement& statement, Instruction& instruction) {
  const std::string_view base = statement.parts[0], type = statement.type();
  const bool is_64 = type == "b64" || type == "u64", is_b32 = type == "b32";
  const auto take = [&](Handler handler, int read) {
    if (!handler) return false;
    instruction.run = handler;
    instruction.kind = Class::kInteger;
    set_slots(instruction, statement, 1, read);
    return true;
  };
  if (base == "shf" && is_b32 && statement.parts.size() == 4) {
    static const std::map<std::string, Handler> shifts{{"l.wrap", funnel_shift<true, true>},
                                                       {"l.clamp", funnel_shift<true, false>},
                                                       {"r.wrap", funnel_shift<false, true>},
                                                       {"r.clamp", funnel_shift<false, false>}};
    const auto found =
        shifts.find(std::string(statement.parts[1]) + "." + std::string(statement.parts[2]));
    return found != shifts.end() && take(found->second, 3);
  }
  if (statement.parts.size() != 2) return false;
  if (base == "bfe") {
    static const std::map<std::string_view, Handler> extracts{{"u32", extract_bits<uint32_t>},
                                                              {"s32", extract_bits<int32_t>},
                                                              {"u64", extract_bits<uint64_t>},
                                                              {"s64", extract_bits<int64_t>}};
    const auto found = extracts.find(type);
    return found != extracts.end() && take(found->second, 3);
  }
  if (!is_64 && !is_b32) return false;
  if (base == "clz") {
    return take(is_64 ? unary<uint32_t, uint64_t, leading_zeros<uint64_t>>
                      : unary<uint32_t, uint32_t, leading_zeros<uint32_t>>,
                1);
  }
  if (base == "popc") {
    return take(is_64 ? unary<uint32_t, uint64_t, ones<uint64_t>>
                      : unary<uint32_t, uint32_t, ones<uint32_t>>,
                1);
  }
  if (base == "brev") {
    return take(is_64 ? unary<uint64_t, uint64_t, reversed<uint64_t>>
                      : unary<uint32_t, uint32_t, reversed<uint32_t>>,
                1);
  }
  if (base == "bfi") return take(is_64 ? insert_bits<uint64_t> : insert_bits<uint32_t>, 4);
  if (base == "prmt" && is_b32) return take(permute_bytes, 3);
  if (base == "lop3" && is_b32) return take(lookup_bits, 4);
  return false;
}

}  // namespace ptx
