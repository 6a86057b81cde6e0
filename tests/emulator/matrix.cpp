// ldmatrix and mma on the deposits of a warp. Fragment layouts: PTX ISA, sections "Matrix
// fragments for mma.m16n8k16 with floating point type" and "... mma.m16n8k8".
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

// sum[16x8] += a[16xK] b[Kx8]. The hardware adds in an order and precision of its own; here each
// sum is rounded to float once.
template <int K>
void multiply(Deposit* lanes, const float (&a)[16][K], const float (&b)[8][K]) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float& sum = as<MmaDeposit>(lanes[lane]).sum[i];
      double exact = sum;
      for (int k = 0; k < K; ++k) exact += static_cast<double>(a[row][k]) * b[column][k];
      sum = static_cast<float>(exact);
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
