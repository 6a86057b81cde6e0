// ldmatrix and mma on the deposits of a warp. Fragment layouts: PTX ISA, sections "Matrix
// fragments for mma.m16n8k16 with floating point type" and "... mma.m16n8k8".
#include <algorithm>
#include <bit>
#include <cmath>

#include "device_emulator.h"
#include "machine.h"

namespace birnn::emulator {
namespace {

template <class T>
T& as(Deposit& deposit) {
  static_assert(sizeof(T) <= sizeof(Deposit));
  return *reinterpret_cast<T*>(deposit.bytes);
}

template <bool Transposed>
void load_matrices(Deposit* lanes) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t element[8][8];
    for (int row = 0; row < 8; ++row) {
      raw_copy(element[row], as<LoadMatrixDeposit>(lanes[matrix * 8 + row]).row, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const uint32_t low = Transposed ? element[column][row] : element[row][column];
      const uint32_t high = Transposed ? element[column + 1][row] : element[row][column + 1];
      as<LoadMatrixDeposit>(lanes[lane]).fragment[matrix] = low | high << 16;
    }
  }
}

double power_of_two(int exponent) { return std::bit_cast<double>(uint64_t(1023 + exponent) << 52); }

// c + the products, as the matrix units of sm_80 to sm_90 add (Fasi et al. 2021, peerj-cs 330;
// Khattak & Mikaitis 2025, arXiv 2512.07004): all terms are cut, not rounded, two bits below the
// last place that the largest of them has in fp32, added exactly, and the sum is cut to fp32. The
// chips differ in the number of these bits and in how many products they add at once.
//
// Most of a run of the emulator is spent here, so nothing calls the mathematical library: the cut
// terms are integers below 2^26, and floats and their products are normal doubles.
template <int K>
float add_products(float c, const double (&products)[K]) {
  double largest = __builtin_fabs(double(c)), plain = c;
  for (const double product : products) {
    largest = std::max(largest, __builtin_fabs(product));
    plain += product;
  }
  if (largest == 0 || !__builtin_isfinite(plain)) return static_cast<float>(plain);
  constexpr int kFractionBits = 23, kFurtherBits = 2;
  const int place =
      int(std::bit_cast<uint64_t>(largest) >> 52) - 1023 - kFractionBits - kFurtherBits;
  const double units = power_of_two(-place);
  int64_t terms = static_cast<int64_t>(c * units);
  for (const double product : products) terms += static_cast<int64_t>(product * units);
  const double sum = static_cast<double>(terms) * power_of_two(place);
  const float nearest = static_cast<float>(sum);
  const bool away = __builtin_fabs(double(nearest)) > __builtin_fabs(sum);
  return away ? std::nextafterf(nearest, 0.0f) : nearest;
}

// sum[16x8] += a[16xK] b[Kx8].
template <int K>
void multiply(Deposit* lanes, const float (&a)[16][K], const float (&b)[8][K]) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float& sum = as<MmaDeposit>(lanes[lane]).sum[i];
      double products[K];
      for (int k = 0; k < K; ++k) products[k] = static_cast<double>(a[row][k]) * b[column][k];
      sum = add_products(sum, products);
    }
  }
}

template <float (*ToFloat)(uint16_t)>
void multiply_16_bit(Deposit* lanes) {
  float a[16][16], b[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaDeposit& operands = as<MmaDeposit>(lanes[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        const uint16_t bits = static_cast<uint16_t>(operands.a[i] >> 16 * half);
        a[group + i % 2 * 8][pair + half + i / 2 * 8] = ToFloat(bits);
      }
      for (int i = 0; i < 2; ++i) {
        const uint16_t bits = static_cast<uint16_t>(operands.b[i] >> 16 * half);
        b[group][pair + half + i * 8] = ToFloat(bits);
      }
    }
  }
  multiply(lanes, a, b);
}

}  // namespace

void combine_load_matrix(Deposit* lanes) { load_matrices<false>(lanes); }
void combine_load_matrix_transposed(Deposit* lanes) { load_matrices<true>(lanes); }
void combine_mma_half(Deposit* lanes) { multiply_16_bit<half_to_float>(lanes); }
void combine_mma_bfloat16(Deposit* lanes) { multiply_16_bit<bfloat16_to_float>(lanes); }

void combine_mma_tf32(Deposit* lanes) {
  constexpr uint32_t kUsedBits = 0xffffe000u;  // the hardware ignores the rest
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaDeposit& operands = as<MmaDeposit>(lanes[lane]);
    const int group = lane / 4, within = lane % 4;
    for (int i = 0; i < 4; ++i) {
      a[group + i % 2 * 8][within + i / 2 * 4] = float_of(operands.a[i] & kUsedBits);
    }
    for (int i = 0; i < 2; ++i) b[group][within + i * 4] = float_of(operands.b[i] & kUsedBits);
  }
  multiply(lanes, a, b);
}

}  // namespace birnn::emulator
