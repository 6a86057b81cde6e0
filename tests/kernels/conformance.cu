// Conformance of every intrinsic of device.h: one source that runs natively and under the emulator
// against the same plain C++ expectations. Run it on a GPU before anything else: what both
// implementations were meant to do, and only one is known to.
//
//   nvcc -std=c++17 -arch=native -Icsrc -Itests/emulator -Itests/kernels
//        tests/kernels/conformance.cu -o conformance && ./conformance
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cuda/device/device.h"
#include "float_formats.h"
#include "test_support.h"

using namespace birnn::device;
using birnn::test::Buffer;
using birnn::test::expect;
using birnn::test::run;
using std::to_string;

// ---------------------------------------------------------------------------------------------
// Who am I.

struct Identity {
  Dim3 block, grid;
  uint32_t thread, block_size, lane, warp, cluster_rank, cluster_size;
};

BIRNN_KERNEL void identity_kernel(Identity* out) {
  const Dim3 block = block_idx(), grid = grid_dim();
  const uint32_t number = (block.z * grid.y + block.y) * grid.x + block.x;
  Identity& mine = out[number * block_dim() + thread_idx()];
  mine.block = block;
  mine.grid = grid;
  mine.thread = thread_idx();
  mine.block_size = block_dim();
  mine.lane = lane_id();
  mine.warp = warp_id();
  mine.cluster_rank = cluster_rank();
  mine.cluster_size = cluster_size();
}

void test_identity(uint32_t cluster) {
  LaunchConfig config;
  config.grid = {8, 3, 2};
  config.threads = 96;
  config.cluster = cluster;
  Buffer<Identity> out(8 * 3 * 2 * 96);
  if (!run(config, identity_kernel, out.data())) return;
  for (uint32_t i = 0; i < out.size(); ++i) {
    const Identity& it = out[i];
    const uint32_t thread = i % 96, block = i / 96;
    const bool place = it.block.x == block % 8 && it.block.y == block / 8 % 3 &&
                       it.block.z == block / 24 && it.grid.x == 8 && it.grid.y == 3 &&
                       it.grid.z == 2;
    const bool self = it.thread == thread && it.block_size == 96 && it.lane == thread % 32 &&
                      it.warp == thread / 32;
    const bool rank = it.cluster_rank == block % cluster && it.cluster_size == cluster;
    if (place && self && rank) continue;
    return expect(false, "identity of thread " + to_string(i));
  }
}

// Many small independent blocks: what an elementwise kernel looks like.
BIRNN_KERNEL void elementwise_kernel(const float* x, float* y, uint32_t count) {
  const uint32_t stride = grid_dim().x * block_dim();
  for (uint32_t i = block_idx().x * block_dim() + thread_idx(); i < count; i += stride) {
    y[i] = 2.0f * x[i] + 1.0f;
  }
}

void test_elementwise() {
  constexpr uint32_t kCount = 100003;
  Buffer<float> x(kCount), y(kCount);
  for (uint32_t i = 0; i < kCount; ++i) x[i] = static_cast<float>(i);
  LaunchConfig config;
  config.grid.x = 100;
  config.threads = 64;
  if (!run(config, elementwise_kernel, x.data(), y.data(), kCount)) return;
  for (uint32_t i = 0; i < kCount; ++i) {
    if (y[i] != 2.0f * static_cast<float>(i) + 1.0f) return expect(false, "y " + to_string(i));
  }
}

// ---------------------------------------------------------------------------------------------
// Shared memory and block barriers.

BIRNN_KERNEL void shared_kernel(uint32_t* out, uint32_t* misaligned, uint32_t words) {
  Smem shared;
  uint8_t* odd = shared.alloc<uint8_t>(3);
  uint32_t* big = shared.alloc<uint32_t>(words);
  Bits128* aligned = shared.alloc<Bits128>(1, 128);
  const uint32_t thread = thread_idx(), threads = block_dim();
  if (thread < 3) odd[thread] = static_cast<uint8_t>(0xe0 + thread);
  if (thread == 0) *aligned = Bits128{1, 2, 3, 4};
  for (uint32_t i = thread; i < words; i += threads) big[i] = i * 7;
  sync_threads();
  for (uint32_t i = thread; i < words; i += threads) out[i] = big[words - 1 - i];
  if (thread == 0) {
    const uint32_t sum = odd[0] + odd[1] + odd[2] + aligned->x + aligned->w;
    *misaligned = reinterpret_cast<uintptr_t>(aligned) % 128 + sum - (3 * 0xe0 + 3 + 5) +
                  reinterpret_cast<uintptr_t>(big) % 16;
  }
}

void test_shared(uint32_t words) {
  Buffer<uint32_t> out(words), misaligned(1);
  LaunchConfig config;
  config.threads = 128;
  config.shared_bytes = 16 + words * 4 + 128 + 16;
  if (!run(config, shared_kernel, out.data(), misaligned.data(), words)) return;
  expect(misaligned[0] == 0, "alignment, or small arrays overwritten");
  for (uint32_t i = 0; i < words; ++i) {
    if (out[i] != (words - 1 - i) * 7) return expect(false, "word " + to_string(i));
  }
}

// Warp 0 hands tiles to three warps: barrier 1 says full, barrier 2 says empty.
BIRNN_KERNEL void named_barrier_kernel(uint32_t* out, int num_tiles) {
  Smem shared;
  uint32_t* tile = shared.alloc<uint32_t>(32);
  const int lane = lane_id(), warp = warp_id();
  uint32_t sum = 0;
  for (int i = 0; i < num_tiles; ++i) {
    if (warp == 0) {
      if (i > 0) bar_sync(2, 128);
      tile[lane] = static_cast<uint32_t>(i * 100 + lane);
      bar_arrive(1, 128);
    } else {
      bar_sync(1, 128);
      sum += tile[(lane + warp) % 32];
      if (i + 1 < num_tiles) bar_arrive(2, 128);
    }
  }
  if (warp > 0) out[(warp - 1) * 32 + lane] = sum;
}

void test_named_barriers() {
  constexpr int kTiles = 9;
  Buffer<uint32_t> out(96);
  LaunchConfig config;
  config.threads = 128;
  config.shared_bytes = 128;
  if (!run(config, named_barrier_kernel, out.data(), kTiles)) return;
  for (int i = 0; i < 96; ++i) {
    const int lane = (i % 32 + i / 32 + 1) % 32;
    const uint32_t wanted = kTiles * (kTiles - 1) / 2 * 100 + kTiles * lane;
    expect(out[i] == wanted, "sum of consumer " + to_string(i));
  }
}

// ---------------------------------------------------------------------------------------------
// Warp collectives.

BIRNN_KERNEL void warp_kernel(uint32_t* out) {
  Smem shared;
  uint32_t* exchange = shared.alloc<uint32_t>(32);
  const int lane = lane_id();
  const uint32_t value = static_cast<uint32_t>(lane * lane + 5);
  out[0 * 32 + lane] = shfl(value, (lane + 3) % 32);
  out[1 * 32 + lane] = shfl_xor(value, 9);
  out[2 * 32 + lane] = shfl_down(value, 5);
  out[3 * 32 + lane] = vote_ballot(lane % 3 == 0);
  out[4 * 32 + lane] = float_bits(shfl_xor(static_cast<float>(lane) + 0.5f, 16));
  exchange[lane] = value;
  sync_warp();
  out[5 * 32 + lane] = exchange[31 - lane];
  out[6 * 32 + lane] = reduce_or(lane % 7 == 3 ? 1u << lane : 0u);
  const uint32_t low_zeros = lane < 31 ? 0xa0000005u << (lane + 1) : 0u;
  out[7 * 32 + lane] = static_cast<uint32_t>(trailing_zeros(low_zeros));
}

void test_warp() {
  Buffer<uint32_t> out(8 * 32);
  LaunchConfig config;
  config.shared_bytes = 128;
  if (!run(config, warp_kernel, out.data())) return;
  const auto value = [](int lane) { return static_cast<uint32_t>(lane * lane + 5); };
  for (int lane = 0; lane < 32; ++lane) {
    expect(out[lane] == value((lane + 3) % 32), "shfl");
    expect(out[32 + lane] == value(lane ^ 9), "shfl_xor");
    expect(out[64 + lane] == value(lane + 5 < 32 ? lane + 5 : lane), "shfl_down");
    expect(out[96 + lane] == 0x49249249u, "vote_ballot");
    expect(birnn::emulator::float_of(out[128 + lane]) == static_cast<float>(lane ^ 16) + 0.5f,
           "shfl_xor of a float");
    expect(out[160 + lane] == value(31 - lane), "sync_warp");
    expect(out[192 + lane] == 0x81020408u, "reduce_or");
    expect(out[224 + lane] == static_cast<uint32_t>(lane + 1), "trailing_zeros");
  }
}

// ---------------------------------------------------------------------------------------------
// Matrices.

// out[0..3]: the fragments of ldmatrix_x4, out[4..7]: transposed. 32 lanes each.
BIRNN_KERNEL void load_matrix_kernel(const uint16_t* matrices, uint32_t* out) {
  Smem shared;
  uint16_t* tile = shared.alloc<uint16_t>(4 * 64);
  const int lane = lane_id();
  for (int i = lane; i < 4 * 64; i += 32) tile[i] = matrices[i];
  sync_warp();
  uint32_t fragment[4];
  ldmatrix_x4(fragment, tile + lane * 8);
  for (int i = 0; i < 4; ++i) out[i * 32 + lane] = fragment[i];
  ldmatrix_x4_trans(fragment, tile + lane * 8);
  for (int i = 0; i < 4; ++i) out[(4 + i) * 32 + lane] = fragment[i];
}

void test_load_matrix() {
  Buffer<uint16_t> matrices(4 * 64);
  for (size_t i = 0; i < matrices.size(); ++i) matrices[i] = static_cast<uint16_t>(i * 3 + 1);
  Buffer<uint32_t> out(8 * 32);
  LaunchConfig config;
  config.shared_bytes = 512;
  if (!run(config, load_matrix_kernel, matrices.data(), out.data())) return;
  for (int i = 0; i < 4; ++i) {
    const auto element = [&](int row, int column) {
      return static_cast<uint32_t>(matrices[i * 64 + row * 8 + column]);
    };
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      expect(out[i * 32 + lane] == (element(row, column) | element(row, column + 1) << 16),
             "ldmatrix_x4");
      expect(out[(4 + i) * 32 + lane] == (element(column, row) | element(column + 1, row) << 16),
             "ldmatrix_x4_trans");
    }
  }
}

// c[16x8] = a[16x16] b[16x8], row-major, for T in Half, BFloat16.
template <class T>
BIRNN_KERNEL void mma_kernel(const T* a, const T* b, float* c) {
  Smem shared;
  T* shared_a = shared.alloc<T>(16 * 16);
  T* shared_b = shared.alloc<T>(16 * 8);
  const int lane = lane_id();
  for (int i = lane; i < 16 * 16; i += 32) shared_a[i] = a[i];
  for (int i = lane; i < 16 * 8; i += 32) shared_b[i] = b[i];
  sync_warp();
  uint32_t fragment_a[4], fragment_b[4];
  ldmatrix_x4(fragment_a, shared_a + lane % 16 * 16 + lane / 16 * 8);
  ldmatrix_x4_trans(fragment_b, shared_b + lane % 16 * 8);  // k 0-7, k 8-15, and both again
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  mma_m16n8k16<T>(sum, fragment_a, fragment_b[0], fragment_b[1]);
  for (int i = 0; i < 4; ++i) {
    c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
  }
}

// c[16x8] = a[16x8] b[8x8], row-major.
BIRNN_KERNEL void mma_tf32_kernel(const float* a, const float* b, float* c) {
  const int group = lane_id() / 4, within = lane_id() % 4;
  uint32_t fragment_a[4];
  for (int i = 0; i < 4; ++i) {
    fragment_a[i] = to_tf32(a[(group + i % 2 * 8) * 8 + within + i / 2 * 4]);
  }
  const uint32_t b0 = to_tf32(b[within * 8 + group]), b1 = to_tf32(b[(within + 4) * 8 + group]);
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  mma_m16n8k8_tf32(sum, fragment_a, b0, b1);
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + within * 2 + i % 2] = sum[i];
}

float host_round(Half*, float x) {
  return birnn::emulator::half_to_float(birnn::emulator::float_to_half(x));
}
float host_round(BFloat16*, float x) {
  return birnn::emulator::bfloat16_to_float(birnn::emulator::float_to_bfloat16(x));
}
float host_round(float*, float x) {  // to tf32
  return birnn::emulator::float_of(birnn::emulator::float_to_tf32(x));
}
void host_store(Half* to, float x) { *to = static_cast<Half>(birnn::emulator::float_to_half(x)); }
void host_store(BFloat16* to, float x) {
  *to = static_cast<BFloat16>(birnn::emulator::float_to_bfloat16(x));
}
void host_store(float* to, float x) { *to = x; }

template <class T>
void test_mma(void (*kernel)(const T*, const T*, float*), int depth) {
  std::mt19937 generator(3);
  std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
  Buffer<T> a(16 * depth), b(depth * 8);
  Buffer<float> c(16 * 8);
  std::vector<float> rounded_a(a.size()), rounded_b(b.size());
  const auto fill = [&](Buffer<T>& elements, std::vector<float>& rounded) {
    for (size_t i = 0; i < elements.size(); ++i) {
      const float value = uniform(generator);
      host_store(&elements[i], value);
      rounded[i] = host_round(&elements[i], value);
    }
  };
  fill(a, rounded_a);
  fill(b, rounded_b);
  LaunchConfig config;
  config.shared_bytes = 16 * 16 * 2 + 16 * 8 * 2;
  if (!run(config, kernel, static_cast<const T*>(a.data()), static_cast<const T*>(b.data()),
           c.data())) {
    return;
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      double wanted = 0;
      for (int k = 0; k < depth; ++k) {
        wanted += static_cast<double>(rounded_a[row * depth + k]) * rounded_b[k * 8 + column];
      }
      const double error = std::fabs(c[row * 8 + column] - wanted);
      expect(error < 2e-5, "element " + to_string(row) + "," + to_string(column));
    }
  }
}

// The same of operands as they are: the bits past those of tf32 must count for nothing, or for one
// rounding.
BIRNN_KERNEL void mma_unrounded_kernel(const float* a, const float* b, float* c) {
  const int group = lane_id() / 4, within = lane_id() % 4;
  uint32_t fragment_a[4];
  for (int i = 0; i < 4; ++i) {
    fragment_a[i] = float_bits(a[(group + i % 2 * 8) * 8 + within + i / 2 * 4]);
  }
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  mma_m16n8k8_tf32(sum, fragment_a, float_bits(b[within * 8 + group]),
                   float_bits(b[(within + 4) * 8 + group]));
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + within * 2 + i % 2] = sum[i];
}

void test_mma_of_unrounded() {
  std::mt19937 generator(4);
  std::uniform_real_distribution<float> uniform(0.5f, 2.0f);
  Buffer<float> a(16 * 8), b(8 * 8), c(16 * 8);
  for (size_t i = 0; i < a.size(); ++i) a[i] = uniform(generator);
  for (size_t i = 0; i < b.size(); ++i) b[i] = uniform(generator);
  if (!run(LaunchConfig{}, mma_unrounded_kernel, static_cast<const float*>(a.data()),
           static_cast<const float*>(b.data()), c.data()))
    return;
  for (int i = 0; i < 16 * 8; ++i) {
    double wanted = 0;
    for (int k = 0; k < 8; ++k) wanted += double{a[i / 8 * 8 + k]} * b[k * 8 + i % 8];
    expect(std::fabs(c[i] / wanted - 1) < 0x1p-9, "element " + to_string(i));
  }
}

// sums [2][32]: 1 and a sum that fp32 would round up, by each kind of mma.
BIRNN_KERNEL void mma_cuts_kernel(float* sums, float three_quarters) {
  float of_half[4] = {1.0f, 1.0f, 1.0f, 1.0f}, of_tf32[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  // One product of the row's 16, or 8: 2^-12 times 1.5 * 2^-12.
  const bool first = lane_id() % 4 == 0;
  const uint32_t half = first ? static_cast<uint32_t>(from_float<Half>(0x1p-12f)) : 0u;
  const uint32_t other =
      first ? static_cast<uint32_t>(from_float<Half>(2 * three_quarters * 0x1p-12f)) : 0u;
  const uint32_t a_half[4] = {half, half, 0u, 0u};
  mma_m16n8k16<Half>(of_half, a_half, other, 0u);
  const uint32_t single = first ? float_bits(0x1p-12f) : 0u;
  const uint32_t a_tf32[4] = {single, single, 0u, 0u};
  mma_m16n8k8_tf32(of_tf32, a_tf32, first ? float_bits(2 * three_quarters * 0x1p-12f) : 0u, 0u);
  sums[lane_id()] = of_half[0];
  sums[32 + lane_id()] = of_tf32[0];
}

// What fragments.cuh reckons with, and the documentation leaves open: a chip that rounds passes,
// and says so.
void test_mma_cuts() {
  Buffer<float> sums(64);
  if (!run(LaunchConfig{}, mma_cuts_kernel, sums.data(), 0.75f)) return;
  for (const int kind : {0, 32}) {
    bool cuts = true, rounds = true;
    for (int lane = 0; lane < 32; ++lane) {
      cuts &= sums[kind + lane] == 1.0f;
      rounds &= sums[kind + lane] == 1.0f + 0x1p-23f;
    }
    expect(cuts || rounds, "neither cut nor rounded");
    std::printf("(mma of %s %s its sums)\n", kind ? "tf32" : "fp16", cuts ? "cuts" : "rounds");
  }
}

// ---------------------------------------------------------------------------------------------
// Numbers.

// All 65536 patterns: the float of each, and each made again from its float.
template <class T>
BIRNN_KERNEL void all_patterns_kernel(float* floats, uint16_t* again) {
  const uint32_t stride = grid_dim().x * block_dim();
  for (uint32_t i = block_idx().x * block_dim() + thread_idx(); i < 65536; i += stride) {
    const T element = static_cast<T>(i);
    floats[i] = to_float(element);
    again[i] = static_cast<uint16_t>(from_float<T>(to_float(element)));
  }
}

template <class T>
void test_patterns(float (*expected)(uint16_t)) {
  Buffer<float> floats(65536);
  Buffer<uint16_t> again(65536);
  LaunchConfig config;
  config.grid.x = 16;
  config.threads = 64;
  if (!run(config, all_patterns_kernel<T>, floats.data(), again.data())) return;
  for (uint32_t i = 0; i < 65536; ++i) {
    const float wanted = expected(static_cast<uint16_t>(i));
    const bool good = std::isnan(wanted) ? std::isnan(floats[i])
                                         : floats[i] == wanted && again[i] == i &&
                                               std::signbit(floats[i]) == std::signbit(wanted);
    if (!good) return expect(false, "pattern " + to_string(i));
  }
}

BIRNN_KERNEL void round_kernel(const float* x, uint32_t count, uint16_t* half, uint16_t* bfloat16,
                               uint32_t* tf32, uint32_t* packed) {
  const uint32_t stride = grid_dim().x * block_dim();
  for (uint32_t i = block_idx().x * block_dim() + thread_idx(); i < count; i += stride) {
    half[i] = static_cast<uint16_t>(from_float<Half>(x[i]));
    bfloat16[i] = static_cast<uint16_t>(from_float<BFloat16>(x[i]));
    tf32[i] = to_tf32(x[i]);
    Half low, high;
    unpack2(pack2(from_float<Half>(x[i]), from_float<Half>(1.0f)), low, high);
    packed[i] = static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16;
  }
}

void test_rounding() {
  // Random values of every magnitude, and the neighbours of every tie of both formats.
  std::vector<float> values;
  std::mt19937 generator(5);
  for (int i = 0; i < 20000; ++i) {
    values.push_back(birnn::emulator::float_of(static_cast<uint32_t>(generator())));
  }
  for (uint32_t pattern = 0; pattern < 65536; pattern += 7) {
    const uint32_t half =
        birnn::emulator::bits_of(birnn::emulator::half_to_float(static_cast<uint16_t>(pattern)));
    for (const uint32_t tie : {half + 0x1000u, (pattern << 16) + 0x8000u}) {
      for (const uint32_t bits : {tie - 1, tie, tie + 1}) {
        values.push_back(birnn::emulator::float_of(bits));
      }
    }
  }
  for (const float special : {0.0f, -0.0f, 65504.0f, 65519.99f, 65520.0f, 6e-8f, 2.98e-8f, 3e-8f}) {
    values.push_back(special);
  }
  const uint32_t count = static_cast<uint32_t>(values.size());
  Buffer<float> x(count);
  for (uint32_t i = 0; i < count; ++i) x[i] = values[i];
  Buffer<uint16_t> half(count), bfloat16(count);
  Buffer<uint32_t> tf32(count), packed(count);
  LaunchConfig config;
  config.grid.x = 16;
  config.threads = 64;
  if (!run(config, round_kernel, static_cast<const float*>(x.data()), count, half.data(),
           bfloat16.data(), tf32.data(), packed.data())) {
    return;
  }
  for (uint32_t i = 0; i < count; ++i) {
    const uint16_t wanted_half = birnn::emulator::float_to_half(x[i]);
    const uint16_t wanted_bfloat16 = birnn::emulator::float_to_bfloat16(x[i]);
    const std::string which = " of bits " + to_string(birnn::emulator::bits_of(x[i]));
    if (std::isnan(x[i])) {
      expect((half[i] & 0x7fff) > 0x7c00, "half" + which);
      expect((bfloat16[i] & 0x7fff) > 0x7f80, "bfloat16" + which);
      continue;
    }
    expect(half[i] == wanted_half, "half" + which);
    expect(bfloat16[i] == wanted_bfloat16, "bfloat16" + which);
    expect(packed[i] == (wanted_half | 0x3c00u << 16), "pack2" + which);
    const uint32_t kept = 0xffffe000u;
    expect((tf32[i] & kept) == (birnn::emulator::float_to_tf32(x[i]) & kept), "tf32" + which);
  }
}

BIRNN_KERNEL void functions_kernel(const float* x, float* tanh_out, float* exp_out,
                                   float* sigmoid_out, uint32_t* bits_out) {
  const uint32_t i = block_idx().x * block_dim() + thread_idx();
  tanh_out[i] = tanh_fast(x[i]);
  exp_out[i] = exp_fast(x[i]);
  sigmoid_out[i] = sigmoid_fast(x[i]);
  bits_out[i] = float_bits(bits_float(float_bits(x[i]) ^ 1u));
}

void test_functions() {
  constexpr uint32_t kCount = 4096;
  Buffer<float> x(kCount), tanh_out(kCount), exp_out(kCount), sigmoid_out(kCount);
  Buffer<uint32_t> bits_out(kCount);
  for (uint32_t i = 0; i < kCount; ++i) x[i] = (static_cast<float>(i) - 2047.5f) / 128.0f;
  LaunchConfig config;
  config.grid.x = kCount / 256;
  config.threads = 256;
  if (!run(config, functions_kernel, static_cast<const float*>(x.data()), tanh_out.data(),
           exp_out.data(), sigmoid_out.data(), bits_out.data())) {
    return;
  }
  double worst_tanh = 0, worst_exp = 0, worst_sigmoid = 0;
  bool bits = true;
  for (uint32_t i = 0; i < kCount; ++i) {
    const double v = x[i];
    const double ulps = 2 + std::fabs(1.173 * v) + 1;
    worst_tanh = std::max(worst_tanh, std::fabs(tanh_out[i] / std::tanh(v) - 1));
    worst_exp = std::max(worst_exp, std::fabs(exp_out[i] / std::exp(v) - 1) / ulps);
    worst_sigmoid = std::max(worst_sigmoid, std::fabs(sigmoid_out[i] - 1 / (1 + std::exp(-v))));
    bits &= bits_out[i] == (birnn::emulator::bits_of(x[i]) ^ 1u);
  }
  expect(worst_tanh < 0x1p-11 * 1.01, "tanh_fast: relative error " + to_string(worst_tanh));
  expect(worst_exp < 0x1p-23, "exp_fast: relative error / ulps " + to_string(worst_exp));
  expect(worst_sigmoid < 0x1p-12 * 1.01, "sigmoid_fast: error " + to_string(worst_sigmoid));
  expect(bits, "float_bits, bits_float");
}

template <class Real>
BIRNN_KERNEL void precise_functions_kernel(const Real* x, Real* tanh_out, Real* exp_out,
                                           Real* sqrt_out) {
  const uint32_t i = block_idx().x * block_dim() + thread_idx();
  tanh_out[i] = tanh_precise(x[i]);
  exp_out[i] = exp_precise(x[i]);
  sqrt_out[i] = sqrt_precise(x[i] < Real(0) ? -x[i] : x[i]);
}

// The device's two units in the last place, and one for a host whose long double is no wider.
template <class Real>
void test_precise_functions() {
  constexpr uint32_t kCount = 4096;
  constexpr double kTolerance = 3 * static_cast<double>(std::numeric_limits<Real>::epsilon());
  Buffer<Real> x(kCount), tanh_out(kCount), exp_out(kCount), sqrt_out(kCount);
  for (uint32_t i = 0; i < kCount; ++i) x[i] = (static_cast<Real>(i) - Real(2047.5)) / Real(48);
  x[0] = std::numeric_limits<Real>::quiet_NaN();
  x[1] = std::numeric_limits<Real>::infinity();
  x[2] = -x[1];
  LaunchConfig config;
  config.grid.x = kCount / 256;
  config.threads = 256;
  if (!run(config, precise_functions_kernel<Real>, static_cast<const Real*>(x.data()),
           tanh_out.data(), exp_out.data(), sqrt_out.data())) {
    return;
  }
  expect(std::isnan(tanh_out[0]) && std::isnan(exp_out[0]), "NaN stays NaN");
  expect(std::fabs(tanh_out[1] - 1) < kTolerance && std::fabs(tanh_out[2] + 1) < kTolerance,
         "tanh_precise of infinity");
  expect(std::isinf(exp_out[1]) && exp_out[2] == 0, "exp_precise of infinity");
  expect(std::isnan(sqrt_out[0]) && std::isinf(sqrt_out[1]), "sqrt_precise of NaN and infinity");
  double worst_tanh = 0, worst_exp = 0;
  bool rounds = true;
  for (uint32_t i = 3; i < kCount; ++i) {
    const long double v = x[i];
    worst_tanh = std::max(worst_tanh, std::fabs(double(tanh_out[i] / std::tanh(v) - 1)));
    worst_exp = std::max(worst_exp, std::fabs(double(exp_out[i] / std::exp(v) - 1)));
    rounds &= sqrt_out[i] == std::sqrt(std::fabs(x[i]));
  }
  expect(worst_tanh < kTolerance, "tanh_precise: relative error " + to_string(worst_tanh));
  expect(worst_exp < kTolerance, "exp_precise: relative error " + to_string(worst_exp));
  expect(rounds, "sqrt_precise is rounded correctly");
}

// ---------------------------------------------------------------------------------------------
// cp.async.

// Copies `words` words by pieces of Bytes, the last of which is cut to `valid` bytes.
template <int Bytes>
BIRNN_KERNEL void copy_kernel(const uint32_t* in, uint32_t* out, uint32_t valid) {
  constexpr int kWords = Bytes / 4;
  Smem shared;
  uint32_t* tile = shared.alloc<uint32_t>(32 * kWords);
  const int lane = lane_id();
  const uint32_t source_bytes = lane == 31 ? valid : Bytes;
  cp_async<Bytes>(tile + lane * kWords, in + lane * kWords, source_bytes);
  cp_async_commit();
  cp_async_wait<0>();
  sync_warp();
  for (int i = lane; i < 32 * kWords; i += 32) out[i] = tile[i];
}

template <int Bytes>
void test_copy() {
  constexpr uint32_t kWords = Bytes / 4 * 32;
  for (uint32_t valid = 0; valid <= Bytes; valid += 4) {
    const uint32_t in_words = kWords - (Bytes - valid) / 4;  // nothing past it may be read
    Buffer<uint32_t> in(in_words), out(kWords);
    for (uint32_t i = 0; i < in_words; ++i) in[i] = i + 1;
    LaunchConfig config;
    config.shared_bytes = kWords * 4;
    if (!run(config, copy_kernel<Bytes>, static_cast<const uint32_t*>(in.data()), out.data(),
             valid)) {
      return;
    }
    for (uint32_t i = 0; i < kWords; ++i) {
      expect(out[i] == (i < in_words ? i + 1 : 0),
             to_string(Bytes) + " bytes, " + to_string(valid) + " valid, word " + to_string(i));
    }
  }
}

// A pipeline of three stages: two copies in flight while one is summed.
BIRNN_KERNEL void pipeline_kernel(const float* in, float* out, int num_tiles) {
  constexpr int kStages = 3, kTile = 128;
  Smem shared;
  float* stages = shared.alloc<float>(kStages * kTile);
  const int lane = lane_id();
  float sum = 0.0f;
  const auto fetch = [&](int tile) {
    if (tile < num_tiles) {
      cp_async<16>(stages + tile % kStages * kTile + lane * 4, in + tile * kTile + lane * 4);
    }
    cp_async_commit();
  };
  fetch(0);
  fetch(1);
  for (int tile = 0; tile < num_tiles; ++tile) {
    fetch(tile + 2);
    cp_async_wait<2>();
    sync_warp();  // the other lanes' copies
    for (int i = 0; i < 4; ++i) sum += stages[tile % kStages * kTile + (lane + 32 * i + 1) % kTile];
    sync_warp();  // the stage is free
  }
  cp_async_wait<0>();
  out[lane] = sum;
}

void test_pipeline() {
  constexpr int kTiles = 8;
  Buffer<float> in(kTiles * 128), out(32);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 19);
  LaunchConfig config;
  config.shared_bytes = 3 * 128 * 4;
  if (!run(config, pipeline_kernel, static_cast<const float*>(in.data()), out.data(), kTiles)) {
    return;
  }
  for (int lane = 0; lane < 32; ++lane) {
    float wanted = 0;
    for (int tile = 0; tile < kTiles; ++tile) {
      for (int i = 0; i < 4; ++i) wanted += in[tile * 128 + (lane + 32 * i + 1) % 128];
    }
    expect(out[lane] == wanted, "lane " + to_string(lane));
  }
}

// ---------------------------------------------------------------------------------------------
// Clusters.

// Each block stores to its right neighbour and loads from its left one: 28 bytes a lane.
struct ClusterCell {
  uint32_t word, padding;
  Bits64 two;
  Bits128 four;
};

BIRNN_KERNEL void cluster_kernel(uint32_t* stored, uint32_t* loaded) {
  Smem shared;
  ClusterCell* inbox = shared.alloc<ClusterCell>(32);
  ClusterCell* own = shared.alloc<ClusterCell>(32);
  const uint32_t lane = lane_id(), rank = cluster_rank(), size = cluster_size();
  const uint32_t tag = rank * 1000 + lane * 10;
  own[lane] = ClusterCell{tag, 0, {tag + 1, tag + 2}, {tag + 3, tag + 4, tag + 5, tag + 6}};
  cluster_arrive_relaxed();  // the peers have begun: all that a store to them needs
  cluster_wait();
  ClusterCell* mine = inbox + lane;
  const uint32_t right = (rank + 1) % size, left = (rank + size - 1) % size;
  store_cluster(map_rank(&mine->word, right), tag);
  store_cluster(map_rank(&mine->two, right), Bits64{tag + 1, tag + 2});
  store_cluster(map_rank(mine, right) + 16u, Bits128{tag + 3, tag + 4, tag + 5, tag + 6});
  cluster_arrive();  // publishes the stores, and `own` to the right neighbour
  const uint32_t at = (block_idx().x * 32 + lane) * 7;
  cluster_wait();
  const uint32_t word = load_cluster<uint32_t>(map_rank(&own[lane].word, left));
  const Bits64 two = load_cluster<Bits64>(map_rank(&own[lane].two, left));
  const Bits128 four = load_cluster<Bits128>(map_rank(&own[lane].four, left));
  const uint32_t read[7] = {word, two.x, two.y, four.x, four.y, four.z, four.w};
  for (int i = 0; i < 7; ++i) loaded[at + i] = read[i];
  const uint32_t got[7] = {mine->word,   mine->two.x,  mine->two.y, mine->four.x,
                           mine->four.y, mine->four.z, mine->four.w};
  for (int i = 0; i < 7; ++i) stored[at + i] = got[i];
  cluster_sync();  // the right neighbour has read `own`
}

void test_cluster(uint32_t size) {
  LaunchConfig config;
  config.grid.x = 2 * size;
  config.cluster = size;
  config.shared_bytes = 2 * 32 * sizeof(ClusterCell);
  int resident = 0;
  const Status status = max_resident_blocks(config, cluster_kernel, &resident);
  expect(status == kSuccess, "max_resident_blocks");
  if (resident < static_cast<int>(size)) {
    std::printf("(clusters of %u do not fit this device)\n", size);
    return;
  }
  Buffer<uint32_t> stored(2 * size * 32 * 7), loaded(2 * size * 32 * 7);
  if (!run(config, cluster_kernel, stored.data(), loaded.data())) return;
  for (uint32_t i = 0; i < stored.size(); ++i) {
    const uint32_t item = i % 7, lane = i / 7 % 32, rank = i / 7 / 32 % size;
    const uint32_t wanted = (rank + size - 1) % size * 1000 + lane * 10 + item;
    expect(stored[i] == wanted, "stored " + to_string(i));
    expect(loaded[i] == wanted, "loaded " + to_string(i));
  }
}

// A ring: rank r sends to r + distance by st.async, to itself if that is 0, one buffer, which the
// receiver declares free by a remote arrive. Lanes 0 to 15 send 16 bytes, the others 8.
BIRNN_KERNEL void ring_kernel(uint32_t* out, int steps, uint32_t distance) {
  Smem shared;
  Bits128* wide = shared.alloc<Bits128>(16);
  Bits64* narrow = shared.alloc<Bits64>(16);
  MBarrier* full = shared.alloc<MBarrier>(1);
  MBarrier* empty = shared.alloc<MBarrier>(1);
  const uint32_t lane = lane_id(), rank = cluster_rank(), size = cluster_size();
  const uint32_t right = (rank + distance) % size, left = (rank + size - distance) % size;
  if (lane == 0) {
    mbarrier_init(full, 1);
    mbarrier_init(empty, 32);
    mbarrier_init_fence();
  }
  cluster_sync();  // everybody's mbarriers are there
  uint32_t value = rank;
  for (int step = 0; step < steps; ++step) {
    if (lane == 0) mbarrier_arrive_expect_tx(full, 16 * 16 + 16 * 8);
    if (step > 0) mbarrier_wait<Scope::kCluster>(empty, (step - 1) & 1);
    const uint32_t sent = value + lane;
    if (lane < 16) {
      st_async(map_rank(wide + lane, right), Bits128{sent, sent, sent, sent},
               map_rank(full, right));
    } else {
      st_async(map_rank(narrow + lane - 16, right), Bits64{sent, sent}, map_rank(full, right));
    }
    mbarrier_wait<Scope::kCluster>(full, step & 1);
    value = 1 - lane + (lane < 16 ? wide[lane].w : narrow[lane - 16].y);
    mbarrier_arrive_remote(map_rank(empty, left));  // the sender may write again
  }
  // The right neighbour's last arrival at `empty` is still to come: nobody leaves before. A relaxed
  // arrive would not do: it does not wait for the arrivals that this thread has sent.
  cluster_sync();
  out[block_idx().x * 32 + lane] = value;
}

void test_ring(uint32_t size, uint32_t distance) {
  constexpr int kSteps = 9;
  LaunchConfig config;
  config.grid.x = size;
  config.cluster = size;
  config.shared_bytes = 16 * 16 + 16 * 8 + 32;
  Buffer<uint32_t> out(size * 32);
  if (!run(config, ring_kernel, out.data(), kSteps, distance)) return;
  for (uint32_t i = 0; i < out.size(); ++i) {
    const uint32_t rank = i / 32;
    expect(out[i] == (rank + (size - distance) * kSteps) % size + kSteps, "value " + to_string(i));
  }
}

// mbarriers inside a block: 64 producers, 32 consumers, phases 0 and 1 in turn.
BIRNN_KERNEL void block_mbarrier_kernel(uint32_t* out, int steps) {
  Smem shared;
  uint32_t* data = shared.alloc<uint32_t>(64);
  MBarrier* full = shared.alloc<MBarrier>(1);
  MBarrier* empty = shared.alloc<MBarrier>(1);
  const uint32_t thread = thread_idx();
  if (thread == 0) {
    mbarrier_init(full, 64);
    mbarrier_init(empty, 32);
  }
  sync_threads();
  uint32_t sum = 0;
  for (int step = 0; step < steps; ++step) {
    if (thread < 64) {
      if (step > 0) mbarrier_wait<Scope::kBlock>(empty, (step - 1) & 1);
      data[thread] = thread + static_cast<uint32_t>(step);
      mbarrier_arrive(full);
    } else {
      mbarrier_wait<Scope::kBlock>(full, step & 1);
      for (int i = 0; i < 64; ++i) sum += data[i];
      mbarrier_arrive(empty);
    }
  }
  if (thread >= 64) out[thread - 64] = sum;
}

void test_block_mbarrier() {
  constexpr int kSteps = 5;
  LaunchConfig config;
  config.threads = 96;
  config.shared_bytes = 64 * 4 + 32;
  Buffer<uint32_t> out(32);
  if (!run(config, block_mbarrier_kernel, out.data(), kSteps)) return;
  for (int i = 0; i < 32; ++i) expect(out[i] == 5 * 2016 + 64 * 10, "sum " + to_string(i));
}

// ---------------------------------------------------------------------------------------------
// Global memory shared by running blocks.

// Block 0 publishes, block 1 takes: by release and acquire, by fences, by words that carry their
// own epoch. `words` and `flags` are 0 on entry.
BIRNN_KERNEL void publish_kernel(uint32_t* plain, uint32_t* flags, uint64_t* words, WordPair* pairs,
                                 uint32_t* out) {
  const uint32_t thread = thread_idx();
  if (block_idx().x == 0) {
    plain[thread] = thread + 1;
    sync_threads();
    if (thread == 0) store_release_gpu(&flags[0], 7u);  // for the whole block's writes
    plain[64 + thread] = thread + 2;
    sync_threads();
    if (thread == 0) {
      fence_acq_rel_gpu();
      store_relaxed_gpu(&flags[1], 8u);
    }
    store_relaxed_gpu(&words[thread], uint64_t{9} << 32 | thread);
    store_relaxed_gpu(&pairs[thread], WordPair{uint64_t{1} << 32 | thread, uint64_t{1} << 32 | 5u});
  } else {
    while (load_acquire_gpu(&flags[0]) != 7u) spin_pause();
    out[thread] = plain[63 - thread];
    while (load_relaxed_gpu(&flags[1]) != 8u) spin_pause();
    fence_acq_rel_gpu();
    out[64 + thread] = plain[64 + 63 - thread];
    uint64_t word;
    while ((word = load_relaxed_gpu(&words[63 - thread])) >> 32 != 9u) spin_pause();
    out[128 + thread] = static_cast<uint32_t>(word);
    WordPair pair = load_relaxed_gpu(&pairs[63 - thread]);
    while (pair.first >> 32 != 1u || pair.second >> 32 != 1u) {
      spin_pause();
      pair = load_relaxed_gpu(&pairs[63 - thread]);
    }
    out[192 + thread] = static_cast<uint32_t>(pair.first) + static_cast<uint32_t>(pair.second);
  }
}

void test_publish() {
  Buffer<uint32_t> plain(128), flags(2, 0u), out(256);
  Buffer<uint64_t> words(64, uint64_t{0});
  Buffer<WordPair> pairs(64, WordPair{0, 0});
  LaunchConfig config;
  config.grid.x = 2;
  config.threads = 64;
  config.cooperative = true;
  if (!run(config, publish_kernel, plain.data(), flags.data(), words.data(), pairs.data(),
           out.data())) {
    return;
  }
  for (uint32_t i = 0; i < 64; ++i) {
    expect(out[i] == 64 - i, "release and acquire " + to_string(i));
    expect(out[64 + i] == 65 - i, "fences " + to_string(i));
    expect(out[128 + i] == 63 - i, "64-bit word " + to_string(i));
    expect(out[192 + i] == 68 - i, "pair of words " + to_string(i));
  }
}

BIRNN_KERNEL void grid_sync_kernel(uint32_t* arrivals, uint32_t* cells, uint32_t* sums,
                                   uint32_t rounds) {
  const uint32_t blocks = grid_dim().x, block = block_idx().x, thread = thread_idx();
  for (uint32_t round = 0; round < rounds; ++round) {
    uint32_t* slot = cells + (round & 1) * blocks;  // two: one is read while the other is written
    if (thread == 40) slot[block] = (block + 1) * (round + 1);
    grid_sync(arrivals, round + 1);
    if (thread == 3) {
      uint32_t sum = 0;
      for (uint32_t i = 0; i < blocks; ++i) sum += slot[i];
      sums[round * blocks + block] = sum;
    }
  }
}

void test_grid_sync() {
  constexpr uint32_t kBlocks = 12, kRounds = 6;
  Buffer<uint32_t> arrivals(1, 0u), cells(2 * kBlocks), sums(kBlocks * kRounds);
  LaunchConfig config;
  config.grid.x = kBlocks;
  config.threads = 64;
  config.cooperative = true;
  if (!run(config, grid_sync_kernel, arrivals.data(), cells.data(), sums.data(), kRounds)) return;
  for (uint32_t i = 0; i < sums.size(); ++i) {
    expect(sums[i] == kBlocks * (kBlocks + 1) / 2 * (i / kBlocks + 1), "sum " + to_string(i));
  }
}

BIRNN_KERNEL void count_kernel(uint32_t* counter) { red_add_release_gpu(counter, 3u); }

void test_reduction() {
  Buffer<uint32_t> counter(1, 10u);
  LaunchConfig config;
  config.grid.x = 40;
  config.threads = 64;
  if (run(config, count_kernel, counter.data())) {
    expect(counter[0] == 10 + 40 * 64 * 3, "red_add_release_gpu");
  }
}

// ---------------------------------------------------------------------------------------------
// Launches.

void test_launch_errors() {
  Buffer<uint32_t> counter(1, 0u);
  LaunchConfig config;
  if (!run(config, elementwise_kernel, static_cast<const float*>(nullptr),
           static_cast<float*>(nullptr), 0u))
    return;  // the counter is on the device now
  const auto refused = [&](const LaunchConfig& config, const char* what) {
    const Status status = launch(config, count_kernel, counter.data());
    expect(status != kSuccess, what);
    expect(std::strlen(error_message(status)) > 0, "error_message");
#if defined(__CUDACC__)
    cudaGetLastError();  // the runtime keeps a copy
#endif
  };
  config.threads = 48;
  refused(config, "a block of 48 threads");
  config.threads = 32;
  config.shared_bytes = 300 * 1024;
  refused(config, "300 KiB of shared memory");
  config.shared_bytes = 0;
  config.grid.y = 70000;
  refused(config, "70000 blocks along y");
  config.grid.y = 1;
  if (birnn::test::has_clusters()) {
    config.grid.x = 3;
    config.cluster = 2;
    refused(config, "three blocks in clusters of two");
  }
#if !defined(BIRNN_EMULATED)
  expect(birnn::test::Mirrored::copy_all(cudaMemcpyDeviceToHost) == kSuccess, "copy");
#endif
  expect(counter[0] == 0, "a refused launch ran");
  config = LaunchConfig{};
  int resident = 0;
  expect(max_resident_blocks(config, count_kernel, &resident) == kSuccess && resident > 0,
         "max_resident_blocks");
  if (run(config, count_kernel, counter.data())) expect(counter[0] == 96, "after errors");
}

int main(int argc, char** argv) {
  constexpr bool kNeedsClusters = true;
  return birnn::test::run_cases(
      {
          {"identity", [] { test_identity(1); }},
          {"identity_cluster", [] { test_identity(4); }, kNeedsClusters},
          {"elementwise", test_elementwise},
          {"shared", [] { test_shared(500); }},
          {"shared_above_48_kb", [] { test_shared(20000); }},
          {"named_barriers", test_named_barriers},
          {"warp", test_warp},
          {"load_matrix", test_load_matrix},
          {"mma_half", [] { test_mma(mma_kernel<Half>, 16); }},
          {"mma_bfloat16", [] { test_mma(mma_kernel<BFloat16>, 16); }},
          {"mma_tf32", [] { test_mma(mma_tf32_kernel, 8); }},
          {"mma_tf32_of_fp32", test_mma_of_unrounded},
          {"mma_cuts", test_mma_cuts},
          {"patterns_half", [] { test_patterns<Half>(birnn::emulator::half_to_float); }},
          {"patterns_bfloat16",
           [] { test_patterns<BFloat16>(birnn::emulator::bfloat16_to_float); }},
          {"rounding", test_rounding},
          {"functions", test_functions},
          {"precise_functions_float", test_precise_functions<float>},
          {"precise_functions_double", test_precise_functions<double>},
          {"copy_4", test_copy<4>},
          {"copy_8", test_copy<8>},
          {"copy_16", test_copy<16>},
          {"pipeline", test_pipeline},
          {"cluster_2", [] { test_cluster(2); }, kNeedsClusters},
          {"cluster_3", [] { test_cluster(3); }, kNeedsClusters},
          {"cluster_7", [] { test_cluster(7); }, kNeedsClusters},
          {"cluster_12", [] { test_cluster(12); }, kNeedsClusters},
          {"cluster_16", [] { test_cluster(16); }, kNeedsClusters},
          {"ring", [] { test_ring(4, 1); }, kNeedsClusters},
          {"ring_to_itself", [] { test_ring(3, 0); }, kNeedsClusters},
          {"block_mbarrier", test_block_mbarrier, kNeedsClusters},
          {"publish", test_publish},
          {"grid_sync", test_grid_sync},
          {"reduction", test_reduction},
          {"launch_errors", test_launch_errors},
      },
      argc, argv);
}
