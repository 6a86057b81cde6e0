// How large a cluster the current device holds, as it says itself: dies of one kind differ in it,
// and a part of a device (MIG) may hold fewer blocks than the whole.
#pragma once

namespace birnn::cuda {

// The most blocks, up to `most`, of a cluster whose blocks have a multiprocessor each, as those of
// the cluster kernels have; 1 if the device has no clusters.
int largest_cluster(int most);

}  // namespace birnn::cuda
