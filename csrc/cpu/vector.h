// SIMD values by the compiler's vector extensions (GCC, Clang): one source for every instruction
// set. Included once for each set, inside that set's namespace (see instruction_set.h), with
// BIRNN_VECTOR_BYTES and BIRNN_VECTOR_REGISTERS saying what a register holds and how many there
// are.
//
// exp is 2^n * e^r with |r| <= ln(2)/2 and a Taylor polynomial in r; sigmoid and tanh follow from
// it. tanh goes through e^x - 1, whose two parts do not cancel, so it keeps its relative accuracy
// near zero. Tested against <cmath> through the layers, at every tolerance of the test-suite.

constexpr int kVectorBytes = BIRNN_VECTOR_BYTES;
// Registers for sums; the others hold the operands of a product.
constexpr int kNumAccumulators = BIRNN_VECTOR_REGISTERS * 3 / 4;

// Left to itself GCC calls sigmoid and tanh, and every call spills all vector registers.
#undef BIRNN_VECTOR_FN
#define BIRNN_VECTOR_FN static inline __attribute__((always_inline))

template <class Real>
struct VectorTypes;
template <>
struct VectorTypes<float> {
  typedef float Value __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t UnsignedBits __attribute__((vector_size(kVectorBytes)));
  typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint16_t Unaligned16
      __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
};
template <>
struct VectorTypes<double> {
  typedef double Value __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
};

template <class Real>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860677e-6f;
  static constexpr float kLargest = 87.0f, kTanhOne = 9.5f;  // tanh is 1 from there
  static constexpr int kExponentBias = 127, kMantissaBits = 23, kDegree = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLargest = 708.0, kTanhOne = 20.0;
  static constexpr int kExponentBias = 1023, kMantissaBits = 52, kDegree = 13;
};

template <class Real>
struct VectorMath {
  using Value = typename VectorTypes<Real>::Value;
  using Bits = typename VectorTypes<Real>::Bits;
  using Constants = ExpConstants<Real>;
  static constexpr int kLanes = kVectorBytes / sizeof(Real);

  BIRNN_VECTOR_FN Value load(const Real* p) {
    return *reinterpret_cast<const typename VectorTypes<Real>::Unaligned*>(p);
  }
  BIRNN_VECTOR_FN void store(Real* p, Value v) {
    *reinterpret_cast<typename VectorTypes<Real>::Unaligned*>(p) = v;
  }
  // The first n lanes only; the others are zero.
  BIRNN_VECTOR_FN Value load(const Real* p, int n) {
    if (n >= kLanes) return load(p);
    Value v{};
    std::memcpy(&v, p, n * sizeof(Real));
    return v;
  }
  BIRNN_VECTOR_FN void store(Real* p, Value v, int n) {
    if (n >= kLanes) return store(p, v);
    std::memcpy(p, &v, n * sizeof(Real));
  }
  // 16-bit numbers, widened and rounded to the nearest; the value type is float.
  BIRNN_VECTOR_FN Value load(const BFloat16* p) {
    return widen(*reinterpret_cast<const typename VectorTypes<Real>::Unaligned16*>(p));
  }
  BIRNN_VECTOR_FN Value load(const BFloat16* p, int n) {
    if (n >= kLanes) return load(p);
    typename VectorTypes<Real>::Bits16 v{};
    std::memcpy(&v, p, n * sizeof(BFloat16));
    return widen(v);
  }
  BIRNN_VECTOR_FN void store(BFloat16* p, Value v) {
    *reinterpret_cast<typename VectorTypes<Real>::Unaligned16*>(p) = narrow(v);
  }
  BIRNN_VECTOR_FN void store(BFloat16* p, Value v, int n) {
    if (n >= kLanes) return store(p, v);
    const auto narrowed = narrow(v);
    std::memcpy(p, &narrowed, n * sizeof(BFloat16));
  }
#if defined(BIRNN_HAS_FLOAT16)
  BIRNN_VECTOR_FN Value load(const Float16* p) {
#if BIRNN_VECTOR_BYTES == 64
    // Masked, though by all lanes: GCC warns of the other form's undefined operand.
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
  }
  BIRNN_VECTOR_FN void store(Float16* p, Value v) {
    constexpr int kRounding = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#if BIRNN_VECTOR_BYTES == 64
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, v, kRounding));
#else
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, kRounding));
#endif
  }
#endif
  // x - 0 is x for every x, 0 + x is not: only the former is a plain broadcast.
  BIRNN_VECTOR_FN Value broadcast(Real x) { return x - Value{}; }
  // Loads once what several products use: GCC would repeat the load as an operand of each.
  BIRNN_VECTOR_FN void keep_in_register(Value& v) {
#if defined(__x86_64__)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
  }
  BIRNN_VECTOR_FN Value one() { return broadcast(Real(1)); }

  BIRNN_VECTOR_FN Value zero_where_not_positive(Value v, Value condition) {
    return condition <= Value{} ? Value{} : v;
  }

  // x within [-limit, limit]; NaN stays NaN.
  BIRNN_VECTOR_FN Value clamp(Value x, Value limit) {
#if BIRNN_VECTOR_BYTES == 64
    if constexpr (std::is_same_v<Real, float>)  // of two instructions the second operand is NaN's
      return _mm512_maskz_max_ps(0xffff, -limit, _mm512_maskz_min_ps(0xffff, limit, x));
#endif
    x = x > limit ? limit : x;
    return x < -limit ? -limit : x;
  }
  // a / b for b that is neither zero nor infinite.
  BIRNN_VECTOR_FN Value divide(Value a, Value b) {
#if BIRNN_VECTOR_BYTES == 64
    // A reciprocal of 14 bits and one step of Newton's method: the five divisions of an LSTM's cell
    // took half of its time, and the cell is a third of a step in 16 bits.
    if constexpr (std::is_same_v<Real, float>) {
      const Value r = _mm512_maskz_rcp14_ps(0xffff, b);
      return a * (r + r * (one() - b * r));
    }
#endif
    return a / b;
  }

  // e^x = scale + scale * expm1_of_rest, with scale a power of two. NaN stays NaN.
  BIRNN_VECTOR_FN void exp_parts(Value x, Value& scale, Value& expm1_of_rest) {
    const Value shifted = x * broadcast(Real(1.44269504088896340736)) + Constants::kRound;
    const Value n = shifted - Constants::kRound;
    const Value r = (x - n * Constants::kLn2High) - n * Constants::kLn2Low;
    Value p = broadcast(inverse_factorial(Constants::kDegree));
#pragma GCC unroll 16
    for (int k = Constants::kDegree - 1; k >= 1; --k) p = p * r + inverse_factorial(k);
    expm1_of_rest = p * r;
    Bits bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits + Constants::kExponentBias) << Constants::kMantissaBits;
    std::memcpy(&scale, &bits, sizeof(bits));
  }

  BIRNN_VECTOR_FN Value sigmoid(Value x) {
    const Value limit = broadcast(Constants::kLargest);
    Value scale, rest;
    exp_parts(clamp(-x, limit), scale, rest);
    return divide(one(), one() + (scale * rest + scale));
  }

  BIRNN_VECTOR_FN Value tanh(Value x) {
    const Value limit = broadcast(Constants::kTanhOne);
    x = clamp(x, limit);
    Value scale, rest;
    exp_parts(x + x, scale, rest);
    const Value expm1 = scale * rest + (scale - one());
    return divide(expm1, expm1 + Real(2));
  }

 private:
  template <class Bits16>
  BIRNN_VECTOR_FN Value widen(Bits16 v) {
    const auto bits = __builtin_convertvector(v, typename VectorTypes<Real>::UnsignedBits) << 16;
    Value value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  BIRNN_VECTOR_FN auto narrow(Value v) {
#if defined(BIRNN_HAS_BFLOAT16)
    return (typename VectorTypes<Real>::Bits16)_mm512_maskz_cvtneps_pbh(0xffff, v);
#else
    typename VectorTypes<Real>::UnsignedBits bits;
    std::memcpy(&bits, &v, sizeof(v));
    // A NaN whose bits are all below would round to infinity.
    bits = v == v ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
    return __builtin_convertvector(bits >> 16, typename VectorTypes<Real>::Bits16);
#endif
  }
  static constexpr Real inverse_factorial(int k) {
    Real f = 1;
    for (int j = 2; j <= k; ++j) f *= j;
    return Real(1) / f;
  }
};
