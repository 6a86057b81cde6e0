// The kernels of one instruction set behind tables of functions. kernels.h is compiled once for
// each set (baseline.cpp, avx2.cpp, ...); instruction_set.cpp picks tables at run time.
#pragma once

#include <cstdint>

#include "cpu/step_barrier.h"
#include "gemm.h"
#include "recurrence.h"

namespace birnn::cpu {

// 16-bit numbers as they lie in memory.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The rows that all directions read.
struct LayerInput {
  const void* x;   // [N, I]
  int64_t stride;  // between rows
  int64_t size;    // I
};

// Scales of int8 weights: a weight is its int8 times its row's scale.
struct WeightScales {
  const float* ih = nullptr;  // [G*H]
  const float* hh = nullptr;  // [G*H]
  const float* hr = nullptr;  // [P]
};

// A matrix of weights packed into panels, or W^T read from W as it lies.
struct Weights {
  const void* data = nullptr;
  bool in_place = false;
};

// Shares [begin, end) of `count` that the panels of a matrix, and with them the units of a
// direction, are divided into.
struct UnitShare {
  int64_t begin = 0, end = 1, count = 1;
};

// Sequences [b_begin, b_end) of one direction, and all or a share of its units: what one thread
// runs, all steps of it. Threads that share units meet at the barrier after each step.
struct ForwardTask {
  const RecurrenceShape* shape;
  const SequenceRows* sequences;
  const ForwardDirection* direction;
  const Regularisers* regularisers;  // null: none
  const LayerInput* input;
  Weights weight_hh, weight_ih, weight_hr;
  WeightScales scales;
  const void* zeros;  // [max(S, H)]
  bool save_reserve;
  int64_t b_begin, b_end;
  UnitShare units;
  StepBarrier* barrier;  // null where nobody shares the units
  void* scratch;
};

struct BackwardTask {
  const RecurrenceShape* shape;
  const SequenceRows* sequences;
  const BackwardDirection* direction;
  const Regularisers* regularisers;  // null: none
  const void* panels;
  const void* panels_hr;
  const void* zeros;
  int64_t b_begin, b_end;
  UnitShare units;
  StepBarrier* barrier;
  int64_t step_begin, step_end;  // of the forward walk; taken last to first
  void* scratch;
};

// All steps of sequences [b_begin, b_end) of a layer-normalised direction, forward or backward.
struct NormalisedTask {
  const RecurrenceShape* shape;
  const SequenceRows* sequences;
  const NormalisedDirection* direction;
  const void* panels;
  const void* zeros;  // [H]
  int64_t b_begin, b_end;
  void* scratch;
};

struct KernelTable {
  // What x, hx, output, dy and dgates are made of. Biases, regularisers, reserve, cx, cy, dhx and
  // dcx are float, or double where this is.
  Element rows;
  // Whether a product of few rows can read W where it lies, and units can be shared out.
  bool reads_in_place, shares_units;
  int64_t (*packed_bytes)(int64_t units, int gates, int64_t depth);
  // The first unit of share `index` of `count`.
  int64_t (*first_unit)(int64_t units, int gates, int64_t index, int64_t count);
  // A share of the panels of W^T, W [gates*units, depth].
  void (*pack_rows)(const void* w, int gates, int64_t units, int64_t depth, const UnitShare& share,
                    void* panels);
  // A share of the panels of W, W [depth, units].
  void (*pack_columns)(const void* w, int64_t units, int64_t depth, const UnitShare& share,
                       void* panels);
  int64_t (*scratch_bytes)(const RecurrenceShape& shape, int64_t input_size, int64_t rows);
  void (*forward)(const ForwardTask& task);
  void (*backward)(const BackwardTask& task);  // null: inference only
  // Of plain numbers; null of others.
  int64_t (*normalised_scratch_bytes)(const RecurrenceShape& shape, int64_t rows) = nullptr;
  void (*normalised_forward)(const NormalisedTask& task) = nullptr;
  void (*normalised_backward)(const NormalisedTask& task) = nullptr;
};

// C (+)= op(A) B of large float32 matrices: B as it lies, beta 0 or 1, k of at least 1
// (matrix_product.h).
struct MatrixProductKernel {
  int64_t tile_rows;  // of C: what threads take should be a multiple of it
  int64_t (*scratch_bytes)(const GemmShape& shape);
  void (*run)(const GemmShape& shape, const void* a, const void* b, void* c, void* scratch);
};

// The numbers that weights are given in.
enum class WeightFormat : int { kFloat64, kFloat32, kFloat16, kBFloat16, kInt8 };
constexpr int kNumWeightFormats = 5;

struct InstructionSet {
  const char* name;
  bool (*is_available)();                        // to this process, on this processor
  const KernelTable* tables[kNumWeightFormats];  // by WeightFormat; null: none of its own
  const MatrixProductKernel* product = nullptr;
};

// In the order of what they can do.
const InstructionSet& baseline();
#if defined(__x86_64__)
const InstructionSet& avx2();
const InstructionSet& avx512();
const InstructionSet& avx512_vnni();
const InstructionSet& avx512_bf16();
const InstructionSet& amx();
#endif

struct ChosenKernels {
  const char* instruction_set;
  const KernelTable* table;
};

// The best kernels for weights of this format among the sets that processor and operating system
// have, none of them above the one that the environment variable BIRNN_CPU_ISA names. Raises an
// error that says what there is if it names one that is not.
const ChosenKernels& kernels_for(WeightFormat format);
// The kernel of large float32 products where it is faster than the BLAS behind torch; null: it is
// not, or the environment variable BIRNN_CPU_PRODUCTS is "blas" ("own": wherever there is one).
const MatrixProductKernel* product_kernel();
// The name of the best set itself.
const char* instruction_set_name();

}  // namespace birnn::cpu
