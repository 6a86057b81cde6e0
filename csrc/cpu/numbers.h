// The numbers that a kernel computes with.
//   Real     sums of products of floating-point numbers, the cell, its states
//   Row      x, output, dy, dgates as they lie in memory
//   Weight   of W, as given
//   Sum      of a product
//   kPacks   whether a product's rows are packed before it, or read where they lie
//   kReadsInPlace  whether a product of few rows can read W where it lies, too

template <class Real>
using Math = VectorMath<Real>;

template <class R>
struct Plain {
  using Real = R;
  using Row = R;
  using Weight = R;
  using Sum = R;
  static constexpr bool kPacks = false;
  static constexpr bool kReadsInPlace = kHasLaneBlocks;
  static constexpr int kPerWord = 1;
  struct Registers {};  // what has to be set up before a product
};

template <class W>
struct Widened : Plain<float> {
  using Weight = W;
  static constexpr bool kReadsInPlace = false;
};

// bf16 in words of two. Instruction::multiply_add(sum, w, a) adds the products of a word's numbers
// to the sum of its lane.
template <class Instruction>
struct BFloat16Words {
  using Real = float;
  using Row = BFloat16;
  using Weight = BFloat16;
  using Sum = float;
  using Operand = BFloat16;
  using Multiply = Instruction;
  using Registers = typename Instruction::Registers;
  static constexpr bool kPacks = true;
  static constexpr bool kReadsInPlace = false;
  static constexpr bool kIsInt8 = false;
  static constexpr bool kHasOffset = false;
  static constexpr int kPerWord = 2;

  // Writes `size` numbers, and zeros up to `padded`.
  template <class From>
  static void pack(const From* from, int64_t size, BFloat16* to, int64_t padded, float*) {
    using M = Math<float>;
    if constexpr (std::is_same_v<From, BFloat16>)
      std::memcpy(to, from, size * sizeof(BFloat16));
    else
      for (int64_t k = 0; k < size; k += M::kLanes)
        M::store(to + k, M::load(from + k, int(std::min<int64_t>(M::kLanes, size - k))),
                 int(std::min<int64_t>(M::kLanes, size - k)));
    std::memset(to + size, 0, (padded - size) * sizeof(BFloat16));
  }
};

// int8 in words of four, a scale for each row. With Instruction::kHasOffset rows hold 128 more than
// their numbers, unsigned, and panels begin with what that adds to the sums, negated.
template <class Instruction>
struct Int8Words {
  using Real = float;
  using Row = float;
  using Weight = int8_t;
  using Sum = int32_t;
  using Operand = int8_t;
  using Multiply = Instruction;
  using Registers = typename Instruction::Registers;
  static constexpr bool kPacks = true;
  static constexpr bool kReadsInPlace = false;
  static constexpr bool kIsInt8 = true;
  static constexpr bool kHasOffset = Instruction::kHasOffset;
  static constexpr int kPerWord = 4;

  // A row's scale is that of its largest number; NaN or infinity anywhere makes it NaN, so that
  // whatever is computed of the row is.
  static void pack(const float* from, int64_t size, int8_t* to, int64_t padded, float* scale) {
    using M = Math<float>;
    using V = typename M::Value;
    V largest{}, not_finite{};
    for (int64_t k = 0; k < size; k += M::kLanes) {
      const V v = M::load(from + k, int(std::min<int64_t>(M::kLanes, size - k)));
      const V magnitude = v < V{} ? -v : v;
      largest = magnitude > largest ? magnitude : largest;
      not_finite += v * 0.0f;
    }
    float max = 0.0f, invalid = 0.0f;
    for (int lane = 0; lane < M::kLanes; ++lane) {
      max = largest[lane] > max ? largest[lane] : max;
      invalid += not_finite[lane];
    }
    *scale = max / 127.0f + invalid;
    const V inverse = M::broadcast(max > 0.0f ? 127.0f / max : 0.0f);
    const V offset = M::broadcast(kHasOffset ? 128.0f : 0.0f);
    typedef int8_t Bytes __attribute__((vector_size(M::kLanes)));
    for (int64_t k = 0; k < size; k += M::kLanes) {
      const int n = int(std::min<int64_t>(M::kLanes, size - k));
      const V q = (M::load(from + k, n) * inverse + ExpConstants<float>::kRound) -
                  ExpConstants<float>::kRound + offset;
      const auto bytes = __builtin_convertvector(
          __builtin_convertvector(q, typename VectorTypes<float>::Bits), Bytes);
      std::memcpy(to + k, &bytes, n);
    }
    // What stands beyond is multiplied by weights of zero.
    std::memset(to + size, 0, padded - size);
  }
};
