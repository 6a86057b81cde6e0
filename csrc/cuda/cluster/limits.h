// Which clusters the current device holds, as its driver says: dies of one kind differ in it, and a
// part of a device (MIG) may hold fewer blocks than the whole.
#pragma once

#include <cstdint>
#include <vector>

namespace birnn::cuda {

// How many clusters of 1, 2, ... blocks of the cluster forward kernel fit at once, each block with
// this much shared memory: all of it, so that it has a multiprocessor to itself. Up to the largest
// size, at most `most`, of which one fits. Of size 1 alone where there are no clusters, or no code
// that knows them: of a kernel built for older devices the driver may say that it can form
// clusters, but its code traps there. What the driver refuses stays behind as the runtime's last
// error.
std::vector<int> resident_clusters(int most, int64_t shared_bytes);

}  // namespace birnn::cuda
