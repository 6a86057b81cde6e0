// device.h for nvcc: each name is one PTX instruction (PTX ISA 8.x). The only file with asm.
//
// Memory order is stated as the PTX memory model names it. "Orders nothing" means that the
// instruction makes no other thread's writes visible: it needs a barrier beside it.
// Compiles for sm_80 and up; what needs sm_90 traps on less, after a message.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <utility>

#include "cuda/device/device_types.h"

#define BIRNN_KERNEL __global__
#define BIRNN_DEVICE __device__ __forceinline__
#define BIRNN_LAUNCH_BOUNDS(max_threads, min_blocks) __launch_bounds__(max_threads, min_blocks)
#define BIRNN_UNROLL _Pragma("unroll")
#define BIRNN_PRAGMA(text) _Pragma(#text)
#define BIRNN_UNROLL_BY(count) BIRNN_PRAGMA(unroll count)

namespace birnn::device {

using Status = cudaError_t;
constexpr Status kSuccess = cudaSuccess;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kHasClusters = true;
#else
constexpr bool kHasClusters = false;
#endif

// The plan never picks a kernel that comes here: a message is worth more than a hang.
__device__ __noinline__ inline void trap_without_clusters(const char* name) {
  printf("birnn_cuda: %s needs a GPU of compute capability 9.0 and code built for it\n", name);
  __trap();
}

// ---------------------------------------------------------------------------------------------
// Threads.

BIRNN_DEVICE uint32_t thread_idx() { return threadIdx.x; }
BIRNN_DEVICE uint32_t block_dim() { return blockDim.x; }
BIRNN_DEVICE Dim3 block_idx() { return Dim3{blockIdx.x, blockIdx.y, blockIdx.z}; }
BIRNN_DEVICE Dim3 grid_dim() { return Dim3{gridDim.x, gridDim.y, gridDim.z}; }
BIRNN_DEVICE int lane_id() { return static_cast<int>(threadIdx.x & 31u); }

// The shuffle tells the compiler that the value is uniform in the warp, which keeps the branches
// and addresses that depend on it in uniform registers. It makes warp_id a collective.
BIRNN_DEVICE int warp_id() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x >> 5), 0);
}

// %cluster_ctarank, %cluster_nctarank: 0 and 1 in a launch without clusters.
BIRNN_DEVICE uint32_t cluster_rank() {
  uint32_t rank = 0;
  if constexpr (kHasClusters) asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
BIRNN_DEVICE uint32_t cluster_size() {
  uint32_t size = 1;
  if constexpr (kHasClusters) asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// ---------------------------------------------------------------------------------------------
// Shared memory.

// The shared-window address of a pointer into the block's own shared memory (cvta.to.shared).
BIRNN_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
BIRNN_DEVICE size_t global_address(const void* pointer) {
  return __cvta_generic_to_global(pointer);
}

// Carves arrays from the one dynamic shared array, in the order of the calls.
class Smem {
 public:
  BIRNN_DEVICE Smem() {
    extern __shared__ __align__(128) unsigned char birnn_dynamic_shared[];
    base_ = birnn_dynamic_shared;
  }
  template <class T>
  BIRNN_DEVICE T* alloc(uint32_t count, uint32_t alignment = 16) {
#if defined(PTX_EMULATED)  // tests/emulator/ptx: room between arrays, and where each of them lies
    offset_ += kEmulatedGap;
#endif
    offset_ = (offset_ + alignment - 1) / alignment * alignment;
    T* array = reinterpret_cast<T*>(base_ + offset_);
    const uint32_t bytes = count * static_cast<uint32_t>(sizeof(T));
    offset_ += bytes;
#if defined(PTX_EMULATED)
    needed_ = (needed_ + alignment - 1) / alignment * alignment + bytes;
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(array));
    asm volatile(".pragma \"emulated.shared_array %0, %1, %2\";" ::"r"(address), "r"(bytes),
                 "r"(needed_));
#endif
    return array;
  }

 private:
#if defined(PTX_EMULATED)
  static constexpr uint32_t kEmulatedGap = 64;
  uint32_t needed_ = 0;
#endif
  unsigned char* base_;
  uint32_t offset_ = 0;
};

// ---------------------------------------------------------------------------------------------
// Barriers of a block. All of them order the shared and global accesses of the threads that meet:
// what a thread did before arriving is visible to every thread that waited.

// bar.sync 0
BIRNN_DEVICE void sync_threads() { __syncthreads(); }

// bar.sync id, threads: arrives and waits. `num_threads`, a multiple of 32, counts both the
// threads that sync and those that only arrive; whole warps, barriers 1 to 15.
BIRNN_DEVICE void bar_sync(int id, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

// bar.arrive id, threads: arrives and goes on. Its earlier writes are visible to those who sync;
// nothing becomes visible to itself.
BIRNN_DEVICE void bar_arrive(int id, int num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

// ---------------------------------------------------------------------------------------------
// Warps. Full mask always.

// bar.warp.sync: orders memory among the lanes.
BIRNN_DEVICE void sync_warp() { __syncwarp(); }

// shfl.sync, vote.sync.ballot: order nothing.
template <class T>
BIRNN_DEVICE T shfl(T value, int source_lane) {
  return __shfl_sync(0xffffffffu, value, source_lane);
}
template <class T>
BIRNN_DEVICE T shfl_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
template <class T>
BIRNN_DEVICE T shfl_down(T value, int delta) {
  return __shfl_down_sync(0xffffffffu, value, delta);
}
BIRNN_DEVICE int trailing_zeros(uint32_t bits) { return __clz(static_cast<int>(__brev(bits))); }
BIRNN_DEVICE uint32_t reduce_or(uint32_t value) { return __reduce_or_sync(0xffffffffu, value); }
// (`ballot` alone is taken: an old intrinsic in the global namespace of nvcc.)
BIRNN_DEVICE uint32_t vote_ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

// ---------------------------------------------------------------------------------------------
// Matrices. Layouts: PTX ISA, "Matrix fragments for mma.m16n8k16" and following.

// ldmatrix.sync.aligned.m8n8.x4.shared.b16: four 8x8 matrices of 16-bit elements. Lane 8*i + r
// passes the address of row r of matrix i: 16 bytes, 16-byte aligned. A weak read: orders nothing.
BIRNN_DEVICE void ldmatrix_x4(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same with .trans: each 8x8 matrix transposed.
BIRNN_DEVICE void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

// mma.sync.aligned.m16n8k16.row.col.f32.{f16,bf16}.{f16,bf16}.f32: sum[16x8] += a[16x16] b[16x8].
// Registers only: not volatile, so the compiler may interleave independent chains.
template <class T>
BIRNN_DEVICE void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
BIRNN_DEVICE void mma_m16n8k16<Half>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
BIRNN_DEVICE void mma_m16n8k16<BFloat16>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32: sum[16x8] += a[16x8] b[8x8]; operands from
// to_tf32.
BIRNN_DEVICE void mma_m16n8k8_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---------------------------------------------------------------------------------------------
// Asynchronous copies from global to the block's own shared memory.

// cp.async.{ca,cg}.shared.global dst, src, Bytes, source_bytes: copies `source_bytes` and fills
// the rest with zeros; with 0 the source is not read. Both aligned to Bytes (4, 8 or 16). Weak,
// not ordered with anything until cp_async_wait. 16 bytes bypass L1 (.cg), the others cannot.
template <int Bytes>
BIRNN_DEVICE void cp_async(void* destination, const void* source, uint32_t source_bytes = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(destination)),
                 "l"(global_address(source)), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(destination)),
                 "l"(global_address(source)), "n"(Bytes), "r"(source_bytes)
                 : "memory");
  }
}

// cp.async.commit_group: this thread's copies since the last commit become one group.
BIRNN_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// cp.async.wait_group Pending: all but the latest `Pending` groups of this thread have landed and
// are visible to this thread alone; a barrier shows them to others.
template <int Pending>
BIRNN_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---------------------------------------------------------------------------------------------
// Clusters and distributed shared memory (sm_90).

// barrier.cluster.arrive.release.aligned: publishes this thread's earlier writes to the cluster.
BIRNN_DEVICE void cluster_arrive() {
  if constexpr (kHasClusters) {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  } else {
    trap_without_clusters("barrier.cluster");
  }
}

// barrier.cluster.arrive.relaxed.aligned: publishes nothing, and even this thread's
// remote stores and arrivals may still be on their way when the barrier completes. Cheaper; enough
// to know that the peers have begun.
BIRNN_DEVICE void cluster_arrive_relaxed() {
  if constexpr (kHasClusters) {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  } else {
    trap_without_clusters("barrier.cluster");
  }
}

// barrier.cluster.wait.acquire.aligned: sees what the arrivals with release published.
BIRNN_DEVICE void cluster_wait() {
  if constexpr (kHasClusters) {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  } else {
    trap_without_clusters("barrier.cluster");
  }
}

BIRNN_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// An address in the cluster's shared window: some block's shared memory.
struct ClusterAddress {
  uint32_t address;
  BIRNN_DEVICE ClusterAddress operator+(uint32_t bytes) const { return {address + bytes}; }
};

// mapa.shared::cluster.u32: where block `rank` of the cluster keeps what the caller keeps at
// `pointer`.
BIRNN_DEVICE ClusterAddress map_rank(const void* pointer, uint32_t rank) {
  uint32_t address = 0;
  if constexpr (kHasClusters) {
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"(shared_address(pointer)), "r"(rank));
  } else {
    trap_without_clusters("mapa");
  }
  return ClusterAddress{address};
}

// st.shared::cluster, ld.shared::cluster (weak): order nothing; a cluster barrier does.
BIRNN_DEVICE void store_cluster(ClusterAddress destination, uint32_t value) {
  if constexpr (kHasClusters) {
    asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(destination.address), "r"(value)
                 : "memory");
  } else {
    trap_without_clusters("st.shared::cluster");
  }
}
BIRNN_DEVICE void store_cluster(ClusterAddress destination, const Bits64& value) {
  if constexpr (kHasClusters) {
    asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};" ::"r"(destination.address),
                 "r"(value.x), "r"(value.y)
                 : "memory");
  } else {
    trap_without_clusters("st.shared::cluster");
  }
}
BIRNN_DEVICE void store_cluster(ClusterAddress destination, const Bits128& value) {
  if constexpr (kHasClusters) {
    asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(destination.address),
                 "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
  } else {
    trap_without_clusters("st.shared::cluster");
  }
}

template <class T>
BIRNN_DEVICE T load_cluster(ClusterAddress source);

template <>
BIRNN_DEVICE uint32_t load_cluster<uint32_t>(ClusterAddress source) {
  uint32_t value = 0;
  if constexpr (kHasClusters) {
    asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(value) : "r"(source.address) : "memory");
  } else {
    trap_without_clusters("ld.shared::cluster");
  }
  return value;
}
template <>
BIRNN_DEVICE Bits64 load_cluster<Bits64>(ClusterAddress source) {
  Bits64 value{};
  if constexpr (kHasClusters) {
    asm volatile("ld.shared::cluster.v2.b32 {%0, %1}, [%2];"
                 : "=r"(value.x), "=r"(value.y)
                 : "r"(source.address)
                 : "memory");
  } else {
    trap_without_clusters("ld.shared::cluster");
  }
  return value;
}
template <>
BIRNN_DEVICE Bits128 load_cluster<Bits128>(ClusterAddress source) {
  Bits128 value{};
  if constexpr (kHasClusters) {
    asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(source.address)
                 : "memory");
  } else {
    trap_without_clusters("ld.shared::cluster");
  }
  return value;
}

// st.async.shared::cluster.mbarrier::complete_tx::bytes: stores without waiting, then takes its
// size off the byte count of `barrier`, which lies in the same block as the destination. The
// completion is a release at cluster scope: who waits on the mbarrier with Scope::kCluster sees
// the data. A weak store by the generic proxy: no proxy fence. Undefined in a cluster of one block.
BIRNN_DEVICE void st_async(ClusterAddress destination, const Bits64& value,
                           ClusterAddress barrier) {
  if constexpr (kHasClusters) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
            destination.address),
        "r"(value.x), "r"(value.y), "r"(barrier.address)
        : "memory");
  } else {
    trap_without_clusters("st.async");
  }
}
BIRNN_DEVICE void st_async(ClusterAddress destination, const Bits128& value,
                           ClusterAddress barrier) {
  if constexpr (kHasClusters) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
        "[%5];" ::"r"(destination.address),
        "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier.address)
        : "memory");
  } else {
    trap_without_clusters("st.async");
  }
}

// ---------------------------------------------------------------------------------------------
// mbarriers (sm_90). A phase ends when `arrivals` have arrived and the byte count is back at 0.

// mbarrier.init.shared::cta.b64: before any other use, by one thread, and followed by a barrier.
BIRNN_DEVICE void mbarrier_init(MBarrier* barrier, uint32_t arrivals) {
  if constexpr (kHasClusters) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
  } else {
    trap_without_clusters("mbarrier");
  }
}

// fence.mbarrier_init.release.cluster: by the thread that initialised, so that a relaxed cluster
// arrive suffices to show the initialisation to the peers' asynchronous stores.
BIRNN_DEVICE void mbarrier_init_fence() {
  if constexpr (kHasClusters) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  } else {
    trap_without_clusters("mbarrier");
  }
}

// mbarrier.arrive.release.cta: releases this thread's earlier writes to the block.
BIRNN_DEVICE void mbarrier_arrive(MBarrier* barrier) {
  if constexpr (kHasClusters) {
    asm volatile(
        "mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
        : "memory");
  } else {
    trap_without_clusters("mbarrier");
  }
}

// mbarrier.arrive.release.cluster on a peer's barrier: releases to the cluster.
BIRNN_DEVICE void mbarrier_arrive_remote(ClusterAddress barrier) {
  if constexpr (kHasClusters) {
    asm volatile(
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier.address)
        : "memory");
  } else {
    trap_without_clusters("mbarrier");
  }
}

// mbarrier.arrive.expect_tx.release.cta: adds `bytes` to the byte count of the current phase, then
// arrives.
BIRNN_DEVICE void mbarrier_arrive_expect_tx(MBarrier* barrier, uint32_t bytes) {
  if constexpr (kHasClusters) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
  } else {
    trap_without_clusters("mbarrier");
  }
}

// mbarrier.try_wait.parity: waits for the end of the phase of that parity (0, 1, 0, ...).
// Scope::kBlock: .acquire.cta, which does not see what lies outside the block.
// Scope::kCluster: where a peer, or st.async, completes the phase. It shows what they have put into
// shared memory, and nothing else: .relaxed.cluster and then
// fence.acquire.sync_restrict::shared::cluster, as the PTX ISA has it for "acquire local shared
// memory" (section membar/fence). An .acquire.cluster orders global memory too, for which sm_90
// empties the L1 cache (CCTL.IVALL) after each wait; before CUDA 12.8 there is nothing else.
#if defined(__CUDACC__) && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ < 1208
#define BIRNN_CLUSTER_WAIT "acquire.cluster"
#define BIRNN_CLUSTER_FENCE ""
#else
#define BIRNN_CLUSTER_WAIT "relaxed.cluster"
#define BIRNN_CLUSTER_FENCE "fence.acquire.sync_restrict::shared::cluster.cluster;"
#endif
template <Scope S>
BIRNN_DEVICE void mbarrier_wait(MBarrier* barrier, uint32_t parity) {
  if constexpr (!kHasClusters) {
    trap_without_clusters("mbarrier");
  } else {
    uint32_t done;
    do {
      if constexpr (S == Scope::kCluster) {
        asm volatile(
            "{\n"
            ".reg .pred complete;\n"
            "mbarrier.try_wait.parity." BIRNN_CLUSTER_WAIT
            ".shared::cta.b64 complete, [%1], %2;\n"
            "selp.u32 %0, 1, 0, complete;\n"
            "}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
      } else {
        asm volatile(
            "{\n"
            ".reg .pred complete;\n"
            "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 complete, [%1], %2;\n"
            "selp.u32 %0, 1, 0, complete;\n"
            "}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
      }
    } while (!done);
    if constexpr (S == Scope::kCluster) asm volatile(BIRNN_CLUSTER_FENCE ::: "memory");
  }
}
#undef BIRNN_CLUSTER_WAIT
#undef BIRNN_CLUSTER_FENCE

// ---------------------------------------------------------------------------------------------
// Global memory shared by running blocks. Scope: the GPU.

// ld.relaxed.gpu, st.relaxed.gpu: atomic, bypass L1, order nothing.
BIRNN_DEVICE uint32_t load_relaxed_gpu(const uint32_t* source) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(global_address(source))
               : "memory");
  return value;
}
BIRNN_DEVICE uint64_t load_relaxed_gpu(const uint64_t* source) {
  uint64_t value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
               : "=l"(value)
               : "l"(global_address(source))
               : "memory");
  return value;
}
// Two words by one instruction; each is atomic, the pair is not.
BIRNN_DEVICE WordPair load_relaxed_gpu(const WordPair* source) {
  WordPair value;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(value.first), "=l"(value.second)
               : "l"(global_address(source))
               : "memory");
  return value;
}
BIRNN_DEVICE void store_relaxed_gpu(uint32_t* destination, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(global_address(destination)), "r"(value)
               : "memory");
}
BIRNN_DEVICE void store_relaxed_gpu(uint64_t* destination, uint64_t value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(global_address(destination)), "l"(value)
               : "memory");
}
BIRNN_DEVICE void store_relaxed_gpu(WordPair* destination, const WordPair& value) {
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(global_address(destination)),
               "l"(value.first), "l"(value.second)
               : "memory");
}

// ld.acquire.gpu: sees all that was released with the value it reads.
BIRNN_DEVICE uint32_t load_acquire_gpu(const uint32_t* source) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(global_address(source))
               : "memory");
  return value;
}

// st.release.gpu, red.release.gpu.add: publish this thread's earlier writes, and those that
// happened before them, such as the block's before a barrier.
BIRNN_DEVICE void store_release_gpu(uint32_t* destination, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(global_address(destination)), "r"(value)
               : "memory");
}
BIRNN_DEVICE void red_add_release_gpu(uint32_t* destination, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(global_address(destination)),
               "r"(value)
               : "memory");
}

// fence.acq_rel.gpu: with a relaxed store after it, a release; with a relaxed load before it, an
// acquire.
BIRNN_DEVICE void fence_acq_rel_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// In every spin loop. Nothing here, since a sleep would cost latency; the emulator runs the other
// threads.
BIRNN_DEVICE void spin_pause() {}

// ---------------------------------------------------------------------------------------------
// Numbers.

BIRNN_DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
BIRNN_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }

BIRNN_DEVICE float to_float(float value) { return value; }
// cvt.f32.f16: exact.
BIRNN_DEVICE float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(static_cast<uint16_t>(value)));
  return result;
}
// A shift, which sm_80 has too (cvt.f32.bf16 needs sm_90): exact.
BIRNN_DEVICE float to_float(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value) << 16);
}

// Round to nearest even.
template <class T>
BIRNN_DEVICE T from_float(float value);

template <>
BIRNN_DEVICE float from_float<float>(float value) {
  return value;
}
// cvt.rn.f16.f32
template <>
BIRNN_DEVICE Half from_float<Half>(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return static_cast<Half>(bits);
}
// cvt.rn.bf16.f32
template <>
BIRNN_DEVICE BFloat16 from_float<BFloat16>(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return static_cast<BFloat16>(bits);
}

// cvt.rna.tf32.f32: nearest, ties away from zero; an fp32 pattern whose low 13 bits count for
// nothing.
BIRNN_DEVICE uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// tanh.approx.f32: relative error up to 2^-11.
BIRNN_DEVICE float tanh_fast(float x) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// ex2.approx of x * log2(e): error up to 2 + |1.173 x| units in the last place.
BIRNN_DEVICE float exp_fast(float x) { return __expf(x); }

// The CUDA library's own, not one instruction: error up to 2 units in the last place.
BIRNN_DEVICE float tanh_precise(float x) { return ::tanhf(x); }
BIRNN_DEVICE double tanh_precise(double x) { return ::tanh(x); }
BIRNN_DEVICE float exp_precise(float x) { return ::expf(x); }
BIRNN_DEVICE double exp_precise(double x) { return ::exp(x); }
// sqrt.rn: rounded correctly.
BIRNN_DEVICE float sqrt_precise(float x) { return ::sqrtf(x); }
BIRNN_DEVICE double sqrt_precise(double x) { return ::sqrt(x); }

// A condition that only the emulator looks at: an assertion about the protocol, not about input.
BIRNN_DEVICE void check(bool, const char*) {}

// ---------------------------------------------------------------------------------------------
// Host.

inline const char* error_message(Status status) { return cudaGetErrorString(status); }

// What a kernel must be told before its first launch with this configuration. All of the shared
// memory that a block may have, whatever this launch takes: the attribute is the function's, and
// another thread may set it between here and the launch.
template <class... Parameters>
Status prepare_kernel(const LaunchConfig& config, void (*kernel)(Parameters...)) {
  constexpr size_t kSharedBytesWithoutAsking = 48 * 1024;
  constexpr uint32_t kPortableClusterSize = 8;
  if (config.shared_bytes > kSharedBytesWithoutAsking) {
    int device = 0, most = 0;
    Status status = cudaGetDevice(&device);
    if (status != cudaSuccess) return status;
    status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (status != cudaSuccess) return status;
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (status != cudaSuccess) return status;
  }
  if (config.cluster > kPortableClusterSize) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  return cudaSuccess;
}

// A cudaLaunchConfig_t with the attributes that it points to.
class NativeLaunchConfig {
 public:
  explicit NativeLaunchConfig(const LaunchConfig& config) {
    native_.gridDim = dim3(config.grid.x, config.grid.y, config.grid.z);
    native_.blockDim = dim3(config.threads, 1, 1);
    native_.dynamicSmemBytes = config.shared_bytes;
    native_.stream = static_cast<cudaStream_t>(config.stream);
    if (config.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes_[native_.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = config.cluster;
      attribute.val.clusterDim.y = 1;
      attribute.val.clusterDim.z = 1;
    }
    if (config.cooperative) {
      cudaLaunchAttribute& attribute = attributes_[native_.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
    native_.attrs = attributes_;
  }
  NativeLaunchConfig(const NativeLaunchConfig&) = delete;
  NativeLaunchConfig& operator=(const NativeLaunchConfig&) = delete;
  const cudaLaunchConfig_t* get() const { return &native_; }

 private:
  cudaLaunchConfig_t native_{};
  cudaLaunchAttribute attributes_[2]{};
};

// Queues kernel(arguments...) on the stream. Returns the error of the launch itself; what goes
// wrong in the kernel shows at the next synchronisation.
template <class... Parameters, class... Arguments>
Status launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (config.threads == 0 || config.threads % 32 != 0) return cudaErrorInvalidConfiguration;
  const Status status = prepare_kernel(config, kernel);
  if (status != cudaSuccess) return status;
  const NativeLaunchConfig native(config);
  return cudaLaunchKernelEx(native.get(), kernel, std::forward<Arguments>(arguments)...);
}

// The compute capability, 90 for 9.0, of the code of this kernel that the current device runs: what
// its PTX was made for, whether nvcc assembled it or the driver does.
template <class... Parameters>
Status code_capability(void (*kernel)(Parameters...), int* capability) {
  cudaFuncAttributes attributes{};
  const Status status = cudaFuncGetAttributes(&attributes, kernel);
  *capability = attributes.ptxVersion;
  return status;
}

// How many blocks of this launch a multiprocessor of the current device holds.
template <class... Parameters>
Status blocks_of_multiprocessor(const LaunchConfig& config, void (*kernel)(Parameters...),
                                int* num_blocks) {
  const Status status = prepare_kernel(config, kernel);
  if (status != cudaSuccess) return status;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      num_blocks, kernel, static_cast<int>(config.threads), config.shared_bytes);
}

// How many blocks of this launch the current device holds at once.
template <class... Parameters>
Status max_resident_blocks(const LaunchConfig& config, void (*kernel)(Parameters...),
                           int* num_blocks) {
  *num_blocks = 0;
  Status status = prepare_kernel(config, kernel);
  if (status != cudaSuccess) return status;
  if (config.cluster > 1) {
    const NativeLaunchConfig native(config);
    int num_clusters = 0;
    status = cudaOccupancyMaxActiveClusters(&num_clusters, kernel, native.get());
    *num_blocks = num_clusters * static_cast<int>(config.cluster);
    return status;
  }
  int device = 0, num_multiprocessors = 0, blocks_each = 0;
  status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  status = blocks_of_multiprocessor(config, kernel, &blocks_each);
  *num_blocks = num_multiprocessors * blocks_each;
  return status;
}

}  // namespace birnn::device
