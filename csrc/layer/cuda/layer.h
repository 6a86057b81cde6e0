// What the forward and the backward pass of a layer on a GPU share. Each direction has a stream on
// which everything it needs runs in turn:
//
//   forward    packing of its weight_hh, projection of its input (GEMM), recurrence
//   backward   packing of its weight_hh, recurrence, gradients of its own weights (GEMMs)
//
// and nothing of one waits for anything of the other, unless one launch runs the recurrence of
// both: then their streams join before it. What needs both directions, dx, follows after they have
// joined. The projections are a GEMM for each direction rather than one for both: so each is
// written where its recurrence updates it in place (output, reserve or a buffer), weight_ih is read
// where it lies, and neither direction waits for the other's.
//
// Nothing here waits for the device: lengths stay there, and where they are on the host they are
// copied from pinned memory. All tensors that outlive a stream's section are allocated on the
// caller's stream before the fork.
#pragma once

#include <optional>

#include "cuda/dispatch.h"
#include "cuda/streams.h"
#include "layer/cuda/rows.h"
#include "layer/cuda/runtime.h"
#include "layer/layer.h"

namespace birnn::gpu {

// Raises for the error code of a launch or a product. An earlier kernel's failure may be what it
// reports: a device tells of those late.
void check(int code, const char* what, const Problem& p);

// Which kernel a pass of this problem runs on its device. Raises where none does.
cuda::PlanRequest request_of(const Problem& p, bool training);
cuda::Choice choose_kernel(const cuda::PlanRequest& request, cuda::Pass pass);

// ---- operands

at::ScalarType carried_type(const Tensor& t);  // what is computed in: fp32 for 16 bits
std::vector<Tensor> contiguous_weights(const Problem& p);
Tensor contiguous(const OptionalTensor& t);

// What the recurrence reads of a call's regularisers, and the pointers to it of each direction.
struct RegulariserOperands {
  Tensor recurrent_mask, zoneout_h, zoneout_c;  // [D, B, S], [N or 1, D*S], [N or 1, D*H]
  std::vector<Regularisers> directions;

  RegulariserOperands(const Problem& p, const Rows& rows);
  const Regularisers* at(int d) const { return directions.empty() ? nullptr : &directions[d]; }
};

// Memory of one direction, or of all where they run in one launch.
struct Workspace {
  Tensor bytes;
  int64_t of_direction = 0;
  void* at(int d) const { return static_cast<char*>(bytes.data_ptr()) + d * of_direction; }
};
Workspace make_workspace(const Problem& p, int64_t bytes, const cuda::Choice& choice);

// ---- streams

inline GemmCompute compute_of(const Problem& p) {
  return p.ieee ? GemmCompute::kIeee : GemmCompute::kTf32;
}
inline cuda::StepGemm step_gemm(const Problem& p, const Queue& queue) {
  return {gemm, queue.blas, compute_of(p)};
}
inline void multiply(const Problem& p, const Queue& queue, const GemmShape& product, const void* a,
                     const void* b, void* c) {
  check(gemm(queue.blas, queue.stream, product, a, b, c, p.shape.element, compute_of(p)),
        "a matrix product", p);
}

// The streams of a call's directions: the first one's is the caller's, the second has one beside
// it. What the call's tensors hold must outlive this: make it last.
class Directions {
 public:
  explicit Directions(const Problem& p) : p_(p), library_(p.input.device(), p.num_directions) {
    if (p.num_directions > 1) second_.emplace(p.input.device(), cuda::Role::kSecondDirection);
  }

  // What the second direction's stream is given from now on follows what the caller's holds.
  void fork() {
    if (second_) check(second_->fork(), "the fork of the directions' streams", p_);
  }
  // Calls run(d) for each direction, its stream the current one.
  template <class Run>
  void each(const Run& run) {
    run(0);
    if (!second_) return;
    second_->enter();
    run(1);
    second_->leave();
  }
  // Of direction d within each(), with the library.
  Queue queue(int d) const { return library_.queue(d); }
  // What the caller's stream is given from now on follows what the second one's holds.
  void join() {
    if (second_) check(second_->join(), "the join of the directions' streams", p_);
  }

 private:
  const Problem& p_;
  Library library_;
  std::optional<SideStream> second_;
};

}  // namespace birnn::gpu
