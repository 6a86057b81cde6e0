#include "cpu/recurrence_cpu.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "cpu/instruction_set.h"

namespace birnn::cpu {
namespace {

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

// workspace: zeros [max(S, H)], then for each direction the packed weights, then a scratch for
// each task. Forward and backward panels of one matrix need the same room up to padding.
struct Workspace {
  int64_t zeros, panels, panels_ih, panels_hr, scratch;

  explicit Workspace(const Layer& layer) {
    const RecurrenceShape& s = layer.shape;
    const KernelTable& kernels = *layer.kernels;
    const int gates = num_gates(s.cell);
    const int64_t H = s.hidden_size, S = s.state_size();
    zeros = align(std::max(S, H) * int64_t(sizeof(double)));
    panels =
        align(std::max(kernels.packed_bytes(H, gates, S), kernels.packed_bytes(S, 1, gates * H)));
    panels_ih = align(kernels.packed_bytes(H, gates, layer.input_size));
    panels_hr = s.proj_size
                    ? align(std::max(kernels.packed_bytes(S, 1, H), kernels.packed_bytes(H, 1, S)))
                    : 0;
    scratch = align(kernels.scratch_bytes(s, layer.input_size, s.batch_size));
  }

  int64_t bytes(const Layer& layer) const {
    return zeros + layer.num_directions *
                       (panels + panels_ih + panels_hr + tasks_per_direction(layer) * scratch);
  }
  char* panels_of(void* workspace, int direction) const {
    return static_cast<char*>(workspace) + zeros + direction * (panels + panels_ih + panels_hr);
  }
  char* panels_ih_of(void* workspace, int direction) const {
    return panels_of(workspace, direction) + panels;
  }
  char* panels_hr_of(void* workspace, int direction) const {
    return panels_ih_of(workspace, direction) + panels_ih;
  }
  char* scratch_of(void* workspace, const Layer& layer, int64_t task) const {
    return panels_of(workspace, layer.num_directions) + task * scratch;
  }
};

// Runs pack(direction) for all directions, then body(direction, b_begin, b_end, task) for all
// tasks, one thread each. A direction that is one task packs its own weights: every parallel region
// less is a wake-up less, which counts when the whole pass takes 0.1 ms.
template <class Pack, class Body>
void for_each_task(const Layer& layer, const Pack& pack, const Body& body) {
  const int64_t tasks = tasks_per_direction(layer);
  if (tasks > 1)
    at::parallel_for(0, layer.num_directions, 1, [&](int64_t begin, int64_t end) {
      for (int64_t d = begin; d < end; ++d) pack(int(d));
    });
  at::parallel_for(0, layer.num_directions * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int d = int(i / tasks);
      if (tasks == 1) pack(d);
      const int64_t b_begin = task_begin(layer, i % tasks, tasks);
      const int64_t b_end = task_begin(layer, i % tasks + 1, tasks);
      if (b_begin < b_end) body(d, b_begin, b_end, i);
    }
  });
}

void write_final_state(const Layer& layer, const ForwardDirection& dir, int64_t b_begin,
                       int64_t b_end) {
  const int64_t S = layer.shape.state_size(), bytes = element_bytes(layer.shape.element);
  const SequenceRows& rows = layer.sequences;
  for (int64_t b = b_begin; b < b_end; ++b) {
    char* to = static_cast<char*>(dir.hy) + b * S * bytes;
    const int64_t length = rows.lengths ? rows.lengths[b] : layer.shape.seq_len;
    if (length > 0) {
      const int64_t t = dir.reverse ? 0 : length - 1;
      const int64_t row = (rows.row_offsets ? rows.row_offsets[t] : t * layer.shape.batch_size) + b;
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

int64_t workspace_bytes(const Layer& layer) { return Workspace(layer).bytes(layer); }

void forward(const Layer& layer, const ForwardDirection* directions, const void* x,
             int64_t x_stride, const void* const* weight_ih, const WeightScales* scales,
             void* workspace) {
  const RecurrenceShape& s = layer.shape;
  const Workspace layout(layer);
  const KernelTable& kernels = *layer.kernels;
  const LayerInput input{x, x_stride, layer.input_size};
  std::memset(workspace, 0, layout.zeros);
  const int gates = num_gates(s.cell);
  const auto pack = [&](int d) {
    kernels.pack_rows(directions[d].weight_hh, gates, s.hidden_size, s.state_size(),
                      layout.panels_of(workspace, d));
    kernels.pack_rows(weight_ih[d], gates, s.hidden_size, layer.input_size,
                      layout.panels_ih_of(workspace, d));
    if (s.proj_size)
      kernels.pack_rows(directions[d].weight_hr, 1, s.proj_size, s.hidden_size,
                        layout.panels_hr_of(workspace, d));
  };
  for_each_task(layer, pack, [&](int d, int64_t b_begin, int64_t b_end, int64_t i) {
    // Only as many steps as its longest sequence has: each has a row to compute, none of none.
    RecurrenceShape shape = s;
    if (layer.sequences.lengths) shape.seq_len = layer.sequences.lengths[b_begin];
    if (shape.seq_len > 0)
      kernels.forward({&shape, &layer.sequences, &directions[d], &input,
                       layout.panels_of(workspace, d), layout.panels_ih_of(workspace, d),
                       layout.panels_hr_of(workspace, d), scales[d], workspace,
                       directions[d].gates != nullptr, b_begin, b_end,
                       layout.scratch_of(workspace, layer, i)});
    write_final_state(layer, directions[d], b_begin, b_end);
  });
}

void backward(const Layer& layer, const BackwardDirection* directions, int64_t step_begin,
              int64_t step_end, void* workspace) {
  const RecurrenceShape& s = layer.shape;
  const Workspace layout(layer);
  const KernelTable& kernels = *layer.kernels;
  const bool first = step_end == s.seq_len;
  if (first) std::memset(workspace, 0, layout.zeros);
  const auto pack = [&](int d) {
    if (!first) return;
    kernels.pack_columns(directions[d].weight_hh, s.state_size(), num_gates(s.cell) * s.hidden_size,
                         layout.panels_of(workspace, d));
    if (s.proj_size)
      kernels.pack_columns(directions[d].weight_hr, s.hidden_size, s.proj_size,
                           layout.panels_hr_of(workspace, d));
  };
  for_each_task(layer, pack, [&](int d, int64_t b_begin, int64_t b_end, int64_t i) {
    kernels.backward({&s, &layer.sequences, &directions[d], layout.panels_of(workspace, d),
                      layout.panels_hr_of(workspace, d), workspace, b_begin, b_end, step_begin,
                      step_end, layout.scratch_of(workspace, layer, i)});
  });
}

}  // namespace birnn::cpu
