#include "cuda/dispatch.h"

namespace birnn::cuda {
namespace {

ClusterForwardTiling forward_cluster(const Choice& choice) {
  ClusterForwardTiling tiling;
  tiling.cluster_size = choice.blocks;
  tiling.batch_tiles = choice.batch_tiles;
  tiling.k_split = choice.k_split;
  return tiling;
}

ClusterBackwardTiling backward_cluster(const Choice& choice) {
  ClusterBackwardTiling tiling;
  tiling.cluster_size = choice.blocks;
  tiling.batch_tiles = choice.batch_tiles;
  return tiling;
}

GridForwardTiling forward_grid(const Choice& choice) {
  GridForwardTiling tiling;
  tiling.num_blocks = choice.blocks;
  tiling.batch_tiles = choice.batch_tiles;
  tiling.groups_at_once = choice.groups_at_once;
  return tiling;
}

GridBackwardTiling backward_grid(const Choice& choice) {
  GridBackwardTiling tiling;
  tiling.num_blocks = choice.blocks;
  tiling.batch_tiles = choice.batch_tiles;
  return tiling;
}

constexpr int64_t kAlignment = 256;

int64_t for_each(int64_t bytes, int num_directions) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment * num_directions;
}

// Calls run(d, its part of the workspace) for each direction until one fails.
template <class Run>
int run_each(int64_t workspace_bytes, void* workspace, int num_directions, const Run& run) {
  for (int d = 0; d < num_directions; ++d)
    if (const int error = run(d, static_cast<char*>(workspace) + for_each(workspace_bytes, 1) * d))
      return error;
  return 0;
}

}  // namespace

std::vector<Portion> portions(const Choice& choice, int64_t seq_len) {
  Portion portion;
  portion.packs = false;
  if (choice.kernel != Kernel::kStepwise) return {portion};
  constexpr int64_t kSteps = 32;
  std::vector<Portion> all;
  for (portion.first = 0; portion.first < seq_len; portion.first = portion.last) {
    portion.last = portion.first + kSteps;
    all.push_back(portion);
  }
  return all;
}

int64_t forward_workspace(const Choice& choice, const RecurrenceShape& shape, int num_directions) {
  switch (choice.kernel) {
    case Kernel::kBlock:
    case Kernel::kCluster:
      return for_each(cluster_forward_workspace(shape, forward_cluster(choice)), num_directions);
    case Kernel::kGrid:
      return grid_forward_workspace(shape, forward_grid(choice), num_directions);
    case Kernel::kStepwise:
      break;
  }
  return for_each(stepwise_forward_workspace(shape), num_directions);
}

int64_t backward_workspace(const Choice& choice, const RecurrenceShape& shape, int num_directions) {
  switch (choice.kernel) {
    case Kernel::kBlock:
    case Kernel::kCluster:
      return for_each(cluster_backward_workspace(shape, backward_cluster(choice)), num_directions);
    case Kernel::kGrid:
      return grid_backward_workspace(shape, backward_grid(choice), num_directions);
    case Kernel::kStepwise:
      break;
  }
  return for_each(stepwise_backward_workspace(shape), num_directions);
}

Residency residency(const PlanRequest& request, Pass pass, const Choice& choice) {
  const GemmCompute compute = request.ieee ? GemmCompute::kIeee : GemmCompute::kTf32;
  if (pass == Pass::kForward)
    return cluster_forward_residency(request.shape, compute, forward_cluster(choice));
  return cluster_backward_residency(request.shape, compute, backward_cluster(choice));
}

int forward_recurrence(const Choice& choice, const RecurrenceShape& shape, const int64_t* lengths,
                       const ForwardDirection* directions, const Regularisers* regularisers,
                       int num_directions, bool save_reserve, const StepGemm& gemm, void* workspace,
                       void* stream, const Portion& portion) {
  if (choice.kernel == Kernel::kGrid)
    return grid_forward(shape, lengths, directions, regularisers, num_directions, save_reserve,
                        gemm.compute, forward_grid(choice), workspace, stream, portion);
  return run_each(
      forward_workspace(choice, shape, 1), workspace, num_directions, [&](int d, void* memory) {
        const Regularisers given = regularisers ? regularisers[d] : Regularisers{};
        if (choice.kernel == Kernel::kStepwise)
          return stepwise_forward(shape, lengths, directions[d], given, save_reserve, gemm, memory,
                                  stream, portion);
        return cluster_forward(shape, lengths, directions[d], given, save_reserve, gemm.compute,
                               forward_cluster(choice), memory, stream, portion);
      });
}

int backward_recurrence(const Choice& choice, const RecurrenceShape& shape, const int64_t* lengths,
                        const BackwardDirection* directions, const Regularisers* regularisers,
                        void* const* first_dgates, int num_directions, const StepGemm& gemm,
                        void* workspace, void* stream, const Portion& portion) {
  if (choice.kernel == Kernel::kGrid)
    return grid_backward(shape, lengths, directions, regularisers, first_dgates, num_directions,
                         gemm.compute, backward_grid(choice), workspace, stream, portion);
  return run_each(
      backward_workspace(choice, shape, 1), workspace, num_directions, [&](int d, void* memory) {
        const Regularisers given = regularisers ? regularisers[d] : Regularisers{};
        if (choice.kernel == Kernel::kStepwise)
          return stepwise_backward(shape, lengths, directions[d], given, first_dgates[d], gemm,
                                   memory, stream, portion);
        return cluster_backward(shape, lengths, directions[d], given, first_dgates[d], gemm.compute,
                                backward_cluster(choice), memory, stream, portion);
      });
}

}  // namespace birnn::cuda
