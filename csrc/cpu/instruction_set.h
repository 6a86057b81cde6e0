// The kernels of one instruction set behind a table of functions. kernels.h is compiled once for
// each set (baseline.cpp, avx2.cpp, avx512.cpp); recurrence.cpp picks one at run time.
#pragma once

#include <cstdint>

#include "recurrence.h"

namespace birnn::cpu {

// The rows that all directions read.
struct LayerInput {
  const void* x;   // [N, I]
  int64_t stride;  // between rows
  int64_t size;    // I
};

// A contiguous range of sequences of one direction: what one thread runs, all steps of it.
struct ForwardTask {
  const RecurrenceShape* shape;
  const SequenceRows* sequences;
  const ForwardDirection* direction;
  const LayerInput* input;
  const void* panels;     // weight_hh, packed
  const void* panels_ih;  // weight_ih, packed
  const void* panels_hr;  // weight_hr, packed, or null
  const void* zeros;      // [max(S, H)]
  bool save_reserve;
  int64_t b_begin, b_end;
  void* scratch;
};

struct BackwardTask {
  const RecurrenceShape* shape;
  const SequenceRows* sequences;
  const BackwardDirection* direction;
  const void* panels;
  const void* panels_hr;
  const void* zeros;
  int64_t b_begin, b_end;
  int64_t step_begin, step_end;  // of the forward walk; taken last to first
  void* scratch;
};

struct KernelTable {
  int64_t (*packed_elements)(int64_t units, int gates, int64_t depth);
  // Panels of W^T, W [gates*units, depth].
  void (*pack_rows)(const void* w, int gates, int64_t units, int64_t depth, void* panels);
  // Panels of W, W [depth, units].
  void (*pack_columns)(const void* w, int64_t units, int64_t depth, void* panels);
  int64_t (*scratch_bytes)(const RecurrenceShape& shape, int64_t rows);
  void (*forward)(const ForwardTask& task);
  void (*backward)(const BackwardTask& task);
};

struct InstructionSet {
  const char* name;
  KernelTable float32, float64;

  const KernelTable& table(Element element) const {
    return element == Element::kFloat64 ? float64 : float32;
  }
};

const InstructionSet& baseline();
#if defined(__x86_64__)
const InstructionSet& avx2();
const InstructionSet& avx512();
#endif

}  // namespace birnn::cpu
