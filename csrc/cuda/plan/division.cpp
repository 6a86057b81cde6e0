#include "cuda/plan/division.h"

#include <algorithm>

#include "cuda/cluster/backward_sizes.h"
#include "cuda/cluster/forward_sizes.h"
#include "cuda/grid/backward_sizes.h"
#include "cuda/grid/forward_sizes.h"
#include "cuda/plan/residency.h"

namespace birnn::cuda {

cost::Format format_of(const PlanRequest& request) {
  if (element_bytes(request.shape.element) == 2) return cost::Format::kSixteenBit;
  return request.ieee ? cost::Format::kIeee : cost::Format::kTf32;
}

namespace {

constexpr int kMaxBatchTiles = 16;  // the most that a division tries, powers of 2
constexpr int kMaxKSplit = 8;

// Of the two k-steps of a chunk, how many add to the same sum (multiply_warp). fp32-grade products
// sum up each chunk by itself.
int64_t chained_of_chunk(const PlanRequest& request, int tiles) {
  if (format_of(request) == cost::Format::kIeee) return 0;
  return tiles < 4 ? 1 : 2;
}

Fit fit_cluster(const PlanRequest& request, Pass pass, const Choice& choice) {
  Fit fit;
  const auto take = [&](const auto& sizes, int64_t threads) {
    fit.fits = sizes.instance >= 0;
    fit.instance = sizes.instance;
    fit.groups = sizes.num_clusters;
    fit.ctas = sizes.num_clusters * choice.blocks;
    fit.threads = threads;
    fit.shared_bytes = sizes.shared_bytes;
    fit.launches = 2;  // the packing of the weights, and the recurrence
    fit.workspace_bytes = request.num_directions * sizes.workspace_bytes;
  };
  if (pass == Pass::kForward) {
    const all_gather::Sizes sizes(request.shape,
                                  {choice.blocks, choice.batch_tiles, choice.k_split});
    take(sizes, sizes.threads);
    const int tiles = all_gather::row_tiles(request.shape.cell) * choice.batch_tiles;
    fit.chain = sizes.warp_chunks * chained_of_chunk(request, tiles);
    cost::Work& work = fit.work;
    work.chunks = sizes.warp_chunks;
    work.products = int64_t{tiles} * sizes.warp_chunks;
    work.from_shared = int64_t{all_gather::row_tiles(request.shape.cell)} * sizes.shared_chunks;
    work.batch_tiles = choice.batch_tiles;
    work.own_tiles = (choice.batch_tiles + choice.k_split - 1) / choice.k_split;
    work.parts = choice.k_split;
  } else {
    const reduce_scatter::Sizes sizes(request.shape, {choice.blocks, choice.batch_tiles});
    take(sizes, reduce_scatter::kThreads);
    if (sizes.num_clusters > 1) ++fit.launches;  // their sums of the biases
    if (fit.fits) {                              // one batch tile after the other
      const int tiles = reduce_scatter::kInstances[sizes.instance].row_tiles;
      fit.chain = choice.batch_tiles * sizes.num_chunks * chained_of_chunk(request, tiles);
      const auto divided = [](int64_t value, int64_t by) { return (value + by - 1) / by; };
      cost::Work& work = fit.work;
      work.chunks = sizes.num_chunks;
      work.products =
          divided(sizes.num_tiles, reduce_scatter::kWarps) * sizes.num_chunks * choice.batch_tiles;
      work.batch_tiles = choice.batch_tiles;
      work.pairs = divided(int64_t{sizes.units} / 2 * sizes.tile_batch, reduce_scatter::kThreads);
      work.sources = choice.blocks;
      // Where half of the threads own no pair, they write.
      const bool others_write = reduce_scatter::kInstances[sizes.instance].pairs == 1 &&
                                sizes.units * sizes.tile_batch <= reduce_scatter::kThreads;
      work.writes = others_write ? 0 : work.pairs * dgates_blocks(request.shape.cell);
    }
  }
  return fit;
}

// What a block takes in from L2 in a step: dgates of its column team's units as words with epochs,
// then the parts of dh from each column team.
int64_t grid_backward_bytes(const gather_reduce::Sizes& sizes) {
  constexpr int64_t kWordBytes = 8, kTileSequences = 8;
  const int64_t Q = sizes.column_teams;
  const int64_t parts = Q > 1 ? 2 * Q * sizes.units * kWordBytes * kTileSequences : 0;
  return sizes.tile_batch / kTileSequences *
         (sizes.num_chunks * persistent::kFragmentBytes + parts);
}

Fit fit_grid(const PlanRequest& request, Pass pass, const Choice& choice) {
  Fit fit;
  const int directions = request.num_directions;
  fit.launches = 2;
  if (pass == Pass::kForward) {
    const grid_gather::Sizes sizes(
        request.shape, {choice.blocks, choice.batch_tiles, choice.groups_at_once}, directions);
    fit.fits = sizes.instance >= 0;
    fit.groups = sizes.num_groups;
    fit.ctas = sizes.num_blocks / directions;
    fit.threads = sizes.threads;
    fit.shared_bytes = sizes.shared_bytes;
    fit.workspace_bytes = sizes.workspace_bytes;
  } else {
    const gather_reduce::Sizes sizes(request.shape, {choice.blocks, choice.batch_tiles},
                                     directions);
    const int64_t sequences = 8 * choice.batch_tiles;
    fit.fits = sizes.instance >= 0;
    fit.groups = (request.shape.batch_size + sequences - 1) / sequences;
    fit.ctas = sizes.num_blocks / directions;
    fit.exchange_bytes = static_cast<double>(grid_backward_bytes(sizes));
    fit.hops = sizes.column_teams > 1 ? 2 : 1;
    fit.threads = sizes.num_threads;
    fit.shared_bytes = sizes.shared_bytes;
    fit.workspace_bytes = sizes.workspace_bytes;
  }
  return fit;
}

}  // namespace

Fit fit_of(const PlanRequest& request, Pass pass, const Choice& choice) {
  Fit fit = choice.kernel == Kernel::kGrid ? fit_grid(request, pass, choice)
                                           : fit_cluster(request, pass, choice);
  fit.fits = fit.fits && fit.shared_bytes <= request.device.shared_bytes_per_block;
  // A grid waits for all its blocks, one to an SM.
  if (choice.kernel == Kernel::kGrid)
    fit.fits = fit.fits && fit.ctas * request.num_directions <= request.device.num_multiprocessors;
  return fit;
}

namespace {

// Of a block or a cluster whose resident_clusters is 0 the least.
double estimate(const PlanRequest& request, Pass pass, const Choice& choice, const Fit& fit,
                const cost::Constants& constants) {
  const cost::Format format = format_of(request);
  cost::Group group;
  group.blocks = choice.blocks;
  group.sequences = 8 * choice.batch_tiles;
  group.k_split = choice.k_split;
  group.warps = fit.threads / 32;
  group.chain = fit.chain;
  if (pass == Pass::kForward && format == cost::Format::kIeee && choice.kernel != Kernel::kGrid &&
      choice.batch_tiles <= all_gather::kFewBatchTiles &&
      request.shape.batch_size <= persistent::kFewColumns)
    group.by_fma = static_cast<int>(request.shape.batch_size);
  group.exchange = choice.kernel == Kernel::kGrid ? cost::Exchange::kGrid
                   : choice.blocks > 1            ? cost::Exchange::kCluster
                                                  : cost::Exchange::kNone;
  group.exchange_bytes = fit.exchange_bytes;
  group.hops = fit.hops;
  if (group.by_fma == 0) group.work = fit.work;  // the counts are of the matrix units' products
  // Groups of blocks that run side by side; the others follow them. Where several share a
  // multiprocessor, they share what it issues.
  int64_t groups = fit.groups, at_once = choice.groups_at_once;
  if (choice.kernel != Kernel::kGrid) {
    groups *= request.num_directions;
    at_once = choice.resident_clusters > 0 ? choice.resident_clusters : groups;
    const int64_t apart = choice.resident_clusters > 0 ? choice.clusters_apart : groups;
    group.sharing = static_cast<int>((std::min(groups, at_once) + apart - 1) / apart);
  }
  const double step = cost::persistent_step(request.shape.cell, request.shape.hidden_size, format,
                                            pass, group, constants);
  const int64_t waves = (groups + at_once - 1) / at_once;
  return std::max(
      static_cast<double>(waves) * step,
      cost::memory_step(request.shape, format, pass, request.num_directions, constants));
}

// All ways of dividing a shape among the blocks of one kernel.
template <class Body>
void for_each_division(const PlanRequest& request, Pass pass, Kernel kernel, const Body& body) {
  const int64_t H = request.shape.hidden_size;
  const int first = kernel == Kernel::kBlock ? 1 : 2;
  int last = 1;
  if (kernel == Kernel::kCluster) last = request.device.max_cluster_size;
  if (kernel == Kernel::kGrid) last = request.device.num_multiprocessors / request.num_directions;
  const int64_t useful_tiles = (request.shape.batch_size + 7) / 8;
  const bool splits = pass == Pass::kForward && kernel != Kernel::kGrid;
  const bool repeats = pass == Pass::kForward && kernel == Kernel::kGrid;
  Choice choice;
  choice.kernel = kernel;
  for (choice.blocks = first; choice.blocks <= last && choice.blocks <= H; ++choice.blocks)
    for (choice.batch_tiles = 1; choice.batch_tiles <= kMaxBatchTiles; choice.batch_tiles *= 2) {
      if (choice.batch_tiles > 1 && choice.batch_tiles >= 2 * useful_tiles) break;
      const int64_t groups = (useful_tiles + choice.batch_tiles - 1) / choice.batch_tiles;
      const int64_t most = repeats ? std::min<int64_t>(groups, last / choice.blocks) : 1;
      for (choice.groups_at_once = 1; choice.groups_at_once <= most; ++choice.groups_at_once)
        for (choice.k_split = 1; choice.k_split <= (splits ? kMaxKSplit : 1); ++choice.k_split)
          body(choice);
    }
}

}  // namespace

std::vector<Candidate> candidates(const PlanRequest& request, Pass pass, Kernel kernel,
                                  const cost::Constants& constants) {
  const RecurrenceShape& s = request.shape;
  std::vector<Candidate> all;
  if (kernel == Kernel::kStepwise) {
    const cost::Format format = format_of(request);
    Choice& choice = all.emplace_back().choice;
    choice.microseconds_per_step = std::max(
        cost::stepwise_step(s, format, request.num_directions, request.captured, constants),
        cost::memory_step(s, format, pass, request.num_directions, constants));
    return all;
  }
  if (s.element == Element::kFloat64 || s.proj_size > 0 || s.zoneout) return all;
  for_each_division(request, pass, kernel, [&](Choice choice) {
    const Fit fit = fit_of(request, pass, choice);
    if (!fit.fits) return;
    choice.microseconds_per_step = estimate(request, pass, choice, fit, constants);
    all.push_back({choice, fit, fit.ctas * request.num_directions});
  });
  return all;
}

std::string settle(const PlanRequest& request, Pass pass, const cost::Constants& constants,
                   Candidate& candidate) {
  Choice& choice = candidate.choice;
  if (choice.kernel != Kernel::kBlock && choice.kernel != Kernel::kCluster) return "";
  const std::string refusal = find_residency(request, pass, candidate.fit, choice);
  if (refusal.empty())
    choice.microseconds_per_step = estimate(request, pass, choice, candidate.fit, constants);
  return refusal;
}

}  // namespace birnn::cuda
