// The kernels of benchmarks/sections/micro.cu, run for what they compute: every exchange counts its
// wrong values, of which there must be none.
#include "../../benchmarks/sections/micro_kernels.cuh"
#include "test_support.h"

using namespace birnn::device;
using namespace birnn::micro;
using birnn::test::Buffer;
using birnn::test::expect;
using birnn::test::run;

constexpr uint32_t kRounds = 7;

template <class... Parameters, class... Arguments>
void count_wrong(const LaunchConfig& config, void (*kernel)(Parameters...),
                 Arguments... arguments) {
  Buffer<Outcome> outcome(1);
  outcome[0] = Outcome{0, 0};
  if (run(config, kernel, arguments..., outcome.data())) {
    expect(outcome[0].num_wrong == 0, "wrong values");
  }
}

void test_clusters(uint32_t size) {
  LaunchConfig config;
  config.cluster = size;
  config.grid.x = 2 * size;
  config.shared_bytes = 64;
  count_wrong(config, st_async_round_trip, kRounds);
  config.threads = 64;
  count_wrong(config, cluster_barrier, kRounds);
  for (const uint32_t slice : {128u, 2048u}) {
    config.shared_bytes = 2 * size * slice + 64;
    count_wrong(config, all_gather, slice, kRounds);
  }
}

void test_l2() {
  Buffer<WordPair> slots(64, WordPair{0, 0});
  Buffer<uint32_t> words(256, 0u), arrivals(1, 0u);
  LaunchConfig config;
  config.grid.x = 4;
  config.cooperative = true;
  count_wrong(config, poll_data, slots.data(), 3u, kRounds);
  count_wrong(config, poll_flag, words.data(), 3u, kRounds);
  config.threads = 64;
  count_wrong(config, grid_barrier, arrivals.data(), kRounds);
}

int main(int argc, char** argv) {
  constexpr bool kNeedsClusters = true;
  return birnn::test::run_cases(
      {
          {"cluster_of_2", [] { test_clusters(2); }, kNeedsClusters},
          {"cluster_of_16", [] { test_clusters(16); }, kNeedsClusters},
          {"l2", [] { test_l2(); }},
      },
      argc, argv);
}
