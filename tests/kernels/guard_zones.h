// Memory for kernels between two guard zones: bytes that no kernel may write, and that spoil what
// reads them. Under AddressSanitizer the zones are poisoned, so that it reports the very access.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#include "sanitizers.h"

namespace birnn::test {

// As 16 bits, and as the 32 and 64 bits that repeat it: NaN in every float format, other than the
// NaN of the byte 0xff that memory is filled with; as an integer, negative.
constexpr uint16_t kGuard = 0xfffd;

class GuardedMemory {
 public:
  static constexpr size_t kAlignment = 256;

  // Every byte starts as 0xff.
  explicit GuardedMemory(size_t bytes)
      : bytes_(bytes), zone_(kAlignment * (16 + bytes / kAlignment)) {
    memory_ = static_cast<unsigned char*>(operator new(size(), std::align_val_t(kAlignment)));
    for (size_t i = 0; i < size(); ++i) memory_[i] = guard_at(i);
    std::memset(data(), 0xff, bytes_);
    emulator::asan::poison(memory_, zone_);
    emulator::asan::poison(memory_ + zone_ + bytes_, size() - zone_ - bytes_);
  }
  ~GuardedMemory() {
    emulator::asan::unpoison(memory_, size());
    operator delete(memory_, std::align_val_t(kAlignment));
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  void* data() const { return memory_ + zone_; }

  // Whether nobody has written into the zones. Where they are poisoned nobody can.
  bool is_intact() const {
    if (emulator::asan::is_poisoned(memory_, 1)) return true;
    for (size_t i = 0; i < size(); ++i)
      if ((i < zone_ || i >= zone_ + bytes_) && memory_[i] != guard_at(i)) return false;
    return true;
  }

 private:
  size_t size() const { return 2 * zone_ + bytes_; }
  static unsigned char guard_at(size_t i) { return (i % 2 ? kGuard >> 8 : kGuard) & 0xff; }

  size_t bytes_, zone_;  // a zone as large as the memory, and 4 KB
  unsigned char* memory_;
};

}  // namespace birnn::test
