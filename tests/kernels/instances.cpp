// Which instances of the persistent kernels are compiled, and which some shape is given to: all
// hidden sizes that any instance holds, divided in every way that a device has blocks for. A line
// each: kernel, cell, bytes of an element, instance, whether it is compiled, whether it is reached.
#include <cstdio>
#include <vector>

#include "cuda/cluster/backward_sizes.h"
#include "cuda/cluster/forward_sizes.h"
#include "cuda/grid/backward_sizes.h"
#include "cuda/grid/forward_sizes.h"

namespace {

using namespace birnn;
using namespace birnn::cuda;

constexpr int kMaxSize = 2200;  // 64 chunks, the most that an instance holds, are 2048 of 16 bits
constexpr int kMaxGridBlocks = 160;

template <class Instance>
bool is_compiled(const Instance& instance, Cell cell, int64_t bytes) {
  if constexpr (requires { instance.is_compiled(cell, bytes); })
    return instance.is_compiled(cell, bytes);
  else
    return true;
}

// divide(shape, found): calls found(instance) for each way to divide the shape.
template <class Instance, int kCount, class Divide>
void look(const char* kernel, const Instance (&instances)[kCount], const Divide& divide) {
  for (const Cell cell : {Cell::kTanh, Cell::kGru, Cell::kLstm}) {
    for (const Element element : {Element::kFloat32, Element::kFloat16}) {
      std::vector<bool> reached(kCount);
      RecurrenceShape shape;
      shape.cell = cell;
      shape.element = element;
      shape.seq_len = 1;
      shape.batch_size = 1;
      for (shape.hidden_size = 1; shape.hidden_size <= kMaxSize; ++shape.hidden_size)
        divide(shape, [&](int instance) {
          if (instance >= 0) reached[instance] = true;
        });
      const int64_t bytes = element_bytes(element);
      for (int i = 0; i < kCount; ++i)
        std::printf("%s %d %d %d %d %d\n", kernel, static_cast<int>(cell), static_cast<int>(bytes),
                    i, is_compiled(instances[i], cell, bytes), static_cast<int>(reached[i]));
    }
  }
}

}  // namespace

int main() {
  look("cluster_forward", all_gather::kInstances, [](const auto& shape, const auto& found) {
    for (int blocks = 1; blocks <= all_gather::kMaxCluster; ++blocks)
      for (const int tiles : {1, 2, 4})
        for (int k_split = 1; k_split <= all_gather::kWarps; ++k_split)
          found(all_gather::Sizes(shape, {blocks, tiles, k_split}).instance);
  });
  look("cluster_backward", reduce_scatter::kInstances, [](const auto& shape, const auto& found) {
    for (int blocks = 1; blocks <= reduce_scatter::kMaxCluster; ++blocks)
      for (int tiles = 1; tiles <= reduce_scatter::kMaxBatchTiles; ++tiles)
        found(reduce_scatter::Sizes(shape, {blocks, tiles}).instance);
  });
  look("grid_forward", grid_gather::kInstances, [](const auto& shape, const auto& found) {
    for (int blocks = 1; blocks <= kMaxGridBlocks; ++blocks)
      for (const int tiles : {1, 2, 4})
        found(grid_gather::Sizes(shape, {blocks, tiles, 1}, 1).instance);
  });
  look("grid_backward", gather_reduce::kInstances, [](const auto& shape, const auto& found) {
    for (int blocks = 1; blocks <= kMaxGridBlocks; blocks += 3)
      for (const int tiles : {1, 2, 4, 16})
        found(gather_reduce::Sizes(shape, {blocks, tiles, 0}, 1).instance);
  });
}
