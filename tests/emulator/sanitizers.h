// The sanitizers' run-time interfaces, called if a sanitizer is linked in and nothing otherwise.
//
// The runtime itself is compiled without -fsanitize: it describes the modelled machine to the
// sanitizers, which must not see how it is simulated.
#pragma once

#include <cstddef>
#include <cstdint>

#define BIRNN_WEAK __attribute__((weak))
extern "C" {
void __tsan_acquire(void*) BIRNN_WEAK;
void __tsan_release(void*) BIRNN_WEAK;
void* __tsan_get_current_fiber() BIRNN_WEAK;
void* __tsan_create_fiber(unsigned flags) BIRNN_WEAK;
void __tsan_switch_to_fiber(void* fiber, unsigned flags) BIRNN_WEAK;
void __tsan_set_fiber_name(void* fiber, const char* name) BIRNN_WEAK;
void __tsan_read_range(void*, unsigned long) BIRNN_WEAK;
void __tsan_write_range(void*, unsigned long) BIRNN_WEAK;
void __tsan_read_range_pc(void*, unsigned long, void* pc) BIRNN_WEAK;
void __tsan_write_range_pc(void*, unsigned long, void* pc) BIRNN_WEAK;
int __tsan_atomic32_load(const volatile int*, int order) BIRNN_WEAK;
long __tsan_atomic64_load(const volatile long*, int order) BIRNN_WEAK;
void __tsan_atomic32_store(volatile int*, int, int order) BIRNN_WEAK;
void __tsan_atomic64_store(volatile long*, long, int order) BIRNN_WEAK;
int __tsan_atomic32_fetch_add(volatile int*, int, int order) BIRNN_WEAK;
void __asan_poison_memory_region(const volatile void*, size_t) BIRNN_WEAK;
void __asan_unpoison_memory_region(const volatile void*, size_t) BIRNN_WEAK;
void* __asan_region_is_poisoned(void*, size_t) BIRNN_WEAK;
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom,
                                    size_t size) BIRNN_WEAK;
void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** bottom_old,
                                     size_t* size_old) BIRNN_WEAK;
}
#undef BIRNN_WEAK

namespace birnn::emulator {

// An address that stands for a synchronisation: what was released to it, an acquire sees.
struct SyncToken {
  char byte = 0;
};

// ThreadSanitizer's notion of a thread: a vector clock. Null without ThreadSanitizer.
using RaceFiber = void*;

namespace tsan {

inline bool active() { return __tsan_create_fiber != nullptr; }

inline void release(void* address) {
  if (__tsan_release) __tsan_release(address);
}
inline void acquire(void* address) {
  if (__tsan_acquire) __tsan_acquire(address);
}
inline void read_range(const void* address, size_t bytes) {
  if (__tsan_read_range) __tsan_read_range(const_cast<void*>(address), bytes);
}
inline void write_range(void* address, size_t bytes) {
  if (__tsan_write_range) __tsan_write_range(address, bytes);
}
// The same by an instruction that is no machine code: a report gives its address.
inline void read_range_at(const void* address, size_t bytes, void* pc) {
  if (__tsan_read_range_pc) __tsan_read_range_pc(const_cast<void*>(address), bytes, pc);
}
inline void write_range_at(void* address, size_t bytes, void* pc) {
  if (__tsan_write_range_pc) __tsan_write_range_pc(address, bytes, pc);
}
inline RaceFiber current() {
  return __tsan_get_current_fiber ? __tsan_get_current_fiber() : nullptr;
}
inline void set_name(RaceFiber fiber, const char* name) {
  if (fiber) __tsan_set_fiber_name(fiber, name);
}

// Switches without ordering anything.
inline void switch_to(RaceFiber fiber) {
  constexpr unsigned kNoSynchronisation = 1;
  if (fiber) __tsan_switch_to_fiber(fiber, kNoSynchronisation);
}
// Switches, and what the current fiber did happens before what the other one goes on to do.
inline void switch_to_and_order(RaceFiber fiber) {
  if (fiber) __tsan_switch_to_fiber(fiber, 0);
}

// Runs the enclosing scope as `fiber`.
class As {
 public:
  explicit As(RaceFiber fiber) {
    if (fiber == nullptr) return;
    back_ = current();
    if (back_ == fiber) back_ = nullptr;
    if (back_) switch_to(fiber);
  }
  ~As() { switch_to(back_); }
  As(const As&) = delete;
  As& operator=(const As&) = delete;

 private:
  RaceFiber back_ = nullptr;
};

// Atomic accesses of kernel threads to global memory, in the order asked for. Without
// ThreadSanitizer they are ranges to whoever else listens (streams/accesses.cpp).
inline uint32_t load32(const void* address, int order) {
  if (active()) {
    return static_cast<uint32_t>(__tsan_atomic32_load(static_cast<const int*>(address), order));
  }
  read_range(address, sizeof(uint32_t));
  return __atomic_load_n(static_cast<const uint32_t*>(address), __ATOMIC_SEQ_CST);
}
inline uint64_t load64(const void* address, int order) {
  if (active()) {
    return static_cast<uint64_t>(__tsan_atomic64_load(static_cast<const long*>(address), order));
  }
  read_range(address, sizeof(uint64_t));
  return __atomic_load_n(static_cast<const uint64_t*>(address), __ATOMIC_SEQ_CST);
}
inline void store32(void* address, uint32_t value, int order) {
  if (active()) {
    __tsan_atomic32_store(static_cast<int*>(address), static_cast<int>(value), order);
  } else {
    write_range(address, sizeof value);
    __atomic_store_n(static_cast<uint32_t*>(address), value, __ATOMIC_SEQ_CST);
  }
}
inline void store64(void* address, uint64_t value, int order) {
  if (active()) {
    __tsan_atomic64_store(static_cast<long*>(address), static_cast<long>(value), order);
  } else {
    write_range(address, sizeof value);
    __atomic_store_n(static_cast<uint64_t*>(address), value, __ATOMIC_SEQ_CST);
  }
}
inline void add32(void* address, uint32_t value, int order) {
  if (active()) {
    __tsan_atomic32_fetch_add(static_cast<int*>(address), static_cast<int>(value), order);
  } else {
    write_range(address, sizeof value);
    __atomic_fetch_add(static_cast<uint32_t*>(address), value, __ATOMIC_SEQ_CST);
  }
}

}  // namespace tsan

namespace asan {

inline void poison(const void* address, size_t bytes) {
  if (__asan_poison_memory_region) __asan_poison_memory_region(address, bytes);
}
inline void unpoison(const void* address, size_t bytes) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(address, bytes);
}
// Whether a kernel may not touch these bytes. Always false without AddressSanitizer.
inline bool is_poisoned(const void* address, size_t bytes) {
  return __asan_region_is_poisoned &&
         __asan_region_is_poisoned(const_cast<void*>(address), bytes) != nullptr;
}

}  // namespace asan
}  // namespace birnn::emulator
