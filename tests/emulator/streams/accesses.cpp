// What kernels read and write, for the timeline: the calls that -fsanitize=thread puts before every
// access, without the sanitizer behind them.
#include <cstdint>

#include "timeline.h"

using birnn::emulator::timeline::access;

#define BIRNN_ACCESS(bytes)                                               \
  void __tsan_read##bytes(void* a) { access(a, bytes, false); }           \
  void __tsan_write##bytes(void* a) { access(a, bytes, true); }           \
  void __tsan_volatile_read##bytes(void* a) { access(a, bytes, false); }  \
  void __tsan_volatile_write##bytes(void* a) { access(a, bytes, true); }  \
  void __tsan_unaligned_read##bytes(void* a) { access(a, bytes, false); } \
  void __tsan_unaligned_write##bytes(void* a) { access(a, bytes, true); }

extern "C" {

BIRNN_ACCESS(1)
BIRNN_ACCESS(2)
BIRNN_ACCESS(4)
BIRNN_ACCESS(8)
BIRNN_ACCESS(16)
void __tsan_read_range(void* a, unsigned long bytes) { access(a, bytes, false); }
void __tsan_write_range(void* a, unsigned long bytes) { access(a, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Of the guards of statics, on the host.
char __tsan_atomic8_load(const volatile char* a, int) {
  return __atomic_load_n(a, __ATOMIC_SEQ_CST);
}

}  // extern "C"
