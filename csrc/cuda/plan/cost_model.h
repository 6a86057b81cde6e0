// What a step of a recurrence costs on a GPU, by counting: the estimate by which the plan chooses
// where nothing has been measured. Plain host code.
//
// A step of a persistent kernel is its products (on as many parts of a multiprocessor as it has
// warps, and as long as the longest chain of them) and what they read from shared memory, against
// the exchange of the state between the blocks, whichever takes longer and a third of the other,
// which overlaps in part; then the sums of a K split, the cell, and the latency of the exchange.
// That is the way from a wait to the peers' next; what a warp of a cluster issues in a step is
// counted as well (Work), and the step is as long as the longer of the two. A step of stepwise is a
// product that streams W_hh from the L2 cache or from memory, and two launches of a graph, or the
// host's time to enqueue them. The constants are published figures and estimates of the H100 (see
// each); the ratio of two estimates is worth more than either. Figures measured on a chip belong
// into `Constants`.
#pragma once

#include <cstdint>

#include "recurrence.h"

namespace birnn::cuda::cost {

enum class Pass : int { kForward, kBackward };

// fp16 and bf16, tf32, fp32-grade products of tf32 (three each).
enum class Format : int { kSixteenBit, kTf32, kIeee };

enum class Exchange : int { kNone, kCluster, kGrid };

struct Constants {
  double cycles_per_us = 1900;
  double flop_per_cycle = 2650;         // mma.sync m16n8k16 of an SM, few columns
  double flop_per_cycle_wide = 3800;    // from 64 columns on
  double mma_latency = 25;              // cycles: of m16n8k16, until the next can add to its sum
  double fma_per_cycle = 75;            // of an SM: 128, less what else products by them take
  double shared_bytes_per_cycle = 128;  // of an SM
  double special_per_cycle = 16;        // tanh.approx, ex2.approx of an SM
  double cluster_latency = 240;         // cycles: st.async until the mbarrier is seen
  double cluster_bytes_per_cycle = 18;  // into an SM, from its cluster
  double grid_latency = 850;            // cycles: a store until a poll through L2 sees it
  double grid_bytes_per_cycle = 32;     // into an SM, from L2
  double block_latency = 70;            // cycles: barriers of one block
  double serial = 1.0;                  // cycles of a warp's step over those counted (Work)
  double slack = 1.2;                   // what counting leaves out where no Work is counted
  double memory_bytes_per_us = 3.0e6;   // HBM
  double l2_bytes_per_us = 5.0e6;       // weights that stay in L2
  double l2_bytes = 40e6;
  double product_us = 1.4;  // a small library product in a graph
  double kernel_us = 1.3;   // an elementwise kernel in a graph
  // Of one host thread, in a call that is not a graph's. A thread enqueues one after the other
  // what the device runs side by side.
  double host_product_us = 4.5;  // to enqueue a library product
  double host_kernel_us = 2.25;  // to enqueue a kernel
  double library_flop_per_us[3] = {600e6, 300e6,
                                   50e6};  // by Format; ieee: fp32 without tensor cores
};

// Those that a measurement of kernels can tell, by name: what `python -m benchmarks fit` finds. Of
// the host's `python -m benchmarks micro` tells.
struct NamedConstant {
  const char* name;
  double Constants::* value;
};
inline constexpr NamedConstant kNamedConstants[] = {
    {"flop_per_cycle", &Constants::flop_per_cycle},
    {"flop_per_cycle_wide", &Constants::flop_per_cycle_wide},
    {"mma_latency", &Constants::mma_latency},
    {"fma_per_cycle", &Constants::fma_per_cycle},
    {"shared_bytes_per_cycle", &Constants::shared_bytes_per_cycle},
    {"special_per_cycle", &Constants::special_per_cycle},
    {"cluster_latency", &Constants::cluster_latency},
    {"cluster_bytes_per_cycle", &Constants::cluster_bytes_per_cycle},
    {"grid_latency", &Constants::grid_latency},
    {"grid_bytes_per_cycle", &Constants::grid_bytes_per_cycle},
    {"block_latency", &Constants::block_latency},
    {"serial", &Constants::serial},
    {"slack", &Constants::slack},
    {"memory_bytes_per_us", &Constants::memory_bytes_per_us},
    {"l2_bytes_per_us", &Constants::l2_bytes_per_us},
    {"product_us", &Constants::product_us},
    {"kernel_us", &Constants::kernel_us},
};

// What the busiest warp of a cluster kernel does in a step.
struct Work {
  int64_t chunks = 0;    // of columns that it multiplies, backward of each batch tile; 0: no Work
  int64_t products = 0;  // chunks x row tiles x batch tiles
  int64_t from_shared = 0;  // forward: chunks x row tiles whose weights are in shared memory
  int64_t batch_tiles = 1;  // of 8 sequences
  int64_t own_tiles = 1;    // forward: of them those whose cell it applies
  int64_t parts = 1;        // forward: warps that share the columns of W_hh
  int64_t pairs = 1;        // backward: of units, of a thread
  int64_t sources = 1;      // backward: parts of dh that a pair sums up
  int64_t writes = 0;       // backward: pairs of dgates that who owns them writes to memory
};

// A group of blocks that share a direction's hidden units, and the sequences they hold.
struct Group {
  int blocks = 1;
  int sequences = 8;  // a multiple of 8
  int k_split = 1;
  int64_t warps = 8;  // of a block, that multiply
  int64_t chain = 0;  // mma of a warp that follow each other, the others beside them
  int sharing = 1;    // groups whose blocks are on the same multiprocessors
  int by_fma = 0;     // sequences multiplied without the matrix units; 0: they all are with them
  Exchange exchange = Exchange::kNone;
  double exchange_bytes = 0;  // into a block, a step; 0: all of h, or of the parts of dh
  int hops = 1;               // of the exchange, one after the other
  Work work;
};

// Cycles of a warp's step in training (in inference, a GRU's or LSTM's takes 145 to 265 less for
// each own tile: the plan has one forward pass for both), a wait for others left out: lines through
// what `python -m benchmarks steps --division` reads in the machine code of sm_90a.
double serial_cycles(Cell cell, Format format, Pass pass, const Work& work);

// Microseconds of a step of one group.
double persistent_step(Cell cell, int64_t hidden_size, Format format, Pass pass, const Group& group,
                       const Constants& constants = {});

// Microseconds of a step of all directions by library products: of the device in a CUDA graph, else
// of the device or the host, whichever takes longer.
double stepwise_step(const RecurrenceShape& shape, Format format, int num_directions, bool captured,
                     const Constants& constants = {});

// Microseconds that the step's own operands and results take to and from memory, all directions.
double memory_step(const RecurrenceShape& shape, Format format, Pass pass, int num_directions,
                   const Constants& constants = {});

}  // namespace birnn::cuda::cost
