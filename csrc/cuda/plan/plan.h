// Which kernel a problem runs on a GPU, with what launches and memory, and why. Plain host code
// without a CUDA header: it answers for any device on any machine, and is built everywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cuda/plan/request.h"

namespace birnn::cuda {

// The kernel of one pass. The kernel that is asked for must take the shape: else `error` says what
// does.
struct ChoiceResult {
  Choice choice;
  std::string error;
};
ChoiceResult choose(const PlanRequest& request, Pass pass);

// Every way to run a pass on the device, with its estimate by these constants, and which of them
// the plan takes then.
struct Divisions {
  std::string error;  // empty, or why nothing runs
  std::vector<Choice> choices;
  int chosen = -1;
};
Divisions divisions(const PlanRequest& request, Pass pass, const cost::Constants& constants = {});

// Into how many parts the steps of a backward pass are divided, for the weight gradients of one to
// overlap with the recurrence of the next: one, unless others are forced. No measurement has shown
// that more are worth their launches.
int backward_parts(const PlanRequest& request, const Choice& choice);

// What every call of the process must do; for tests and benchmarks.
struct Forced {
  std::string kernel;                       // by name; empty: the best
  int backward_parts = 0;                   // 0: as the plan says
  std::optional<Choice> forward, backward;  // as in PlanRequest
};
Forced forced();
std::string force(const Forced& forced);  // an error, or empty

struct PassPlan {
  Choice choice;
  int parts = 1;  // backward_parts, 1 forward
  std::string reason;
  int64_t ctas = 0;             // blocks of a launch, of one direction
  int64_t threads = 0;          // of a block
  int64_t launches = 0;         // of one direction: kernels and products
  int64_t workspace_bytes = 0;  // all directions
};

struct Plan {
  std::string error;           // empty, or why nothing runs, and what would
  PassPlan forward, backward;  // backward: in training only
  int64_t reserve_bytes = 0;   // all directions; what backward needs, 0 without training
};

Plan plan(const PlanRequest& request);

}  // namespace birnn::cuda
