// What the README shows: kernels of plain CUDA, compiled by nvcc, run by the interpreter.
#include <cuda_runtime.h>

#include <cstdio>

__global__ void saxpy(float a, const float* x, float* y, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a * x[i] + y[i];
}

// Each block hands its number to the next one of its cluster, through that block's shared memory.
__global__ void __cluster_dims__(4, 1, 1) exchange(unsigned* from) {
  __shared__ unsigned mail;
  unsigned rank, address = static_cast<unsigned>(__cvta_generic_to_shared(&mail)), next;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(next) : "r"(address), "r"((rank + 1) % 4));
  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
  if (threadIdx.x == 0) asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(next), "r"(rank));
  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
  if (threadIdx.x == 0) from[blockIdx.x] = mail;
}

int main() {
  constexpr unsigned kCount = 1000;
  float x[kCount], y[kCount], *device_x, *device_y;
  for (unsigned i = 0; i < kCount; ++i) {
    x[i] = static_cast<float>(i);
    y[i] = 1;
  }
  cudaMalloc(&device_x, sizeof x);
  cudaMalloc(&device_y, sizeof y);
  cudaMemcpy(device_x, x, sizeof x, cudaMemcpyHostToDevice);
  cudaMemcpy(device_y, y, sizeof y, cudaMemcpyHostToDevice);
  saxpy<<<8, 128>>>(2, device_x, device_y, kCount);
  cudaMemcpy(y, device_y, sizeof y, cudaMemcpyDeviceToHost);

  unsigned from[8], *device_from;
  cudaMalloc(&device_from, sizeof from);
  exchange<<<8, 32>>>(device_from);
  cudaMemcpy(from, device_from, sizeof from, cudaMemcpyDeviceToHost);

  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    std::printf("%s\n", cudaGetErrorString(error));
    return 1;
  }
  for (unsigned i = 0; i < kCount; ++i)
    if (y[i] != 2 * x[i] + 1) return 1;
  for (unsigned i = 0; i < 8; ++i)
    if (from[i] != (i + 3) % 4) return 1;
  std::printf("ok\n");
  return 0;
}
