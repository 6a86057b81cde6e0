// The 16-bit and tf32 formats in plain integer arithmetic: what the emulator computes with, and
// what tests on either side expect of the conversions.
#pragma once

#include <cstdint>
#include <cstring>

namespace birnn::emulator {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Both formats read as (exponent, fraction): the multiplication moves the exponent bias from 15
  // to 127 and normalises subnormals.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}

// Drops `dropped` low bits, rounding to nearest even.
inline uint32_t round_to_even(uint32_t bits, int dropped) {
  const uint32_t half = 1u << (dropped - 1);
  const uint32_t kept_lsb = bits >> dropped & 1u;
  return (bits + half - 1 + kept_lsb) >> dropped;
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;          // cvt gives the canonical NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                        // below the least normal half
    // In units of 2^-24, the least subnormal; the addition rounds to nearest even.
    const float shifted = float_of(magnitude) + 0.5f;  // ulp of [0.5, 1) is 2^-24
    return static_cast<uint16_t>(sign | (bits_of(shifted) - bits_of(0.5f)));
  }
  return static_cast<uint16_t>(sign | round_to_even(magnitude - (112u << 23), 13));
}

inline float bfloat16_to_float(uint16_t value) { return float_of(uint32_t{value} << 16); }

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return static_cast<uint16_t>(round_to_even(bits, 16));
}

// Nearest, ties away from zero, as cvt.rna does.
inline uint32_t float_to_tf32(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace birnn::emulator
