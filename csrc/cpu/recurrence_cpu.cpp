#include "cpu/recurrence_cpu.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "cpu/instruction_set.h"

namespace birnn::cpu {
namespace {

int64_t align(int64_t bytes) { return (bytes + 63) & ~int64_t(63); }

// With the reset gate before the product, each gate has panels of its own (reset_before.h).
bool gates_apart(const RecurrenceShape& shape) { return shape.cell == Cell::kGruResetBefore; }

// How a direction is split over the cores that it gets.
//
// By sequences, each core reads all weights for its own sequences and waits for nobody. By units,
// each reads its part of the weights for all sequences, keeps it in a cache of its own if it fits,
// and meets the others once a step.
//
// A core streams W_hh for up to kStreamedRows rows in the time that it takes for one; more rows are
// bound by their multiply-adds. So a step takes, in bytes, W * max(rows, 8) / 8 with the rows of
// one core, or W / shares * max(B, 8) / 8 and a meeting. An LSTM of H = 1024 (16 MB), B = 1, on 8,
// 16 or 64 cores a direction: 8, 16 and 64 times fewer bytes a step than on one, B = 8 the same; of
// H = 256 (1 MB) 4 times, whatever there is above 4 cores. By sequences, B = 8, a core reads all of
// it. On crowded cores those who would share units do not: a direction runs on one core.
struct Split {
  int64_t tasks = 1;  // a direction
  bool by_units = false;

  // Of W_hh: a smaller share is done in less time than it takes to meet.
  static constexpr int64_t kMinShareBytes = 256 << 10;
  static constexpr int64_t kStreamedRows = 8;

  explicit Split(const Layer& layer) {
    const RecurrenceShape& s = layer.shape;
    const int64_t B = s.batch_size;
    const int64_t cores = std::max<int64_t>(at::get_num_threads() / layer.num_directions, 1);
    tasks = std::min(cores, B);
#if AT_PARALLEL_OPENMP
    // Those who meet must all run: OpenMP gives each task of a region a thread, or a thread several
    // tasks at once; a pool of threads that others use as well may not.
    const int64_t bytes =
        layer.kernels->packed_bytes(s.hidden_size, num_gates(s.cell), s.state_size());
    const int64_t shares = std::min(cores, bytes / kMinShareBytes);
    if (shares < 2 || !layer.kernels->shares_units || s.proj_size) return;
    if (B >= cores && B > kStreamedRows) return;
    const int64_t rows = (B + tasks - 1) / tasks;
    const int64_t by_sequences = std::max(rows, kStreamedRows) * shares;
    if (std::max(B, kStreamedRows) < by_sequences) {
      by_units = layer.meets;
      tasks = layer.meets ? shares : 1;
    }
#endif
  }
};

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

// Which weights a forward pass reads in place (in_place.h) instead of packing them: those that few
// products take, each of up to four rows. To pack a matrix costs as much as one product in place,
// or three of packed weights.
struct InPlace {
  bool weight_ih = false, weight_hh = false;

  InPlace() = default;
  InPlace(const Layer& layer, const Split& split) {
    constexpr int64_t kMaxProducts = 2, kRows = 4;
    const RecurrenceShape& s = layer.shape;
    if (!layer.kernels->reads_in_place || s.proj_size || gates_apart(s)) return;
    const int64_t rows =
        split.by_units ? s.batch_size : (s.batch_size + split.tasks - 1) / split.tasks;
    weight_ih = (s.seq_len * rows + kRows - 1) / kRows <= kMaxProducts;
    weight_hh = (rows + kRows - 1) / kRows * s.seq_len <= kMaxProducts;
  }
};

// Where the packed weights of a direction lie, from where they begin. Forward and backward panels
// of one matrix need the same room up to padding.
struct PanelRoom {
  int64_t hh, ih, hr;

  explicit PanelRoom(const Layer& layer, InPlace in_place = {}) {
    const RecurrenceShape& s = layer.shape;
    const KernelTable& kernels = *layer.kernels;
    const int gates = num_gates(s.cell);
    const int64_t H = s.hidden_size, S = s.state_size();
    if (gates_apart(s)) {
      hh = align(std::max(gates * kernels.packed_bytes(H, 1, H),
                          kernels.packed_bytes(H, 1, 2 * H) + kernels.packed_bytes(H, 1, H)));
      ih = align(gates * kernels.packed_bytes(H, 1, layer.input_size));
      hr = 0;
      return;
    }
    hh = in_place.weight_hh ? 0
                            : align(std::max(kernels.packed_bytes(H, gates, S),
                                             kernels.packed_bytes(S, 1, gates * H)));
    ih = in_place.weight_ih ? 0 : align(kernels.packed_bytes(H, gates, layer.input_size));
    hr = s.proj_size ? align(std::max(kernels.packed_bytes(S, 1, H), kernels.packed_bytes(H, 1, S)))
                     : 0;
  }

  int64_t bytes() const { return hh + ih + hr; }
};

// The panels of all directions, one after the other.
template <class Memory>
struct Panels {
  Memory base;
  PanelRoom room;

  Memory hh(int direction) const { return base + direction * room.bytes(); }
  Memory ih(int direction) const { return hh(direction) + room.hh; }
  Memory hr(int direction) const { return ih(direction) + room.ih; }
};

// workspace: zeros [max(S, H)], the panels unless they lie elsewhere, then a scratch for each task.
struct Workspace {
  PanelRoom room;
  int64_t zeros, panels, scratch;

  explicit Workspace(const Layer& layer, InPlace in_place = {}, bool has_panels = true)
      : room(layer, in_place) {
    const RecurrenceShape& s = layer.shape;
    zeros = align(std::max(s.state_size(), s.hidden_size) * int64_t(sizeof(double)));
    panels = has_panels ? layer.num_directions * room.bytes() : 0;
    scratch = align(layer.kernels->scratch_bytes(s, layer.input_size, s.batch_size));
  }

  int64_t bytes(const Layer& layer) const {
    return zeros + panels + layer.num_directions * Split(layer).tasks * scratch;
  }
  Panels<char*> panels_in(void* workspace) const {
    return {static_cast<char*>(workspace) + zeros, room};
  }
  char* scratch_of(void* workspace, int64_t task) const {
    return static_cast<char*>(workspace) + zeros + panels + task * scratch;
  }
};

// A share of the panels of W_hh, W_ih and, with a projection, W_hr that forward reads.
void pack_share(const Layer& layer, const ForwardDirection& direction, const void* weight_ih,
                InPlace in_place, int d, const UnitShare& share, const Panels<char*>& panels) {
  const RecurrenceShape& s = layer.shape;
  const KernelTable& kernels = *layer.kernels;
  const int gates = num_gates(s.cell);
  if (gates_apart(s)) {
    const int64_t H = s.hidden_size, row_bytes = H * element_bytes(kernels.rows);
    const auto pack_gates = [&](const void* weight, int64_t depth, char* to) {
      for (int gate = 0; gate < gates; ++gate)
        kernels.pack_rows(static_cast<const char*>(weight) + gate * row_bytes * depth, 1, H, depth,
                          share, to + gate * kernels.packed_bytes(H, 1, depth));
    };
    pack_gates(direction.weight_hh, H, panels.hh(d));
    pack_gates(weight_ih, layer.input_size, panels.ih(d));
    return;
  }
  if (!in_place.weight_hh)
    kernels.pack_rows(direction.weight_hh, gates, s.hidden_size, s.state_size(), share,
                      panels.hh(d));
  if (!in_place.weight_ih)
    kernels.pack_rows(weight_ih, gates, s.hidden_size, layer.input_size, share, panels.ih(d));
  if (s.proj_size)
    kernels.pack_rows(direction.weight_hr, 1, s.proj_size, s.hidden_size, share, panels.hr(d));
}

const Regularisers* regularisers_of(const Layer& layer, int direction) {
  return layer.regularisers ? layer.regularisers + direction : nullptr;
}

// What a thread runs: sequences [b_begin, b_end) of direction d, and a share of its units.
struct Part {
  int direction;
  int64_t b_begin, b_end;
  UnitShare units;
  StepBarrier* barrier;
  int64_t scratch;  // index
};

// Calls of_direction(direction, shares of `tasks`, index of the first) until all have had their
// turn, concurrently. A thread that was given several tasks of a direction has them all at once.
template <class OfDirection>
void for_each_direction(const Layer& layer, int64_t tasks, const OfDirection& of_direction) {
  at::parallel_for(0, layer.num_directions * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t d = i / tasks, next = std::min(end, (d + 1) * tasks);
      of_direction(int(d), UnitShare{i - d * tasks, next - d * tasks, tasks}, i);
      i = next;
    }
  });
}

// Runs pack(direction, share) for all shares of all directions' weights, unless nothing is packed,
// and body(part) for all parts, one thread each. Who packs nothing for others does so in the region
// where it computes: every parallel region less is a wake-up less, which counts when the whole pass
// takes 0.1 ms.
template <class Pack, class Body>
void for_each_part(const Layer& layer, const Split& split, bool packs, const Pack& pack,
                   const Body& body) {
  const int64_t tasks = split.tasks;
  const auto run = [&](const auto& of_direction) {
    for_each_direction(layer, tasks, of_direction);
  };
  if (split.by_units) {
    std::array<StepBarrier, 2> barriers{StepBarrier(tasks), StepBarrier(tasks)};
    Crowding::begin_pass();
    const auto begun = Crowding::Clock::now();
    auto done = begun;  // by the caller, who then waits for the others
    run([&](int d, const UnitShare& share, int64_t i) {
      if (packs) pack(d, share);
      StepBarrier* barrier = share.end - share.begin < tasks ? &barriers[d] : nullptr;
      body(Part{d, 0, layer.shape.batch_size, share, barrier, i});
      if (i == 0) done = Crowding::Clock::now();
    });
    Crowding::note_wait(done);
    return Crowding::end_pass(begun);
  }
  if (packs && tasks > 1) run([&](int d, const UnitShare& share, int64_t) { pack(d, share); });
  run([&](int d, const UnitShare& share, int64_t i) {
    if (packs && tasks == 1) pack(d, UnitShare{});
    for (int64_t task = share.begin; task < share.end; ++task, ++i) {
      const int64_t b_begin = task_begin(layer, task, tasks);
      const int64_t b_end = task_begin(layer, task + 1, tasks);
      if (b_begin < b_end) body(Part{d, b_begin, b_end, UnitShare{}, nullptr, i});
    }
  });
}

template <class Direction>
void write_final_state(const Layer& layer, const Direction& dir, const Part& part) {
  const RecurrenceShape& s = layer.shape;
  const int64_t S = s.state_size(), bytes = element_bytes(s.element);
  const SequenceRows& rows = layer.sequences;
  const auto unit = [&](int64_t share) {
    return part.units.count == 1
               ? share * S
               : layer.kernels->first_unit(s.hidden_size, gates_apart(s) ? 1 : num_gates(s.cell),
                                           share, part.units.count);
  };
  const int64_t u_begin = unit(part.units.begin),
                u_bytes = (unit(part.units.end) - u_begin) * bytes;
  for (int64_t b = part.b_begin; b < part.b_end; ++b) {
    const int64_t at = b * S + u_begin;
    char* to = static_cast<char*>(dir.hy) + at * bytes;
    const int64_t length = rows.lengths ? rows.lengths[b] : layer.shape.seq_len;
    if (length > 0) {
      const int64_t t = dir.reverse ? 0 : length - 1;
      const int64_t row = (rows.row_offsets ? rows.row_offsets[t] : t * layer.shape.batch_size) + b;
      std::memcpy(
          to, static_cast<const char*>(dir.output) + (row * dir.output_stride + u_begin) * bytes,
          u_bytes);
    } else if (dir.hx) {
      std::memcpy(to, static_cast<const char*>(dir.hx) + at * bytes, u_bytes);
    } else {
      std::memset(to, 0, u_bytes);
    }
  }
}

}  // namespace

int64_t packed_weights_bytes(const Layer& layer) {
  return layer.num_directions * PanelRoom(layer).bytes();
}

void pack_weights(const Layer& layer, const ForwardDirection* directions,
                  const void* const* weight_ih, void* packed) {
  const Panels<char*> panels{static_cast<char*>(packed), PanelRoom(layer)};
  for_each_direction(layer, at::get_num_threads(), [&](int d, const UnitShare& share, int64_t) {
    pack_share(layer, directions[d], weight_ih[d], {}, d, share, panels);
  });
}

int64_t forward_workspace_bytes(const Layer& layer, bool with_packed_weights) {
  return Workspace(layer, InPlace(layer, Split(layer)), !with_packed_weights).bytes(layer);
}

int64_t backward_workspace_bytes(const Layer& layer) { return Workspace(layer).bytes(layer); }

void forward(const Layer& layer, const ForwardDirection* directions, const void* x,
             int64_t x_stride, const void* const* weight_ih, const WeightScales* scales,
             const void* packed_weights, void* workspace) {
  const RecurrenceShape& s = layer.shape;
  const Split split(layer);
  const InPlace in_place(layer, split);
  const Workspace layout(layer, in_place, !packed_weights);
  const KernelTable& kernels = *layer.kernels;
  const LayerInput input{x, x_stride, layer.input_size};
  std::memset(workspace, 0, layout.zeros);
  const Panels<char*> to_pack = layout.panels_in(workspace);
  const Panels<const char*> panels =
      packed_weights
          ? Panels<const char*>{static_cast<const char*>(packed_weights), PanelRoom(layer)}
          : Panels<const char*>{to_pack.base, layout.room};
  const auto pack = [&](int d, const UnitShare& share) {
    pack_share(layer, directions[d], weight_ih[d], in_place, d, share, to_pack);
  };
  const auto body = [&](const Part& part) {
    const ForwardDirection& dir = directions[part.direction];
    const int d = part.direction;
    // Only as many steps as its longest sequence has: each has a row to compute, none of none.
    RecurrenceShape shape = s;
    if (layer.sequences.lengths) shape.seq_len = layer.sequences.lengths[part.b_begin];
    if (shape.seq_len > 0)
      kernels.forward(
          {&shape,
           &layer.sequences,
           &dir,
           regularisers_of(layer, d),
           &input,
           in_place.weight_hh ? Weights{dir.weight_hh, true} : Weights{panels.hh(d), false},
           in_place.weight_ih ? Weights{weight_ih[d], true} : Weights{panels.ih(d), false},
           {panels.hr(d), false},
           scales[d],
           workspace,
           dir.gates != nullptr,
           part.b_begin,
           part.b_end,
           part.units,
           part.barrier,
           layout.scratch_of(workspace, part.scratch)});
    write_final_state(layer, dir, part);
  };
  const bool packs = !packed_weights && (!in_place.weight_ih || !in_place.weight_hh);
  for_each_part(layer, split, packs, pack, body);
}

void backward(const Layer& layer, const BackwardDirection* directions, int64_t step_begin,
              int64_t step_end, void* workspace) {
  const RecurrenceShape& s = layer.shape;
  const Workspace layout(layer);
  const Panels<char*> panels = layout.panels_in(workspace);
  const KernelTable& kernels = *layer.kernels;
  const bool first = step_end == s.seq_len;
  if (first) std::memset(workspace, 0, layout.zeros);
  const auto pack = [&](int d, const UnitShare& share) {
    if (gates_apart(s)) {
      const int64_t H = s.hidden_size, bytes = element_bytes(kernels.rows);
      const char* w = static_cast<const char*>(directions[d].weight_hh);
      kernels.pack_columns(w, H, 2 * H, share, panels.hh(d));
      return kernels.pack_columns(w + 2 * H * H * bytes, H, H, share,
                                  panels.hh(d) + kernels.packed_bytes(H, 1, 2 * H));
    }
    kernels.pack_columns(directions[d].weight_hh, s.state_size(), num_gates(s.cell) * s.hidden_size,
                         share, panels.hh(d));
    if (s.proj_size)
      kernels.pack_columns(directions[d].weight_hr, s.hidden_size, s.proj_size, share,
                           panels.hr(d));
  };
  for_each_part(layer, Split(layer), first, pack, [&](const Part& part) {
    const int d = part.direction;
    kernels.backward({&s, &layer.sequences, &directions[d], regularisers_of(layer, d), panels.hh(d),
                      panels.hr(d), workspace, part.b_begin, part.b_end, part.units, part.barrier,
                      step_begin, step_end, layout.scratch_of(workspace, part.scratch)});
  });
}

namespace {

// A norm needs all sums of a row, so directions are split by sequences alone.
Split split_of_normalised(const Layer& layer) {
  Layer alone = layer;
  alone.meets = false;
  Split split(alone);
  split.by_units = false;
  return split;
}

int64_t normalised_panels(const Layer& layer) {
  const int64_t H = layer.shape.hidden_size;
  const int gates = num_gates(layer.shape.cell);
  return align(std::max(layer.kernels->packed_bytes(H, gates, H),
                        layer.kernels->packed_bytes(H, 1, gates * H)));
}

int64_t normalised_scratch(const Layer& layer) {
  return align(layer.kernels->normalised_scratch_bytes(layer.shape, layer.shape.batch_size));
}

// workspace: zeros [H], the packed weights of each direction, a scratch for each task.
template <class Pack, class Run>
void run_normalised(const Layer& layer, const NormalisedDirection* directions, void* workspace,
                    const Pack& pack_share, const Run& run) {
  const int64_t zeros = align(layer.shape.hidden_size * int64_t(sizeof(double)));
  const int64_t panels = normalised_panels(layer), scratch = normalised_scratch(layer);
  char* const first_panels = static_cast<char*>(workspace) + zeros;
  char* const first_scratch = first_panels + layer.num_directions * panels;
  std::memset(workspace, 0, zeros);
  const auto pack = [&](int d, const UnitShare& share) {
    pack_share(directions[d], share, first_panels + d * panels);
  };
  for_each_part(layer, split_of_normalised(layer), true, pack, [&](const Part& part) {
    const int d = part.direction;
    RecurrenceShape shape = layer.shape;
    if (layer.sequences.lengths) shape.seq_len = layer.sequences.lengths[part.b_begin];
    run({&shape, &layer.sequences, &directions[d], first_panels + d * panels, workspace,
         part.b_begin, part.b_end, first_scratch + part.scratch * scratch},
        part);
  });
}

}  // namespace

int64_t normalised_workspace_bytes(const Layer& layer) {
  return align(layer.shape.hidden_size * int64_t(sizeof(double))) +
         layer.num_directions * (normalised_panels(layer) +
                                 split_of_normalised(layer).tasks * normalised_scratch(layer));
}

void normalised_forward(const Layer& layer, const NormalisedDirection* directions,
                        void* workspace) {
  const KernelTable& kernels = *layer.kernels;
  const int64_t H = layer.shape.hidden_size;
  const int gates = num_gates(layer.shape.cell);
  run_normalised(
      layer, directions, workspace,
      [&](const NormalisedDirection& dir, const UnitShare& share, void* panels) {
        kernels.pack_rows(dir.weight_hh, gates, H, H, share, panels);
      },
      [&](const NormalisedTask& task, const Part& part) {
        if (task.shape->seq_len > 0) kernels.normalised_forward(task);
        write_final_state(layer, directions[part.direction], part);
      });
}

void normalised_backward(const Layer& layer, const NormalisedDirection* directions,
                         void* workspace) {
  const KernelTable& kernels = *layer.kernels;
  const int64_t H = layer.shape.hidden_size;
  const int gates = num_gates(layer.shape.cell);
  run_normalised(
      layer, directions, workspace,
      [&](const NormalisedDirection& dir, const UnitShare& share, void* panels) {
        kernels.pack_columns(dir.weight_hh, H, gates * H, share, panels);
      },
      [&](const NormalisedTask& task, const Part&) { kernels.normalised_backward(task); });
}

}  // namespace birnn::cpu
