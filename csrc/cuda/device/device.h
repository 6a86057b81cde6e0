// The only header a kernel includes: everything a GPU does that C++ has no words for, by name.
//
// Two implementations stand behind it. nvcc takes device_cuda.cuh, where each name is one PTX
// instruction. Any other compiler takes device_emulator.h (tests/emulator, found by include
// path), which runs the same kernel source on a CPU and checks its synchronisation.
//
//   threads      thread_idx block_idx block_dim grid_dim lane_id warp_id cluster_rank cluster_size
//   shared       Smem::alloc
//   block        sync_threads bar_sync bar_arrive
//   warp         sync_warp shfl shfl_xor shfl_down vote_ballot
//   matrix       ldmatrix_x4 ldmatrix_x4_trans mma_m16n8k16<Half|BFloat16> mma_m16n8k8_tf32
//   cp.async     cp_async<Bytes> cp_async_commit cp_async_wait<Pending>
//   cluster      cluster_arrive cluster_arrive_relaxed cluster_wait cluster_sync
//                map_rank store_cluster load_cluster<T> st_async
//   mbarrier     mbarrier_init mbarrier_init_fence mbarrier_arrive mbarrier_arrive_remote
//                mbarrier_arrive_expect_tx mbarrier_wait<Scope>
//   global       load_relaxed_gpu load_acquire_gpu store_relaxed_gpu store_release_gpu
//                red_add_release_gpu fence_acq_rel_gpu spin_pause grid_sync
//   numbers      to_float from_float<T> pack2<T> unpack2<T> to_tf32 float_bits bits_float
//                element_bits bits_element<T>
//                tanh_fast exp_fast sigmoid_fast tanh_precise exp_precise
//                sqrt_precise
//   host         launch max_resident_blocks blocks_of_multiprocessor code_capability
//                error_message kSuccess Status
//   emulator     check
//
// Rules, which the emulator enforces where it can:
//  1. Shared memory comes from Smem::alloc alone, same order and sizes in every thread.
//  2. Warp collectives (the warp and matrix rows, and warp_id) are executed by all 32 lanes from
//     one source line: branch around data, not around collectives.
//  3. sync_threads is executed by all threads of the block from one source line; warps in
//     different roles meet at named barriers. Barrier 0 belongs to sync_threads.
//  4. A peer's shared memory is reached through map_rank alone, by a thread that has passed a
//     cluster barrier (the peer has begun), and before a cluster barrier that releases it (the
//     peer has not ended).
//  5. Blocks signal each other by release and acquire; every spin loop calls spin_pause.
//  6. Clusters, st.async and mbarriers need compute capability 9.0; on less they trap.
#pragma once

#include "cuda/device/device_types.h"

#if defined(__CUDACC__)
#include "cuda/device/device_cuda.cuh"
#else
#include "device_emulator.h"
#endif

namespace birnn::device {

// The logistic function, to the accuracy of tanh_fast.
BIRNN_DEVICE float sigmoid_fast(float x) { return 0.5f * tanh_fast(0.5f * x) + 0.5f; }

// Two floats rounded to T in one register, `low` in the lower half: the operand form of
// mma_m16n8k16.
template <class T>
BIRNN_DEVICE uint32_t pack2(T low, T high) {
  return static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16;
}
template <class T>
BIRNN_DEVICE void unpack2(uint32_t pair, T& low, T& high) {
  low = static_cast<T>(pair & 0xffffu);
  high = static_cast<T>(pair >> 16);
}

// An element in a 32-bit register, and back.
template <class T>
BIRNN_DEVICE uint32_t element_bits(T element) {
  return static_cast<uint32_t>(static_cast<uint16_t>(element));
}
template <>
BIRNN_DEVICE uint32_t element_bits(float element) {
  return float_bits(element);
}
template <class T>
BIRNN_DEVICE T bits_element(uint32_t bits) {
  return static_cast<T>(static_cast<uint16_t>(bits));
}
template <>
BIRNN_DEVICE float bits_element(uint32_t bits) {
  return bits_float(bits);
}

// A barrier across all blocks of a cooperative launch. `arrivals` is 0 before the launch and
// belongs to it; `generation` is 1 at the first call and one more at each later one.
// What any thread wrote before is visible to every thread after: the first sync_threads hands
// the block's writes to thread 0, its release publishes them, its acquire takes the others',
// and the second sync_threads hands them to the block.
BIRNN_DEVICE void grid_sync(uint32_t* arrivals, uint32_t generation) {
  const Dim3 blocks = grid_dim();
  const uint32_t target = blocks.x * blocks.y * blocks.z * generation;
  sync_threads();
  if (thread_idx() == 0) {
    red_add_release_gpu(arrivals, 1u);
    while (load_acquire_gpu(arrivals) < target) spin_pause();
  }
  sync_threads();
}

}  // namespace birnn::device
