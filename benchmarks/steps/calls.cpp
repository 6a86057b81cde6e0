// What the kernels of a source tree are told: for each problem the way that its plan chooses on an
// H100, the template instance that its launcher takes, and the bytes of the parameters. Compiled
// for the host against the emulator's headers; nothing is launched.
//
//   calls < problems      a problem a line: cell precision H B steps [blocks batch_tiles k_split],
//                         the last three a division that is asked for; where it does not fit,
//                         nothing but stepwise is named
//
// prints for each problem and pass: problem, pass, kernel, namespace, instance, threads, blocks,
// cluster, tiling (as the kernel's own struct has it), parameters in hex.
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#if __has_include("cuda/cluster/forward_launch.cuh")
#include "cuda/cluster/backward_launch.cuh"
#include "cuda/cluster/forward_launch.cuh"
#include "cuda/grid/backward_launch.cuh"
#include "cuda/grid/forward_launch.cuh"
#include "cuda/plan/division.h"
#include "cuda/plan/plan.h"
#include "cuda/recurrence_cuda.h"
#else
#include "cluster_backward_launch.cuh"
#include "cluster_forward_launch.cuh"
#include "division.h"
#include "grid_backward_launch.cuh"
#include "grid_forward_launch.cuh"
#include "plan.h"
#include "recurrence_cuda.h"
#endif

namespace {

std::string problem, pass_name, precision_name, tiling;

std::string hex(const void* data, size_t size) {
  static const char* const digits = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < size; ++i) {
    const unsigned char byte = static_cast<const unsigned char*>(data)[i];
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

template <class Args>
int show(const char* kernel, const std::string& space, birnn::Cell cell,
         const std::vector<int>& numbers, int64_t threads, int64_t blocks, int64_t cluster,
         const Args& args) {
  std::ostringstream instance;
  instance << "Cell(" << static_cast<int>(cell) << ")," << precision_name;
  for (const int number : numbers) instance << ',' << number;
  std::cout << problem << ' ' << pass_name << ' ' << kernel << ' ' << space << ' ' << instance.str()
            << ' ' << threads << ' ' << blocks << ' ' << cluster << ' ' << tiling << ' '
            << hex(&args, sizeof args) << '\n';
  return 0;
}

// The template arguments that an instance stands for.
template <class Instance>
std::vector<int> numbers_of(const Instance& instance, birnn::Cell cell, int64_t bytes) {
  if constexpr (requires { instance.arguments(cell, bytes); }) {
    const auto all = instance.arguments(cell, bytes);
    return std::vector<int>(all.begin(), all.end());
  } else if constexpr (requires { instance.shared_weights; }) {
    return {instance.chunks(cell, bytes), instance.batch_tiles, instance.shared_weights};
  } else if constexpr (requires { instance.held(bytes); }) {
    return {instance.row_tiles, instance.chunks,      instance.held(bytes),
            instance.asked,     instance.batch_tiles, instance.cells};
  } else if constexpr (requires { instance.rest; }) {
    return {instance.row_tiles, instance.chunks, instance.rest, instance.pairs};
  } else {
    return {instance.row_tiles, instance.chunks, instance.pairs};
  }
}

template <class Sizes>
int64_t threads_of(const Sizes& sizes, int64_t otherwise) {
  if constexpr (requires { sizes.threads; })
    return sizes.threads;
  else
    return otherwise;
}

template <class Call>
birnn::Cell cell_of(const Call& call) {
  if constexpr (requires { call.cell; })
    return call.cell;
  else
    return call.shape.cell;
}

// Of a launcher's call, where it holds them.
template <class Sizes, class Call>
Sizes sizes_of(const Call& call) {
  if constexpr (requires { call.sizes; })
    return call.sizes;
  else
    return Sizes(call.shape, call.tiling);
}

int show_call(const birnn::cuda::all_gather::Call& call) {
  using namespace birnn::cuda::all_gather;
  const auto sizes = sizes_of<Sizes>(call);
  return show(
      "cluster_forward", "all_gather", call.shape.cell,
      numbers_of(kInstances[sizes.instance], call.shape.cell, element_bytes(call.shape.element)),
      sizes.threads, sizes.num_clusters * call.tiling.cluster_size, call.tiling.cluster_size,
      call.args);
}
int show_call(const birnn::cuda::reduce_scatter::Call& call) {
  using namespace birnn::cuda::reduce_scatter;
  const auto sizes = sizes_of<Sizes>(call);
  return show(
      "cluster_backward", "reduce_scatter", call.shape.cell,
      numbers_of(kInstances[sizes.instance], call.shape.cell, element_bytes(call.shape.element)),
      threads_of(sizes, kThreads), sizes.num_clusters * call.tiling.cluster_size,
      call.tiling.cluster_size, call.args);
}
int show_call(const birnn::cuda::grid_gather::Call& call, int64_t bytes) {
  using namespace birnn::cuda::grid_gather;
  return show("grid_forward", "grid_gather", cell_of(call),
              numbers_of(kInstances[call.sizes.instance], cell_of(call), bytes), kThreads,
              call.sizes.num_blocks, 1, call.args);
}
int show_call(const birnn::cuda::gather_reduce::Call& call, int64_t bytes) {
  using namespace birnn::cuda::gather_reduce;
  return show("grid_backward", "gather_reduce", cell_of(call),
              numbers_of(kInstances[call.sizes.instance], cell_of(call), bytes), kThreads,
              call.sizes.num_blocks, 1, call.args);
}

}  // namespace

namespace birnn::cuda {
#define CALLS(precision, bytes)                                               \
  namespace all_gather {                                                      \
  int launch_##precision(const Call& call) { return show_call(call); }        \
  }                                                                           \
  namespace reduce_scatter {                                                  \
  int launch_##precision(const Call& call) { return show_call(call); }        \
  }                                                                           \
  namespace grid_gather {                                                     \
  int launch_##precision(const Call& call) { return show_call(call, bytes); } \
  }                                                                           \
  namespace gather_reduce {                                                   \
  int launch_##precision(const Call& call) { return show_call(call, bytes); } \
  }
CALLS(fp16, 2)
CALLS(bf16, 2)
CALLS(tf32, 4)
CALLS(ieee, 4)
}  // namespace birnn::cuda

namespace {

using namespace birnn;
using namespace birnn::cuda;

// As the layer lays out its tensors: two directions, no lengths, initial states given. Pointers are
// never followed: all that counts is which are null, and their alignment. The workspace lies last:
// by its address program.py knows what is loaded from there.
void* somewhere(int64_t index) { return reinterpret_cast<void*>((1 << 20) * (1 + index)); }
void* workspace() { return somewhere(15); }

// Of trees before this, persistent kernels took no regularisers: call(regularisers) or call().
template <class Call, class... Regularised>
int call_with(const Call& call, const Regularised&... given) {
  if constexpr (requires { call(given...); })
    return call(given...);
  else
    return call();
}

// resets, masks: what is given beside.
int run(const PlanRequest& request, const Choice& choice, Pass pass, bool save_reserve,
        GemmCompute compute, bool resets, bool masks) {
  const RecurrenceShape& s = request.shape;
  Regularisers given[2];
  if (masks) given[0].recurrent_mask = given[1].recurrent_mask = somewhere(13);
  const bool* const begins = resets ? static_cast<const bool*>(somewhere(14)) : nullptr;
  const int64_t H = s.hidden_size, G = num_gates(s.cell);
  const int64_t width = reserve_blocks(s.cell) > G ? reserve_blocks(s.cell) : G;
  if (pass == Pass::kForward) {
    ForwardDirection dirs[2];
    for (int d = 0; d < 2; ++d) {
      ForwardDirection& dir = dirs[d];
      dir.reverse = d == 1;
      dir.weight_hh = somewhere(1);
      dir.bias_ih = somewhere(2);
      dir.bias_hh = somewhere(3);
      dir.hx = somewhere(4);
      if (s.cell == Cell::kLstm) dir.cx = somewhere(5);
      dir.gates = somewhere(6);
      dir.gates_stride = (save_reserve ? width : G) * H;
      dir.output = somewhere(7);
      dir.output_stride = 2 * H;
      dir.hy = somewhere(8);
      dir.cy = somewhere(9);
      dir.resets = begins;
    }
    if (choice.kernel == Kernel::kGrid)
      return call_with(
          [&](const auto&... more) -> decltype(grid_forward(
                                       s, nullptr, dirs, more..., 2, save_reserve, compute,
                                       GridForwardTiling{}, nullptr, nullptr)) {
            return grid_forward(s, nullptr, dirs, more..., 2, save_reserve, compute,
                                {choice.blocks, choice.batch_tiles, choice.groups_at_once},
                                workspace(), nullptr);
          },
          &given[0]);
    return call_with(
        [&](const auto&... more) -> decltype(cluster_forward(
                                     s, nullptr, dirs[0], more..., save_reserve, compute,
                                     ClusterForwardTiling{}, nullptr, nullptr)) {
          return cluster_forward(s, nullptr, dirs[0], more..., save_reserve, compute,
                                 {choice.blocks, choice.batch_tiles, choice.k_split}, workspace(),
                                 nullptr);
        },
        given[0]);
  }
  BackwardDirection dirs[2];
  for (int d = 0; d < 2; ++d) {
    BackwardDirection& dir = dirs[d];
    dir.reverse = d == 1;
    dir.weight_hh = somewhere(1);
    dir.hx = somewhere(2);
    if (s.cell == Cell::kLstm) dir.cx = somewhere(3);
    dir.output = somewhere(4);
    dir.output_stride = 2 * H;
    dir.reserve = somewhere(5);
    dir.reserve_stride = width * H;
    dir.dy = somewhere(6);
    dir.dy_stride = 2 * H;
    dir.dgates = somewhere(7);
    dir.dgates_stride = dgates_blocks(s.cell) * H;
    dir.dhx = somewhere(8);
    dir.dcx = somewhere(9);
    dir.resets = begins;
  }
  void* const first_dgates[2] = {somewhere(11), somewhere(12)};
  if (choice.kernel == Kernel::kGrid)
    return call_with(
        [&](const auto&... more) -> decltype(grid_backward(s, nullptr, dirs, more..., first_dgates,
                                                           2, compute, GridBackwardTiling{},
                                                           nullptr, nullptr)) {
          return grid_backward(s, nullptr, dirs, more..., first_dgates, 2, compute,
                               {choice.blocks, choice.batch_tiles}, workspace(), nullptr);
        },
        &given[0]);
  return call_with(
      [&](const auto&... more) -> decltype(cluster_backward(
                                   s, nullptr, dirs[0], more..., first_dgates[0], compute,
                                   ClusterBackwardTiling{}, nullptr, nullptr)) {
        return cluster_backward(s, nullptr, dirs[0], more..., first_dgates[0], compute,
                                {choice.blocks, choice.batch_tiles}, workspace(), nullptr);
      },
      given[0]);
}

// As ClusterForwardTiling and the others have it, between commas.
std::string tiling_of(const Choice& choice, Pass pass) {
  std::vector<int> numbers = {choice.blocks, choice.batch_tiles};
  if (pass == Pass::kForward)
    numbers.push_back(choice.kernel == Kernel::kGrid ? choice.groups_at_once : choice.k_split);
  else if (choice.kernel == Kernel::kGrid)
    numbers.push_back(0);  // column teams: the kernel's choice
  std::string text;
  for (const int number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
  return text;
}

// Trees before this could not be asked for a division.
template <class Request>
void divide(Request& request, int blocks, int batch_tiles, int k_split) {
  if constexpr (requires { request.forward; }) {
    Choice choice;
    choice.kernel = blocks > 1 ? Kernel::kCluster : Kernel::kBlock;
    choice.blocks = blocks;
    choice.batch_tiles = batch_tiles;
    request.backward = choice;
    choice.k_split = k_split;
    request.forward = choice;
  }
}

// Trees before this kept it elsewhere.
template <class Request>
void give_resets(Request& request, bool resets) {
  if constexpr (requires { request.shape.resets; })
    request.shape.resets = resets;
  else if constexpr (requires { request.has_resets; })
    request.has_resets = resets;
}

}  // namespace

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string cell, precision;
    PlanRequest request;
    RecurrenceShape& s = request.shape;
    std::string given;
    words >> cell >> precision >> s.hidden_size >> s.batch_size >> s.seq_len >> given;
    const bool resets = given == "resets", masks = given == "recurrent-dropout";
    problem = cell + ' ' + precision + ' ' + std::to_string(s.hidden_size) + ' ' +
              std::to_string(s.batch_size) + ' ' + std::to_string(s.seq_len);
    s.cell = cell == "lstm"   ? Cell::kLstm
             : cell == "gru"  ? Cell::kGru
             : cell == "relu" ? Cell::kRelu
                              : Cell::kTanh;
    s.element = precision == "fp16"   ? Element::kFloat16
                : precision == "bf16" ? Element::kBFloat16
                                      : Element::kFloat32;
    precision_name = precision == "fp16"   ? "Fp16"
                     : precision == "bf16" ? "Bf16"
                     : precision == "tf32" ? "Tf32"
                                           : "Ieee";
    request.input_size = s.hidden_size;
    give_resets(request, resets);
    s.recurrent_dropout = masks;
    request.ieee = precision == "ieee";
    for (const DeviceLimits& device : known_devices())
      if (device.name == "h100") request.device = device;
    int blocks = 0, tiles = 0, k_split = 0;
    if (words >> blocks >> tiles >> k_split) divide(request, blocks, tiles, k_split);
    const GemmCompute compute = precision == "tf32" ? GemmCompute::kTf32 : GemmCompute::kIeee;
    for (const std::string name : {"inference", "training", "backward"}) {
      pass_name = name;
      const Pass pass = name == "backward" ? Pass::kBackward : Pass::kForward;
      request.training = name != "inference";
      const ChoiceResult result = choose(request, pass);
      tiling = tiling_of(result.choice, pass);
      if (!result.error.empty() || result.choice.kernel == Kernel::kStepwise) {
        std::cout << problem << ' ' << pass_name << " stepwise\n";
      } else if (run(request, result.choice, pass, request.training, compute, resets, masks) != 0) {
        std::cerr << "calls: no instance for " << line << '\n';
        return 1;
      }
    }
  }
}
