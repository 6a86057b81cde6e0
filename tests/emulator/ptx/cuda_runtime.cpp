// The part of the CUDA runtime library that a program needs whose kernels the interpreter runs:
// link this in place of libcudart. There is one stream, on which everything has run when a call
// returns; memory of the device is memory of the host.
#include <cuda_runtime_api.h>
#include <fatbinary_section.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "counts.h"
#include "images.h"

namespace {

namespace emulator = birnn::emulator;

cudaError_t latest = cudaSuccess;
cudaError_t explained = cudaSuccess;  // by the emulator's message

cudaError_t status_of(cudaError_t error) {
  if (error != cudaSuccess) latest = error;
  return error;
}
cudaError_t refuse(cudaError_t error, const std::string& why) {
  emulator::set_last_error(why);
  explained = error;
  return status_of(error);
}

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
} pushed;

// What is wrong with a launch, or with the question of how many clusters of it fit; else the
// configuration as the emulator has it.
cudaError_t check(const ptx::Kernel* kernel, const cudaLaunchConfig_t& given,
                  emulator::LaunchConfig& config) {
  if (!kernel) return refuse(cudaErrorInvalidDeviceFunction, "launch: no such kernel");
  if (given.blockDim.y != 1 || given.blockDim.z != 1) {
    return refuse(cudaErrorInvalidConfiguration, "launch: blocks have one dimension here");
  }
  config.grid = {given.gridDim.x, given.gridDim.y, given.gridDim.z};
  config.threads = given.blockDim.x;
  config.shared_bytes = given.dynamicSmemBytes;
  for (unsigned i = 0; i < given.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = given.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      if (attribute.val.clusterDim.y != 1 || attribute.val.clusterDim.z != 1) {
        return refuse(cudaErrorInvalidClusterSize, "launch: clusters lie along x here");
      }
      config.cluster = attribute.val.clusterDim.x;
    } else if (attribute.id == cudaLaunchAttributeCooperative) {
      config.cooperative = attribute.val.cooperative != 0;
    } else {
      return refuse(cudaErrorNotSupported, "launch: an attribute that is not known");
    }
  }
  if (given.dynamicSmemBytes > kernel->most_dynamic_shared) {
    return refuse(cudaErrorInvalidValue,
                  "launch: " + std::to_string(given.dynamicSmemBytes) +
                      " bytes of shared memory, more than cudaFuncSetAttribute allowed");
  }
  constexpr uint32_t kPortableClusterSize = 8;
  if (config.cluster > kPortableClusterSize && !kernel->may_have_large_clusters) {
    return refuse(cudaErrorInvalidClusterSize,
                  "launch: a cluster of more than 8 blocks, which cudaFuncSetAttribute has not "
                  "allowed");
  }
  return cudaSuccess;
}

cudaError_t launch(ptx::Kernel* kernel, const cudaLaunchConfig_t& given, void** arguments) {
  emulator::LaunchConfig config;
  if (const cudaError_t error = check(kernel, given, config)) return error;
  if (ptx::launch(*kernel, config, arguments) == 0) return cudaSuccess;
  explained = cudaErrorLaunchFailure;
  return status_of(explained);
}

}  // namespace

extern "C" {

// ---------------------------------------------------------------------------------------------
// What nvcc's own code calls.

void** __cudaRegisterFatBinary(void* wrapper) {
  const auto* const binary = static_cast<const __fatBinC_Wrapper_t*>(wrapper);
  try {
    return reinterpret_cast<void**>(ptx::add_binary(binary->data));
  } catch (const ptx::SyntaxError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::exit(1);
  }
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void** binary, const char* host, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  ptx::add_kernel(reinterpret_cast<ptx::Binary*>(binary), host, name);
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
                                     CUstream_st* stream) {
  pushed = {grid, block, shared_bytes, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes,
                                       void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared_bytes = pushed.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(ptx::find_kernel(host));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared_bytes, cudaStream_t) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  return launch(reinterpret_cast<ptx::Kernel*>(kernel), config, arguments);
}

// ---------------------------------------------------------------------------------------------
// What programs call.

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  emulator::LaunchConfig known;
  if (emulator::kernel_observer && check(ptx::find_kernel(function), *config, known) == cudaSuccess)
    emulator::kernel_observer(function, known, true);
  return launch(ptx::find_kernel(function), *config, arguments);
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  constexpr size_t kAlignment = 256;
  *pointer = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
  if (!*pointer) return status_of(cudaErrorMemoryAllocation);
  ptx::allow_global(*pointer, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  ptx::forbid_global(pointer);
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = latest;
  latest = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return latest; }
// The diagnosis of the latest failure, where there is one.
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  if (error == explained) return emulator::last_error().c_str();
  static std::string text;
  text = "error " + std::to_string(error) + " of the CUDA runtime";
  return text.c_str();
}
const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = ptx::architecture() / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = ptx::architecture() % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 << 10;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = emulator::options().resident_blocks;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    default:
      return refuse(cudaErrorInvalidValue, "an attribute of the device that is not known");
  }
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  ptx::Kernel* const kernel = ptx::find_kernel(function);
  if (!kernel) return refuse(cudaErrorInvalidDeviceFunction, "no such kernel");
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > 227 << 10) return refuse(cudaErrorInvalidValue, "more than 227 KiB");
    kernel->most_dynamic_shared = static_cast<size_t>(value);
  } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    kernel->may_have_large_clusters = value != 0;
  }
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  if (!ptx::find_kernel(function)) return refuse(cudaErrorInvalidDeviceFunction, "no such kernel");
  *attributes = {};
  attributes->ptxVersion = emulator::options().code_capability;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = emulator::options().blocks_of_multiprocessor;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int,
                                                                   size_t, unsigned) {
  *blocks = emulator::options().blocks_of_multiprocessor;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* function,
                                           const cudaLaunchConfig_t* given) {
  *clusters = 0;
  emulator::LaunchConfig config;
  if (const cudaError_t error = check(ptx::find_kernel(function), *given, config)) return error;
  *clusters = emulator::resident_clusters(function, config);
  if (*clusters >= 0) return cudaSuccess;
  explained = cudaErrorInvalidClusterSize;
  return status_of(explained);
}

// ---------------------------------------------------------------------------------------------
// Beyond CUDA's: see counts.h and images.h.

void ptx_count_launches(int on) { ptx::count_launches(on != 0); }
const char* ptx_counts() {
  static std::string text;
  text = ptx::counts_json();
  return text.c_str();
}
const char* ptx_check(const char* file, const char* text) {
  static std::string problem;
  problem = ptx::check(file, text);
  return problem.c_str();
}

}  // extern "C"
