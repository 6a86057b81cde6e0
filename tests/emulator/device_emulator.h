// device.h on a CPU: every intrinsic as a call of the emulator's runtime. Semantics are documented
// in csrc/cuda/device/device_cuda.cuh; what follows says only how they are modelled.
//
// The trailing parameter of each intrinsic is the line that called it, for the reports.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>

#include "cuda/device/device_types.h"
#include "float_formats.h"
#include "runtime.h"

#define BIRNN_KERNEL
#define BIRNN_DEVICE inline
#define BIRNN_LAUNCH_BOUNDS(max_threads, min_blocks)
#define BIRNN_UNROLL
#define BIRNN_UNROLL_BY(count)
#define BIRNN_CALLER ::birnn::emulator::Location caller = ::std::source_location::current()

namespace birnn::device {

using Status = int;
constexpr Status kSuccess = 0;

// ---------------------------------------------------------------------------------------------
// Threads.

inline uint32_t thread_idx() { return emulator::current_thread->thread; }
inline uint32_t block_dim() { return emulator::current_thread->block_size; }
inline Dim3 block_idx() { return emulator::current_thread->block; }
inline Dim3 grid_dim() { return emulator::current_thread->grid; }
inline int lane_id() { return static_cast<int>(emulator::current_thread->lane); }
inline uint32_t cluster_rank() { return emulator::current_thread->cluster_rank; }
inline uint32_t cluster_size() { return emulator::current_thread->cluster_size; }

// Meets the other lanes although it knows the answer: on the device it is a shuffle.
inline int warp_id(BIRNN_CALLER) {
  emulator::warp_exchange(emulator::Collective::kWarpId, nullptr, 0, nullptr, caller);
  return static_cast<int>(emulator::current_thread->warp);
}

// ---------------------------------------------------------------------------------------------
// Shared memory.

class Smem {
 public:
  template <class T>
  T* alloc(uint32_t count, uint32_t alignment = 16, BIRNN_CALLER) {
    const uint32_t bytes = count * static_cast<uint32_t>(sizeof(T));
    return static_cast<T*>(emulator::allocate_shared(cursor_, bytes, alignment, caller));
  }

 private:
  emulator::SharedCursor cursor_;
};

// ---------------------------------------------------------------------------------------------
// Barriers of a block and of a warp.

inline void sync_threads(BIRNN_CALLER) { emulator::sync_block(caller); }
inline void bar_sync(int id, int num_threads, BIRNN_CALLER) {
  emulator::named_barrier(id, num_threads, true, caller);
}
inline void bar_arrive(int id, int num_threads, BIRNN_CALLER) {
  emulator::named_barrier(id, num_threads, false, caller);
}
inline void sync_warp(BIRNN_CALLER) { emulator::sync_warp(caller); }

// ---------------------------------------------------------------------------------------------
// Warp collectives.

template <class T>
T shfl(T value, int source_lane, BIRNN_CALLER) {
  static_assert(sizeof(T) <= 8);
  const emulator::Deposit* deposits = emulator::warp_exchange(
      emulator::Collective::kShuffle, &value, sizeof value, nullptr, caller);
  T result;
  std::memcpy(&result, deposits[source_lane & 31].bytes, sizeof result);
  return result;
}
template <class T>
T shfl_xor(T value, int lane_mask, BIRNN_CALLER) {
  return shfl(value, lane_id() ^ lane_mask, caller);
}
template <class T>
T shfl_down(T value, int delta, BIRNN_CALLER) {
  const int source = lane_id() + delta;
  return shfl(value, source < 32 ? source : lane_id(), caller);
}
inline int trailing_zeros(uint32_t bits) { return std::countr_zero(bits); }
inline uint32_t vote_ballot(bool predicate, BIRNN_CALLER) {
  const emulator::Deposit* deposits =
      emulator::warp_exchange(emulator::Collective::kBallot, &predicate, 1, nullptr, caller);
  uint32_t mask = 0;
  for (int lane = 0; lane < 32; ++lane) {
    mask |= static_cast<uint32_t>(deposits[lane].bytes[0] != 0) << lane;
  }
  return mask;
}
inline uint32_t reduce_or(uint32_t value, BIRNN_CALLER) {
  return emulator::or_of(emulator::warp_exchange(emulator::Collective::kReduce, &value,
                                                 sizeof value, nullptr, caller));
}

// ---------------------------------------------------------------------------------------------
// Matrices. Each lane deposits its operands; the arithmetic is in matrix.cpp.

}  // namespace birnn::device

namespace birnn::emulator {

struct LoadMatrixDeposit {
  uint64_t row[2];       // in: the row whose address this lane passed
  uint32_t fragment[4];  // out
};
void combine_load_matrix(Deposit*);
void combine_load_matrix_transposed(Deposit*);

struct MmaDeposit {
  float sum[4];  // in and out
  uint32_t a[4], b[2];
};
void combine_mma_half(Deposit*);
void combine_mma_bfloat16(Deposit*);
void combine_mma_tf32(Deposit*);

inline void load_matrix(uint32_t (&fragment)[4], const void* row, void (*combine)(Deposit*),
                        Location caller) {
  check_own_shared(row, 16, "ldmatrix", caller);
  const uint64_t* words = static_cast<const uint64_t*>(row);
  LoadMatrixDeposit deposit{{words[0], words[1]}, {}};  // read here, where sanitizers see it
  const Deposit* all =
      warp_exchange(Collective::kLoadMatrix, &deposit, sizeof deposit, combine, caller);
  std::memcpy(&deposit, all[device::lane_id()].bytes, sizeof deposit);
  for (int i = 0; i < 4; ++i) fragment[i] = deposit.fragment[i];
}

inline void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                void (*combine)(Deposit*), Location caller) {
  MmaDeposit deposit{{sum[0], sum[1], sum[2], sum[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const Deposit* all = warp_exchange(Collective::kMma, &deposit, sizeof deposit, combine, caller);
  std::memcpy(&deposit, all[device::lane_id()].bytes, sizeof deposit);
  for (int i = 0; i < 4; ++i) sum[i] = deposit.sum[i];
}

}  // namespace birnn::emulator

namespace birnn::device {

inline void ldmatrix_x4(uint32_t (&fragment)[4], const void* row, BIRNN_CALLER) {
  emulator::load_matrix(fragment, row, emulator::combine_load_matrix, caller);
}
inline void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row, BIRNN_CALLER) {
  emulator::load_matrix(fragment, row, emulator::combine_load_matrix_transposed, caller);
}
template <class T>
void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, BIRNN_CALLER) {
  static_assert(std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>);
  emulator::mma(
      sum, a, b0, b1,
      std::is_same_v<T, Half> ? emulator::combine_mma_half : emulator::combine_mma_bfloat16,
      caller);
}
inline void mma_m16n8k8_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                             BIRNN_CALLER) {
  emulator::mma(sum, a, b0, b1, emulator::combine_mma_tf32, caller);
}

// ---------------------------------------------------------------------------------------------
// Asynchronous copies: land when the schedule says so, at the latest in cp_async_wait.

template <int Bytes>
void cp_async(void* destination, const void* source, uint32_t source_bytes = Bytes, BIRNN_CALLER) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  emulator::cp_async(destination, source, Bytes, source_bytes, caller);
}
inline void cp_async_commit(BIRNN_CALLER) { emulator::cp_async_commit(caller); }
template <int Pending>
void cp_async_wait(BIRNN_CALLER) {
  emulator::cp_async_wait(Pending, caller);
}

// ---------------------------------------------------------------------------------------------
// Clusters and distributed shared memory.

inline void cluster_arrive(BIRNN_CALLER) { emulator::cluster_arrive(true, caller); }
inline void cluster_arrive_relaxed(BIRNN_CALLER) { emulator::cluster_arrive(false, caller); }
inline void cluster_wait(BIRNN_CALLER) { emulator::cluster_wait(caller); }
inline void cluster_sync(BIRNN_CALLER) {
  emulator::cluster_arrive(true, caller);
  emulator::cluster_wait(caller);
}

struct ClusterAddress {
  char* address;
  ClusterAddress operator+(uint32_t bytes) const { return {address + bytes}; }
};

inline ClusterAddress map_rank(const void* pointer, uint32_t rank, BIRNN_CALLER) {
  return ClusterAddress{emulator::map_to_rank(pointer, rank, caller)};
}

template <class T>
void store_cluster(ClusterAddress destination, const T& value, BIRNN_CALLER) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  emulator::check_cluster_shared(destination.address, sizeof(T), "st.shared::cluster", caller);
  *reinterpret_cast<T*>(destination.address) = value;
}
template <class T>
T load_cluster(ClusterAddress source, BIRNN_CALLER) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  emulator::check_cluster_shared(source.address, sizeof(T), "ld.shared::cluster", caller);
  const T value = *reinterpret_cast<const T*>(source.address);
  return value;
}

// By reference, and copied by an assignment: a class that is passed by value from shared memory
// would be loaded where the race detector does not look.
template <class T>
void st_async(ClusterAddress destination, const T& value, ClusterAddress barrier, BIRNN_CALLER) {
  static_assert(sizeof(T) == 8 || sizeof(T) == 16);
  const T copy = value;
  emulator::st_async(destination.address, &copy, sizeof copy, barrier.address, caller);
}

// ---------------------------------------------------------------------------------------------
// mbarriers.

inline void mbarrier_init(MBarrier* barrier, uint32_t arrivals, BIRNN_CALLER) {
  emulator::mbarrier_init(barrier, arrivals, caller);
}
inline void mbarrier_init_fence() {}  // not modelled: the cluster barrier after it must release
inline void mbarrier_arrive(MBarrier* barrier, BIRNN_CALLER) {
  emulator::mbarrier_arrive(barrier, 0, false, caller);
}
inline void mbarrier_arrive_remote(ClusterAddress barrier, BIRNN_CALLER) {
  emulator::mbarrier_arrive(barrier.address, 0, true, caller);
}
inline void mbarrier_arrive_expect_tx(MBarrier* barrier, uint32_t bytes, BIRNN_CALLER) {
  emulator::mbarrier_arrive(barrier, bytes, false, caller);
}
template <Scope S>
void mbarrier_wait(MBarrier* barrier, uint32_t parity, BIRNN_CALLER) {
  emulator::mbarrier_wait(barrier, parity, S == Scope::kCluster, caller);
}

// ---------------------------------------------------------------------------------------------
// Global memory shared by running blocks.

inline uint32_t load_relaxed_gpu(const uint32_t* source, BIRNN_CALLER) {
  uint32_t value;
  emulator::load_relaxed(source, &value, sizeof value, caller);
  return value;
}
inline uint64_t load_relaxed_gpu(const uint64_t* source, BIRNN_CALLER) {
  uint64_t value;
  emulator::load_relaxed(source, &value, sizeof value, caller);
  return value;
}
inline WordPair load_relaxed_gpu(const WordPair* source, BIRNN_CALLER) {
  WordPair value;  // the second word first: a reader that relies on an order shall notice
  emulator::load_relaxed(&source->second, &value.second, sizeof value.second, caller);
  emulator::load_relaxed(&source->first, &value.first, sizeof value.first, caller);
  return value;
}
inline void store_relaxed_gpu(uint32_t* destination, uint32_t value, BIRNN_CALLER) {
  emulator::store_relaxed(destination, &value, sizeof value, caller);
}
inline void store_relaxed_gpu(uint64_t* destination, uint64_t value, BIRNN_CALLER) {
  emulator::store_relaxed(destination, &value, sizeof value, caller);
}
inline void store_relaxed_gpu(WordPair* destination, const WordPair& value, BIRNN_CALLER) {
  emulator::store_relaxed(&destination->first, &value.first, sizeof value.first, caller);
  emulator::store_relaxed(&destination->second, &value.second, sizeof value.second, caller);
}
inline uint32_t load_acquire_gpu(const uint32_t* source, BIRNN_CALLER) {
  return emulator::load_acquire(source, caller);
}
inline void store_release_gpu(uint32_t* destination, uint32_t value, BIRNN_CALLER) {
  emulator::store_release(destination, value, caller);
}
inline void red_add_release_gpu(uint32_t* destination, uint32_t value, BIRNN_CALLER) {
  emulator::red_add_release(destination, value, caller);
}
inline void fence_acq_rel_gpu(BIRNN_CALLER) { emulator::fence_acq_rel(caller); }
inline void spin_pause(BIRNN_CALLER) { emulator::spin_pause(caller); }

// ---------------------------------------------------------------------------------------------
// Numbers.

inline uint32_t float_bits(float value) { return emulator::bits_of(value); }
inline float bits_float(uint32_t bits) { return emulator::float_of(bits); }

inline float to_float(float value) { return value; }
inline float to_float(Half value) { return emulator::half_to_float(static_cast<uint16_t>(value)); }
inline float to_float(BFloat16 value) {
  return emulator::bfloat16_to_float(static_cast<uint16_t>(value));
}
template <class T>
T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline Half from_float<Half>(float value) {
  return static_cast<Half>(emulator::float_to_half(value));
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  return static_cast<BFloat16>(emulator::float_to_bfloat16(value));
}
inline uint32_t to_tf32(float value) { return emulator::float_to_tf32(value); }

// Correct, or wrong by up to what the PTX ISA and the CUDA manual allow.
inline float tanh_fast(float x) { return emulator::approximate(std::tanh(x), 0x1p-11f); }
inline float exp_fast(float x) {
  return emulator::approximate(std::exp(x), (2.0f + std::fabs(1.173f * x)) * 0x1p-23f);
}
inline float tanh_precise(float x) { return emulator::approximate(std::tanh(x), 0x1p-23f); }
inline double tanh_precise(double x) { return std::tanh(x); }
inline float exp_precise(float x) { return emulator::approximate(std::exp(x), 0x1p-23f); }
inline double exp_precise(double x) { return std::exp(x); }
inline float sqrt_precise(float x) { return std::sqrt(x); }
inline double sqrt_precise(double x) { return std::sqrt(x); }

inline void check(bool condition, const char* what, BIRNN_CALLER) {
  if (!condition) emulator::fail(std::string("check failed: ") + what, caller);
}

// ---------------------------------------------------------------------------------------------
// Host.

// The diagnosis of the latest failure, whatever the status.
inline const char* error_message(Status status) {
  return status == kSuccess ? "no error" : emulator::last_error().c_str();
}

// Runs the grid before it returns; the stream is ignored.
template <class... Parameters, class... Arguments>
Status launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  if (emulator::kernel_observer)
    emulator::kernel_observer(reinterpret_cast<const void*>(kernel), config, true);
  const auto thread_body = [](void* opaque) {
    const Call* call = static_cast<const Call*>(opaque);
    std::apply(call->kernel, call->arguments);
  };
  return emulator::run_grid(config, thread_body, &call);
}

template <class... Parameters>
Status code_capability(void (*)(Parameters...), int* capability) {
  *capability = emulator::options().code_capability;
  return kSuccess;
}

template <class... Parameters>
Status blocks_of_multiprocessor(const LaunchConfig&, void (*)(Parameters...), int* num_blocks) {
  *num_blocks = emulator::options().blocks_of_multiprocessor;
  return kSuccess;
}

template <class... Parameters>
Status max_resident_blocks(const LaunchConfig& config, void (*kernel)(Parameters...),
                           int* num_blocks) {
  const int clusters = emulator::resident_clusters(reinterpret_cast<const void*>(kernel), config);
  *num_blocks = std::max(clusters, 0) * static_cast<int>(config.cluster);
  return clusters < 0 ? Status(1) : kSuccess;
}

}  // namespace birnn::device
