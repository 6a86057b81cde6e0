// What stepwise asks of its caller and of the device: workspaces and launches, as plain host code
// that the kernels' launcher and the plan share.
#pragma once

#include <cstdint>

#include "cuda/device/device_types.h"
#include "recurrence.h"

namespace birnn::cuda::stepwise {

constexpr uint32_t kMaxThreads = 128;
constexpr int64_t kMaxGridY = 65535;  // of every GPU
constexpr int64_t kAlignment = 256;   // bytes, of each array in a workspace

// Of what an element is computed and carried in.
constexpr int64_t carried_bytes(Element element) { return element == Element::kFloat64 ? 8 : 4; }

// A thread for each of `width` units of each sequence, as far as a grid reaches.
inline device::LaunchConfig config_for(int64_t width, int64_t batch_size, void* stream) {
  device::LaunchConfig config;
  config.threads =
      width < kMaxThreads ? static_cast<uint32_t>((width + 31) / 32 * 32) : kMaxThreads;
  config.grid.x = static_cast<uint32_t>((width + config.threads - 1) / config.threads);
  config.grid.y = static_cast<uint32_t>(batch_size < kMaxGridY ? batch_size : kMaxGridY);
  config.stream = stream;
  return config;
}

// Of a block that shares the units of a sequence. More blocks at once than these no GPU runs.
constexpr int64_t kMaxRowBlocks = 2048;
constexpr uint32_t kMaxRowThreads = 256;
constexpr int kMaxRowWarps = kMaxRowThreads / 32;
// What it adds up in one go, and shared memory for that: buffers used in turn.
constexpr int kMostSums = 2, kSumBuffers = 2;

// A block for each sequence, as far as a grid reaches.
inline device::LaunchConfig config_for_rows(int64_t width, int64_t batch_size, int64_t number_bytes,
                                            void* stream) {
  device::LaunchConfig config;
  config.threads =
      width < kMaxRowThreads ? static_cast<uint32_t>((width + 31) / 32 * 32) : kMaxRowThreads;
  config.grid.x = static_cast<uint32_t>(batch_size < kMaxRowBlocks ? batch_size : kMaxRowBlocks);
  config.shared_bytes = static_cast<size_t>(kSumBuffers * kMostSums * kMaxRowWarps * number_bytes);
  config.stream = stream;
  return config;
}

// Hands out the arrays of a workspace in turn; from address null it only measures.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
  void* take(int64_t bytes) {
    char* const array = base_ ? base_ + size_ : nullptr;
    size_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return array;
  }
  int64_t size() const { return size_; }

 private:
  char* base_;
  int64_t size_ = 0;
};

// Of one direction.
struct ForwardWorkspace {
  void* gates_h;    // [B, G*H], carried type
  void* wide;       // [B, H] h before the projection, or null
  void* projected;  // [B, P], or null
  void* masked;     // [B, S] h as it enters its product, or null
  // With the reset gate before the product: z, carried type, and r * h, [B, H]; or null.
  void* z;
  void* reset_h;
  int64_t bytes;

  ForwardWorkspace(const RecurrenceShape& s, void* base) {
    Workspace workspace(base);
    const int64_t B = s.batch_size, H = s.hidden_size, P = s.proj_size;
    gates_h = workspace.take(B * num_gates(s.cell) * H * carried_bytes(s.element));
    wide = P ? workspace.take(B * H * element_bytes(s.element)) : nullptr;
    projected = P ? workspace.take(B * P * element_bytes(s.element)) : nullptr;
    const int64_t masked_bytes = B * s.state_size() * element_bytes(s.element);
    masked = s.recurrent_dropout ? workspace.take(masked_bytes) : nullptr;
    const bool resets_before = s.cell == Cell::kGruResetBefore;
    z = resets_before ? workspace.take(B * H * carried_bytes(s.element)) : nullptr;
    reset_h = resets_before ? workspace.take(B * H * element_bytes(s.element)) : nullptr;
    bytes = workspace.size();
  }
};

struct BackwardWorkspace {
  void* product;      // [B, S], carried type
  void* step_dgates;  // [B, dgates_blocks * H]
  void* wide_dh;      // [B, H], carried type, or null
  void* step_dproj;   // [B, P], or null
  void* reset_dh;     // [B, H], carried type: the gradient of r * h, or null
  int64_t bytes;

  BackwardWorkspace(const RecurrenceShape& s, void* base) {
    Workspace workspace(base);
    const int64_t B = s.batch_size, H = s.hidden_size, P = s.proj_size;
    product = workspace.take(B * s.state_size() * carried_bytes(s.element));
    step_dgates = workspace.take(B * dgates_blocks(s.cell) * H * element_bytes(s.element));
    wide_dh = P ? workspace.take(B * H * carried_bytes(s.element)) : nullptr;
    step_dproj = P ? workspace.take(B * P * element_bytes(s.element)) : nullptr;
    reset_dh = s.cell == Cell::kGruResetBefore ? workspace.take(B * H * carried_bytes(s.element))
                                               : nullptr;
    bytes = workspace.size();
  }
};

// Of one direction of a layer-normalised cell.
struct NormalisedForwardWorkspace {
  void* sums;  // [B, G*H] = h W_hh^T
  int64_t bytes;

  NormalisedForwardWorkspace(const RecurrenceShape& s, void* base) {
    Workspace workspace(base);
    const int64_t columns = num_gates(s.cell) * s.hidden_size;
    sums = workspace.take(s.batch_size * columns * element_bytes(s.element));
    bytes = workspace.size();
  }
};

struct NormalisedBackwardWorkspace {
  void* product;     // [B, H]
  void* step_dsums;  // [B, G*H]
  int64_t bytes;

  NormalisedBackwardWorkspace(const RecurrenceShape& s, void* base) {
    Workspace workspace(base);
    const int64_t row = s.batch_size * s.hidden_size * element_bytes(s.element);
    product = workspace.take(row);
    step_dsums = workspace.take(num_gates(s.cell) * row);
    bytes = workspace.size();
  }
};

}  // namespace birnn::cuda::stepwise
