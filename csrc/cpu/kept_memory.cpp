#include "cpu/kept_memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace birnn::cpu {
#if defined(__linux__) && defined(MADV_FREE)
namespace {

constexpr size_t kPage = 2 << 20;
constexpr size_t kLarge = 8 << 20;  // smaller ones malloc keeps itself, once it met a few
constexpr size_t kMaxKept = 512 << 20;

struct Block {
  void* memory;
  size_t bytes;  // a multiple of kPage
};

// Says MADV_HUGEPAGE or the like of the whole pages in [memory, memory + bytes).
void advise(void* memory, size_t bytes, int advice) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage,
                  last = (begin + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, advice);
}

// Kept blocks, the latest last. Whoever finds the list in use goes without it: no thread waits, and
// a process forked meanwhile cannot hang.
class KeptBlocks {
 public:
  // A block of at least `bytes`, and not of much more.
  Block take(size_t bytes) {
    bytes = (bytes + kPage - 1) / kPage * kPage;
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      auto best = blocks_.end();
      for (auto it = blocks_.begin(); it != blocks_.end(); ++it)
        if (it->bytes >= bytes && it->bytes - bytes <= bytes / 4 &&
            (best == blocks_.end() || it->bytes <= best->bytes))
          best = it;
      if (best != blocks_.end()) {
        const Block block = *best;
        blocks_.erase(best);
        kept_ -= block.bytes;
        return block;
      }
    }
    const Block block{std::aligned_alloc(kPage, bytes), bytes};
    if (!block.memory) throw std::bad_alloc();
    advise(block.memory, block.bytes, MADV_HUGEPAGE);
    return block;
  }

  void give(const Block& block) {
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock && block.bytes <= kMaxKept) {
      while (kept_ + block.bytes > kMaxKept) {
        kept_ -= blocks_.front().bytes;
        std::free(blocks_.front().memory);
        blocks_.erase(blocks_.begin());
      }
      advise(block.memory, block.bytes, MADV_FREE);
      blocks_.push_back(block);
      kept_ += block.bytes;
      return;
    }
    std::free(block.memory);
  }

 private:
  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t kept_ = 0;
};

KeptBlocks& kept_blocks() {
  static KeptBlocks* blocks = new KeptBlocks;  // outlives every tensor
  return *blocks;
}

struct KeptMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block(kept_blocks().take(bytes));
    return {block->memory, block, release, at::kCPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  static void release(void* context) {
    const auto* block = static_cast<const Block*>(context);
    kept_blocks().give(*block);
    delete block;
  }
};

}  // namespace

at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const at::ScalarType type = c10::typeMetaToScalarType(options.dtype());
  if (c10::multiply_integers(sizes) * options.dtype().itemsize() < kLarge) {
    const at::Tensor t = at::empty(sizes, options);
    advise(t.data_ptr(), t.nbytes(), MADV_HUGEPAGE);
    return t;
  }
  static auto* allocator = new KeptMemory;  // outlives every tensor
  return at::Tensor(at::detail::empty_generic(
      sizes, allocator, c10::DispatchKeySet(c10::DispatchKey::CPU), type, std::nullopt));
}
#else
at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options);
}
#endif

}  // namespace birnn::cpu
