// Plain data that kernels, their launchers and the two implementations of device.h share.
// No CUDA header: the same file compiles with g++ on a machine without a CUDA toolkit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace birnn::device {

// 16-bit element types: bits only, arithmetic is done in float. Scoped enumerations rather than
// classes because a scalar is loaded where it is passed, so the race detector sees every load of
// an element (g++ does not instrument the copy of a class argument), and because they cost
// nothing in registers. `Half{}` is zero.
enum class Half : uint16_t {};      // IEEE binary16
enum class BFloat16 : uint16_t {};  // the upper half of an IEEE binary32

// What one vector load, store or asynchronous store moves.
struct alignas(8) Bits64 {
  uint32_t x, y;
};
struct alignas(16) Bits128 {
  uint32_t x, y, z, w;
};

// Two 64-bit words, each of them atomic on its own, read or written by one instruction.
struct alignas(16) WordPair {
  uint64_t first, second;
};

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

// An mbarrier object in shared memory. Opaque.
struct alignas(8) MBarrier {
  uint64_t state;
};

// Whose operations an acquire or release orders.
enum class Scope { kBlock, kCluster };

struct LaunchConfig {
  Dim3 grid;                 // blocks; a multiple of `cluster` in each dimension
  uint32_t threads = 32;     // of a block, one-dimensional; a multiple of 32, at most 1024
  uint32_t cluster = 1;      // blocks of a cluster, along x; 1 to 16, 1 for no cluster
  size_t shared_bytes = 0;   // dynamic shared memory of a block
  bool cooperative = false;  // all blocks resident at once, or the launch fails
  void* stream = nullptr;    // a cudaStream_t
};

}  // namespace birnn::device
