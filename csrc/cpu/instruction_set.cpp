// Which instruction set runs: asked of the processor once.
#include "cpu/instruction_set.h"

#include <c10/util/Exception.h>

#include <array>
#include <cstdlib>
#include <string>
#include <vector>

namespace birnn::cpu {
namespace {

std::vector<const InstructionSet*> known_sets() {
  return {&baseline(),
#if defined(__x86_64__)
          &avx2(),        &avx512(), &avx512_vnni(),
          &avx512_bf16(), &amx()
#endif
  };
}

// Intel's processors with AMX issue one VDPBF16PS in two cycles (0.69 ns measured, an FMA 0.17).
// Where a system withholds the tiles, float32 is faster: 1.7 times, LSTM, H = 512, B = 32.
bool is_worthwhile([[maybe_unused]] const InstructionSet& set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return &set != &avx512_bf16() || !__builtin_cpu_is("intel");
#else
  return true;
#endif
}

// The sets that may run, the best last.
const std::vector<const InstructionSet*>& allowed_sets() {
  static const std::vector<const InstructionSet*> allowed = [] {
    const char* limit = std::getenv("BIRNN_CPU_ISA");
    std::vector<const InstructionSet*> sets;
    std::string available;
    for (const InstructionSet* set : known_sets())
      if (set->is_available()) {
        if (is_worthwhile(*set) || (limit && set->name == std::string(limit))) sets.push_back(set);
        available += (available.empty() ? "" : ", ") + std::string(set->name);
      }
    if (!limit || !*limit) return sets;
    while (!sets.empty() && sets.back()->name != std::string(limit)) sets.pop_back();
    TORCH_CHECK_VALUE(!sets.empty(), "BIRNN_CPU_ISA is \"", limit,
                      "\", which this machine does not have; it has ", available);
    return sets;
  }();
  return allowed;
}

}  // namespace

const ChosenKernels& kernels_for(WeightFormat format) {
  static const std::array<ChosenKernels, kNumWeightFormats> chosen = [] {
    std::array<ChosenKernels, kNumWeightFormats> best;
    best.fill({"none, computed in float32", nullptr});
    for (const InstructionSet* set : allowed_sets())
      for (int f = 0; f < kNumWeightFormats; ++f)
        if (set->tables[f]) best[f] = {set->name, set->tables[f]};
    return best;
  }();
  return chosen[static_cast<int>(format)];
}

// On AMD's processors MKL, the BLAS of torch's builds for x86, keeps to vectors of 32 bytes. That
// is half of Zen 5's rate; on Zen 4 the own kernel is 1.01 to 1.12 times as fast
// (matrix_product.h), and a training step as fast. On Intel's MKL is at the processor's own rate.
const MatrixProductKernel* product_kernel() {
  static const MatrixProductKernel* const chosen = []() -> const MatrixProductKernel* {
    const char* wanted = std::getenv("BIRNN_CPU_PRODUCTS");
    const std::string products = wanted ? wanted : "";
    const MatrixProductKernel* best = nullptr;
    for (const InstructionSet* set : allowed_sets())
      if (set->product) best = set->product;
    TORCH_CHECK_VALUE(products.empty() || products == "blas" || (products == "own" && best),
                      "BIRNN_CPU_PRODUCTS is \"", products, "\"; \"blas\"",
                      best ? " and \"own\" can" : " alone can", " be had here");
    if (products == "blas") return nullptr;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (products == "own" || __builtin_cpu_is("amd")) return best;
#endif
    return nullptr;
  }();
  return chosen;
}

const char* instruction_set_name() { return allowed_sets().back()->name; }

}  // namespace birnn::cpu
