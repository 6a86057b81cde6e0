// How an operation on floats rounds: in the detail of its record.
#pragma once

#include <cfenv>
#include <cmath>

#include "program.h"

namespace ptx {

enum Detail : uint8_t {
  kFlush = 1,     // .ftz
  kSaturate = 2,  // .sat
  kRoundShift = 2,
  kRoundMask = 3 << kRoundShift,
};
inline constexpr int kRoundings[4] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};

inline int rounding_of(const Instruction& i) { return (i.detail & kRoundMask) >> kRoundShift; }

class Rounding {
 public:
  explicit Rounding(int index) : changed_(index != 0) {
    if (changed_) std::fesetround(kRoundings[index]);
  }
  ~Rounding() {
    if (changed_) std::fesetround(FE_TONEAREST);
  }

 private:
  bool changed_;
};

template <class T>
T flushed(T value, const Instruction& i) {
  if constexpr (sizeof(T) == 4) {
    if (i.detail & kFlush && std::fpclassify(value) == FP_SUBNORMAL) {
      return std::copysign(0.0f, value);
    }
  }
  return value;
}
template <class T>
T finished(T value, const Instruction& i) {
  if (i.detail & kSaturate) value = value > 0 ? (value < 1 ? value : T{1}) : T{0};  // NaN: 0
  return flushed(value, i);
}

}  // namespace ptx
