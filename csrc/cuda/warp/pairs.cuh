// Pairs of neighbouring units of one sequence, as arrays in memory keep them.
#pragma once

#include "cuda/device/device.h"

namespace birnn::cuda {

using namespace birnn::device;

template <class T>
struct Pair {
  T first{}, second{};
};
template <class T>
struct PairBits {  // of a 16-bit type
  using Type = uint32_t;
};
template <>
struct PairBits<float> {
  using Type = Bits64;
};

BIRNN_DEVICE void unpack(uint32_t bits, Pair<Half>& pair) {
  unpack2(bits, pair.first, pair.second);
}
BIRNN_DEVICE void unpack(uint32_t bits, Pair<BFloat16>& pair) {
  unpack2(bits, pair.first, pair.second);
}
BIRNN_DEVICE void unpack(const Bits64& bits, Pair<float>& pair) {
  pair.first = bits_float(bits.x), pair.second = bits_float(bits.y);
}
BIRNN_DEVICE uint32_t pack(const Pair<Half>& pair) { return pack2(pair.first, pair.second); }
BIRNN_DEVICE uint32_t pack(const Pair<BFloat16>& pair) { return pack2(pair.first, pair.second); }
BIRNN_DEVICE Bits64 pack(const Pair<float>& pair) {
  return Bits64{float_bits(pair.first), float_bits(pair.second)};
}

// paired: the pair is one aligned word. Units past the hidden size are neither read nor written:
// `both` tells whether the second exists.
template <class T>
BIRNN_DEVICE Pair<T> load_pair(const void* array, int64_t offset, bool paired, bool both) {
  const T* const source = static_cast<const T*>(array) + offset;
  Pair<T> pair;
  if (paired) {
    unpack(*reinterpret_cast<const typename PairBits<T>::Type*>(source), pair);
  } else {
    pair.first = source[0];
    if (both) pair.second = source[1];
  }
  return pair;
}
template <class T>
BIRNN_DEVICE void store_pair(void* array, int64_t offset, const Pair<T>& pair, bool paired,
                             bool both) {
  T* const target = static_cast<T*>(array) + offset;
  if (paired) {
    *reinterpret_cast<typename PairBits<T>::Type*>(target) = pack(pair);
  } else {
    target[0] = pair.first;
    if (both) target[1] = pair.second;
  }
}

}  // namespace birnn::cuda
