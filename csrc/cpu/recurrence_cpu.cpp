#include "recurrence_cpu.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "instruction_set.h"

namespace birnn::cpu {
namespace {

const InstructionSet& instruction_set() {
  static const InstructionSet& chosen = []() -> const InstructionSet& {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
      return avx512();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2();
#endif
    return baseline();
  }();
  return chosen;
}

int64_t element_bytes(const Layer& layer) {
  return layer.shape.element == Element::kFloat64 ? 8 : 4;
}

int64_t align(int64_t bytes) { return (bytes + 63) & ~int64_t(63); }

// Sequences are split over the cores that a direction gets.
int64_t tasks_per_direction(const Layer& layer) {
  const int64_t cores = std::max<int64_t>(at::get_num_threads() / layer.num_directions, 1);
  return std::min(cores, layer.shape.batch_size);
}

// The first sequence of task `index`: equal shares of the steps, which are longest first.
int64_t task_begin(const Layer& layer, int64_t index, int64_t tasks) {
  const int64_t B = layer.shape.batch_size;
  if (!layer.sequences.lengths) return B * index / tasks;
  int64_t total = 0;
  for (int64_t b = 0; b < B; ++b) total += layer.sequences.lengths[b];
  int64_t b = 0;
  for (int64_t sum = 0; b < B && sum * tasks < total * index; ++b)
    sum += layer.sequences.lengths[b];
  return index == tasks ? B : b;
}

// workspace: zeros [max(S, H)], then for each direction panels and panels_hr, then a scratch for
// each task. Forward and backward panels of one matrix need the same room up to padding.
struct Workspace {
  int64_t zeros, panels, panels_hr, scratch;

  explicit Workspace(const Layer& layer) {
    const RecurrenceShape& s = layer.shape;
    const KernelTable& kernels = instruction_set().table(s.element);
    const int gates = num_gates(s.cell);
    const int64_t H = s.hidden_size, S = s.state_size(), bytes = element_bytes(layer);
    zeros = align(std::max(S, H) * bytes);
    panels = align(bytes * std::max(kernels.packed_elements(H, gates, S),
                                    kernels.packed_elements(S, 1, gates * H)));
    panels_hr = s.proj_size ? align(bytes * std::max(kernels.packed_elements(S, 1, H),
                                                     kernels.packed_elements(H, 1, S)))
                            : 0;
    scratch = align(kernels.scratch_bytes(s, s.batch_size));
  }

  int64_t bytes(const Layer& layer) const {
    return zeros + layer.num_directions * (panels + panels_hr + tasks_per_direction(layer) * scratch);
  }
  char* panels_of(void* workspace, int direction) const {
    return static_cast<char*>(workspace) + zeros + direction * (panels + panels_hr);
  }
  char* scratch_of(void* workspace, const Layer& layer, int64_t task) const {
    return panels_of(workspace, layer.num_directions) + task * scratch;
  }
};

// Runs body(direction, b_begin, b_end, task) for all tasks, one thread each.
template <class Body>
void for_each_task(const Layer& layer, const Body& body) {
  const int64_t tasks = tasks_per_direction(layer);
  at::parallel_for(0, layer.num_directions * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b_begin = task_begin(layer, i % tasks, tasks);
      const int64_t b_end = task_begin(layer, i % tasks + 1, tasks);
      if (b_begin < b_end) body(int(i / tasks), b_begin, b_end, i);
    }
  });
}

void write_final_state(const Layer& layer, const ForwardDirection& dir, int64_t b_begin,
                       int64_t b_end) {
  const int64_t S = layer.shape.state_size(), bytes = element_bytes(layer);
  const SequenceRows& rows = layer.sequences;
  for (int64_t b = b_begin; b < b_end; ++b) {
    char* to = static_cast<char*>(dir.hy) + b * S * bytes;
    const int64_t length = rows.lengths ? rows.lengths[b] : layer.shape.seq_len;
    if (length > 0) {
      const int64_t t = dir.reverse ? 0 : length - 1;
      const int64_t row =
          (rows.row_offsets ? rows.row_offsets[t] : t * layer.shape.batch_size) + b;
      std::memcpy(to, static_cast<const char*>(dir.output) + row * dir.output_stride * bytes,
                  S * bytes);
    } else if (dir.hx) {
      std::memcpy(to, static_cast<const char*>(dir.hx) + b * S * bytes, S * bytes);
    } else {
      std::memset(to, 0, S * bytes);
    }
  }
}

}  // namespace

const char* instruction_set_name() { return instruction_set().name; }

int64_t workspace_bytes(const Layer& layer) { return Workspace(layer).bytes(layer); }

void prepare_forward(const Layer& layer, const ForwardDirection* directions, void* workspace) {
  const RecurrenceShape& s = layer.shape;
  const Workspace layout(layer);
  const KernelTable& kernels = instruction_set().table(s.element);
  std::memset(workspace, 0, layout.zeros);
  at::parallel_for(0, layer.num_directions, 1, [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) {
      char* panels = layout.panels_of(workspace, int(d));
      kernels.pack_rows(directions[d].weight_hh, num_gates(s.cell), s.hidden_size, s.state_size(),
                        panels);
      if (s.proj_size)
        kernels.pack_rows(directions[d].weight_hr, 1, s.proj_size, s.hidden_size,
                          panels + layout.panels);
    }
  });
}

void forward(const Layer& layer, const ForwardDirection* directions, bool save_reserve,
             int64_t step_begin, int64_t step_end, void* workspace) {
  const Workspace layout(layer);
  const KernelTable& kernels = instruction_set().table(layer.shape.element);
  for_each_task(layer, [&](int d, int64_t b_begin, int64_t b_end, int64_t i) {
    const char* panels = layout.panels_of(workspace, d);
    kernels.forward({&layer.shape, &layer.sequences, &directions[d], panels,
                     panels + layout.panels, workspace, save_reserve, b_begin, b_end, step_begin,
                     step_end, layout.scratch_of(workspace, layer, i)});
    if (step_end == layer.shape.seq_len)
      write_final_state(layer, directions[d], b_begin, b_end);
  });
}

void backward(const Layer& layer, const BackwardDirection* directions, void* workspace) {
  const RecurrenceShape& s = layer.shape;
  const Workspace layout(layer);
  const KernelTable& kernels = instruction_set().table(s.element);
  std::memset(workspace, 0, layout.zeros);
  at::parallel_for(0, layer.num_directions, 1, [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) {
      char* panels = layout.panels_of(workspace, int(d));
      kernels.pack_columns(directions[d].weight_hh, s.state_size(),
                           num_gates(s.cell) * s.hidden_size, panels);
      if (s.proj_size)
        kernels.pack_columns(directions[d].weight_hr, s.hidden_size, s.proj_size,
                             panels + layout.panels);
    }
  });
  for_each_task(layer, [&](int d, int64_t b_begin, int64_t b_end, int64_t i) {
    const char* panels = layout.panels_of(workspace, d);
    kernels.backward({&s, &layer.sequences, &directions[d], panels, panels + layout.panels,
                      workspace, b_begin, b_end, layout.scratch_of(workspace, layer, i)});
  });
}

}  // namespace birnn::cpu
