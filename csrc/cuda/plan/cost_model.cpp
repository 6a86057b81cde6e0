#include "cuda/plan/cost_model.h"

#include <algorithm>

namespace birnn::cuda::cost {
namespace {

int64_t element_bytes(Format format) { return format == Format::kSixteenBit ? 2 : 4; }

// Cycles of an mma in units of one of 16 bits: tf32 has half the depth, ieee takes three of tf32.
double products_each(Format format) {
  return format == Format::kSixteenBit ? 1 : format == Format::kTf32 ? 2 : 6;
}

// Transcendental functions of a unit, and the cycles from its first operand to its result; of fp32,
// whose functions are sequences of instructions, those that a thread takes longer for each unit of
// a sequence that is its own.
struct CellCost {
  double functions, latency, precise;
};
CellCost cell_cost(Cell cell) {
  switch (cell) {
    case Cell::kLstm:
      return {5, 140, 345};
    case Cell::kGru:
      return {3, 130, 210};
    default:
      return {1, 60, 15};
  }
}
// How many are a thread's own: of a cluster kernel forward two sequences of 8 or 16 units to a
// group of 8 lanes, otherwise as many as there are for 256 threads. Backward needs one function.
double units_of_thread(Cell cell, Pass pass, Exchange exchange, int64_t units) {
  if (pass == Pass::kBackward) return 0;
  if (exchange != Exchange::kGrid) return cell == Cell::kLstm ? 2 : 4;
  return static_cast<double>(std::max<int64_t>(units / 256, 1));
}

// Lines through the cycles of a warp's step, by Format. Of 66 divisions forward and 77 backward, of
// H = 64 to 512, they are 3 % off in the mean and 13 % at most.
struct ForwardCycles {
  double base[3];  // by cell: vanilla RNN, GRU, LSTM
  double chunk, product, shared;
  double tiles, own_tile[3];  // where a block has several batch tiles; of each further own one
  double split, part;         // where K is split; of each part to add up
};
struct BackwardCycles {
  double base, chunk, product, tile, pair, source, write;
};
constexpr ForwardCycles kForwardCycles[] = {
    {{680, 1095, 890}, 10, 10, 28, 300, {730, 890, 910}, 145, 48},
    {{730, 2005, 1635}, 17, 14, 31, 60, {1240, 1475, 1475}, 210, 46},
    {{535, 2035, 1635}, 185, 20, 30, 900, {1285, 1550, 1520}, 195, 44}};
constexpr BackwardCycles kBackwardCycles[] = {
    {670, 0, 22, 215, 190, 14, 60}, {625, 30, 14, 143, 290, 14, 6}, {480, 50, 199, 0, 220, 19, 20}};

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

double serial_cycles(Cell cell, Format format, Pass pass, const Work& work) {
  const auto chunks = static_cast<double>(work.chunks);
  const auto products = static_cast<double>(work.products);
  const auto tiles = static_cast<double>(work.batch_tiles);
  const auto own_tiles = static_cast<double>(work.own_tiles);
  if (pass == Pass::kBackward) {
    const BackwardCycles& c = kBackwardCycles[static_cast<int>(format)];
    return c.base + c.chunk * chunks * tiles + c.product * products + c.tile * (tiles - 1) +
           c.pair * static_cast<double>(work.pairs - 1) +
           c.source * static_cast<double>(work.pairs * work.sources) +
           c.write * static_cast<double>(work.writes);
  }
  const ForwardCycles& c = kForwardCycles[static_cast<int>(format)];
  const int column = cell == Cell::kLstm ? 2 : cell == Cell::kGru ? 1 : 0;
  return c.base[column] + c.chunk * chunks + c.product * products +
         c.shared * static_cast<double>(work.from_shared) + (work.batch_tiles > 1 ? c.tiles : 0) +
         c.own_tile[column] * (own_tiles - 1) +
         (work.parts > 1 ? c.split + c.part * static_cast<double>(work.parts) * own_tiles : 0);
}

double persistent_step(Cell cell, int64_t H, Format format, Pass pass, const Group& group,
                       const Constants& c) {
  const int64_t R = group.blocks, N = group.sequences, G = num_gates(cell);
  const int64_t U = (H + R - 1) / R, bytes = element_bytes(format);
  const double precise = format == Format::kSixteenBit ? 1 : 2;  // longer functions
  const bool backward = pass == Pass::kBackward;
  // Forward: G*U rows of W_hh times h, all of H. Backward: H rows of its transpose times G*U.
  const int64_t rows = round_up(backward ? H : G * U, 16);
  const int64_t depth = round_up(backward ? G * U : H, 16);
  // A multiprocessor has four parts that multiply; a warp uses one.
  constexpr int64_t kParts = 4;
  const int64_t sharing = group.sharing;
  const double in_use = 1.0 * std::min(sharing * group.warps, kParts) / (kParts * sharing);
  const double rate = N < 64 ? c.flop_per_cycle : c.flop_per_cycle_wide;
  const double products = group.by_fma > 0 ? 1.0 * rows * depth * group.by_fma / c.fma_per_cycle
                                           : 2.0 * rows * N * depth * products_each(format) / rate;

  constexpr int64_t kWarps = 8, kRegisterBytes = 128 * 1024;
  const int64_t weights = rows * depth * bytes;
  const double readers = std::clamp<double>(rows / 32.0, 1, kWarps) / group.k_split;
  const double shared = (N * depth * bytes * std::max(readers, 1.0) +
                         std::max<int64_t>(0, weights - kRegisterBytes)) /
                        c.shared_bytes_per_cycle;
  const double chain = static_cast<double>(group.chain) * c.mma_latency;
  const double core = std::max({products / in_use, chain, sharing * shared}) + 100;
  const double reduction =
      group.k_split == 1 ? 0 : 110 + sharing * rows * N * 8.0 / c.shared_bytes_per_cycle;

  const CellCost own = cell_cost(cell);
  double pointwise = sharing * U * N * own.functions * precise / c.special_per_cycle + own.latency;
  if (format != Format::kSixteenBit)
    pointwise += 60 + own.precise * units_of_thread(cell, pass, group.exchange, U * N);
  if (backward && R > 1)  // the sum of the parts of dh
    pointwise += sharing * U * N * R * 4.0 / c.shared_bytes_per_cycle;

  // What comes into a block: the others' h, or their parts of dh in fp32.
  double arriving = 1.0 * sharing * N * H * (backward ? 4 : bytes) * (R - 1) / R;
  if (group.exchange == Exchange::kGrid) arriving *= 2;  // half of what is polled are epochs
  if (group.exchange_bytes > 0) arriving = group.exchange_bytes;
  double latency = c.block_latency, volume = 0;
  if (group.exchange == Exchange::kCluster) {
    latency = c.cluster_latency;
    volume = arriving / c.cluster_bytes_per_cycle;
  } else if (group.exchange == Exchange::kGrid) {
    latency = c.grid_latency;
    volume = arriving / c.grid_bytes_per_cycle;
  }
  const double cycles = std::max(core, volume) + 0.35 * std::min(core, volume) + reduction +
                        pointwise + group.hops * latency + 40;
  if (group.work.chunks == 0) return cycles * c.slack / c.cycles_per_us;
  constexpr double kIssue = 0.4;  // of its cycles, those in which a warp issues: counted
  // Warps of a part of a multiprocessor take turns to issue. Until they fill it, one keeps another
  // from a quarter of what it issues (a guess: all begin a step at the same time).
  const double others = std::max(static_cast<double>(sharing * group.warps) / kParts - 1, 0.0);
  const double turns = std::max(1 + kIssue / 4 * others, kIssue * (1 + others));
  const double serial = c.serial * serial_cycles(cell, format, pass, group.work) * turns;
  return std::max(cycles, serial) / c.cycles_per_us;
}

double stepwise_step(const RecurrenceShape& s, Format format, int num_directions, bool captured,
                     const Constants& c) {
  const int64_t rows = num_gates(s.cell) * s.hidden_size;
  const double numbers =
      1.0 * num_directions * (rows * s.state_size() + s.proj_size * s.hidden_size);
  const double weights = numbers * element_bytes(format);
  const double rate = c.library_flop_per_us[static_cast<int>(format)];
  // A library product has at least 64 columns.
  const double product =
      std::max(2.0 * numbers * std::max<int64_t>(s.batch_size, 64) / rate,
               weights / (weights < c.l2_bytes ? c.l2_bytes_per_us : c.memory_bytes_per_us));
  const int pairs = s.proj_size ? 2 : 1;  // of a product and a kernel
  const double device = product + (c.product_us + c.kernel_us) * pairs;
  const double host = num_directions * (c.host_product_us + c.host_kernel_us) * pairs;
  return captured ? device : std::max(device, host);
}

double memory_step(const RecurrenceShape& s, Format format, Pass pass, int num_directions,
                   const Constants& c) {
  // Forward: gates in, gates out, h, and c. Backward: the reserve, dy, dgates.
  const int64_t G = num_gates(s.cell);
  const int64_t columns = pass == Pass::kForward
                              ? 2 * G + (s.cell == Cell::kLstm ? 2 : 1)
                              : reserve_blocks(s.cell) + dgates_blocks(s.cell) + 2;
  return 1.0 * num_directions * s.batch_size * s.hidden_size * columns * element_bytes(format) /
         c.memory_bytes_per_us;
}

}  // namespace birnn::cuda::cost
