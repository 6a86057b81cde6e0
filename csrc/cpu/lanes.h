// Rows of a matrix turned into lanes of vectors, in registers.

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)  // GCC 12, Clang
#define BIRNN_HAS_SHUFFLEVECTOR
#endif
#endif

#if defined(BIRNN_HAS_SHUFFLEVECTOR)
constexpr bool kHasLaneBlocks = true;

// v[k] lane i = number k of row i: `row(i)` points at as many numbers as 16 bytes hold. Pieces of
// 16 bytes of the rows are joined as they are loaded, then transposed within 16 bytes, which takes
// two shuffles a vector instead of three.
template <class Real>
struct LaneBlock {
  using M = VectorMath<Real>;
  using Value = typename M::Value;
  static constexpr int kDepth = 16 / sizeof(Real);  // numbers of a row taken at a time
  static constexpr int kLanes = M::kLanes;

  typedef Real Piece __attribute__((vector_size(16)));
  typedef Real UnalignedPiece __attribute__((vector_size(16), aligned(sizeof(Real)), may_alias));

  BIRNN_VECTOR_FN Piece load_piece(const Real* p) {
    return *reinterpret_cast<const UnalignedPiece*>(p);
  }
  template <class A, int... kLane>
  BIRNN_VECTOR_FN auto join(A low, A high, std::integer_sequence<int, kLane...>) {
    return __builtin_shufflevector(low, high, kLane...);
  }
  // A vector of pieces: piece i is the one of row i * kDepth + j.
  template <class Row>
  BIRNN_VECTOR_FN Value gather(const Row& row, int j) {
    if constexpr (kVectorBytes == 16) {
      return load_piece(row(j));
    } else if constexpr (kVectorBytes == 32) {
      return join(load_piece(row(j)), load_piece(row(j + kDepth)),
                  std::make_integer_sequence<int, kLanes>{});
    } else {
      const auto half = std::make_integer_sequence<int, kLanes / 2>{};
      return join(join(load_piece(row(j)), load_piece(row(j + kDepth)), half),
                  join(load_piece(row(j + 2 * kDepth)), load_piece(row(j + 3 * kDepth)), half),
                  std::make_integer_sequence<int, kLanes>{});
    }
  }
  // Within each piece: elements first, first + 1 of a and b, or pairs of them, in turn.
  template <int kPair, int kHigh, int... kLane>
  BIRNN_VECTOR_FN Value interleave(Value a, Value b, std::integer_sequence<int, kLane...>) {
    return __builtin_shufflevector(
        a, b,
        (kLane / kDepth * kDepth + (kHigh ? kDepth / 2 : 0) + kLane % kDepth / (2 * kPair) * kPair +
         kLane % kPair + (kLane / kPair % 2 ? kLanes : 0))...);
  }
  template <int kPair, int kHigh>
  BIRNN_VECTOR_FN Value interleave(Value a, Value b) {
    return interleave<kPair, kHigh>(a, b, std::make_integer_sequence<int, kLanes>{});
  }
  template <class Row>
  BIRNN_VECTOR_FN void load(const Row& row, Value (&v)[kDepth]) {
    if constexpr (kDepth == 2) {
      const Value a = gather(row, 0), b = gather(row, 1);
      v[0] = interleave<1, 0>(a, b);
      v[1] = interleave<1, 1>(a, b);
    } else {
      const Value a = gather(row, 0), b = gather(row, 1), c = gather(row, 2), d = gather(row, 3);
      const Value ab_low = interleave<1, 0>(a, b), ab_high = interleave<1, 1>(a, b);
      const Value cd_low = interleave<1, 0>(c, d), cd_high = interleave<1, 1>(c, d);
      v[0] = interleave<2, 0>(ab_low, cd_low);
      v[1] = interleave<2, 1>(ab_low, cd_low);
      v[2] = interleave<2, 0>(ab_high, cd_high);
      v[3] = interleave<2, 1>(ab_high, cd_high);
    }
  }
};
#else
constexpr bool kHasLaneBlocks = false;
template <class Real>
struct LaneBlock;  // named where it is not used
#endif
