// What the processor and the operating system offer (x86-64), by CPUID and XGETBV.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace birnn::cpu {

// Bits of CPUID leaf 7, of subleaf 0 unless said otherwise.
struct ProcessorFeatures {
  uint32_t ebx = 0, ecx = 0, edx = 0, eax_1 = 0;  // eax_1: of subleaf 1
  uint64_t saved_state = 0;                       // XCR0: registers that the system saves

  ProcessorFeatures() {
    uint32_t eax = 0, ebx_1 = 0, ecx_1 = 0, edx_1 = 0, first_ecx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
    if (eax >= 1) __get_cpuid_count(7, 1, &eax_1, &ebx_1, &ecx_1, &edx_1);
    __get_cpuid(1, &eax, &ebx_1, &first_ecx, &edx_1);
    if (!(first_ecx & bit_OSXSAVE)) return;
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    saved_state = uint64_t(high) << 32 | low;
  }
  bool saves(uint64_t registers) const { return (saved_state & registers) == registers; }
};

inline bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
inline bool has_avx512_vnni() { return has_avx512() && (ProcessorFeatures().ecx >> 11 & 1); }
inline bool has_avx512_bf16() { return has_avx512_vnni() && (ProcessorFeatures().eax_1 >> 5 & 1); }

// AMX tiles of bf16 and int8. Linux hands a process the tile registers on request: they make
// every saved thread state 8 KB larger.
inline bool has_amx() {
#if defined(__linux__)
  constexpr uint64_t kTileRegisters = 3 << 17;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  const ProcessorFeatures features;
  const bool instructions =
      (features.edx >> 22 & 1) && (features.edx >> 24 & 1) && (features.edx >> 25 & 1);
  return has_avx512_bf16() && instructions && features.saves(kTileRegisters) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace birnn::cpu
#endif
