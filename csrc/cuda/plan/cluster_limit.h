// How large a cluster the current device holds, as it says itself: dies of one kind differ in it,
// and a part of a device (MIG) may hold fewer blocks than the whole.
#pragma once

#include <cstdint>

namespace birnn::cuda {

// The most blocks, up to `most`, of a cluster whose blocks take this much shared memory; 1 if the
// device has no clusters. What it refuses stays behind as the runtime's last error.
int largest_cluster(int most, int64_t shared_bytes);

}  // namespace birnn::cuda
