// How the blocks of a cooperative launch hand each other values through global memory (that is,
// through L2) without a fence, a flag or a barrier between them: each value travels with its time.
//
// A ring of two slots of 64-bit words. The upper half of a word is its epoch, a count of exchanges
// that starts at 1; the lower half is the payload, two 16-bit elements or one float. The words of
// epoch e lie in slot e & 1. Words are stored by relaxed stores and polled by relaxed loads, two of
// them (16 bytes) at a time, until both have the epoch that is waited for. A load or store of 64
// bits is atomic, so whoever sees the epoch has the payload: there is nothing to order, no fence
// waits for earlier stores, and one trip through L2 is all that an exchange costs. The price is
// that half of the bytes are epochs.
//
//   publish   stores a word or a pair of words
//   ask       asks for a thread's pairs, all at once: as many loads are on their way as it has
//   await     asks again for those that are too old, until none is
//   clear     before a launch: every word to an epoch that nobody waits for
//
// Two slots suffice if a block publishes words of epoch e + 1 only after all its threads have the
// words of epoch e that they wait for (a barrier of the block stands between), and if each block
// waits for words of every other one in every epoch. For then who publishes epoch e + 2, over words
// of epoch e, has seen words of epoch e + 1 of every block, and each was published after its block
// had read epoch e. No load can see a later epoch than it waits for: the word it sees would depend,
// through the payloads of epoch e + 1, on what that very load has returned, and values do not come
// out of thin air. The emulator checks it at every poll.
//
// Before each launch the words must be cleared by something that precedes it on its stream, so that
// it does so again when a graph is replayed: a kernel that the launch needs anyway (it packs the
// weights) calls `clear`. Words of an earlier launch would be taken for new ones.
//
// Freedom from deadlock. A block waits only for blocks of its own launch, and only for words that
// they publish without waiting for anything later: of all blocks, one at the earliest epoch can
// always go on, provided that it runs. So all that is needed is that every block of the launch runs
// at some time without another one having to end first. That is what CUDA guarantees of a
// cooperative launch: all of its blocks become resident together, or it fails with an error because
// not even an empty device holds them. What else the device runs, on whatever stream, delays the
// launch but does not wait for it: a kernel that has begun ends by itself, and another cooperative
// launch has all of its own blocks. Plain launches would not do: of two that spin, each could hold
// a part of the device and wait for the rest. Two directions that are to run at the same time are
// blocks of one launch: that two cooperative launches overlap is nowhere promised.
#pragma once

#include "cuda/device/device.h"

namespace birnn::cuda::grid_exchange {

using namespace birnn::device;

constexpr uint32_t kNever = 0;             // of a cleared word
constexpr uint32_t kAlways = 0xffffffffu;  // of a word that nobody publishes and nobody waits for

BIRNN_DEVICE uint64_t make_word(uint32_t epoch, uint32_t payload) {
  return uint64_t{epoch} << 32 | payload;
}
BIRNN_DEVICE uint32_t epoch_of(uint64_t word) { return static_cast<uint32_t>(word >> 32); }
BIRNN_DEVICE uint32_t payload_of(uint64_t word) { return static_cast<uint32_t>(word); }

BIRNN_DEVICE void publish(uint64_t* word, uint32_t epoch, uint32_t payload) {
  store_relaxed_gpu(word, make_word(epoch, payload));
}
BIRNN_DEVICE void publish(WordPair* pair, uint32_t epoch, uint32_t first, uint32_t second) {
  store_relaxed_gpu(pair, WordPair{make_word(epoch, first), make_word(epoch, second)});
}

// source(i): where this thread finds pair i; only the first `count` pairs are asked for, the others
// are left alone.
template <int kPairs, class Source>
BIRNN_DEVICE void ask(WordPair (&pairs)[kPairs], const Source& source, int count = kPairs) {
  BIRNN_UNROLL
  for (int i = 0; i < kPairs; ++i)
    if (i < count) pairs[i] = load_relaxed_gpu(source(i));
}

// After `ask` with the same arguments: returns when all pairs are of this epoch. A warp collective:
// the lanes leave together.
template <int kPairs, class Source>
BIRNN_DEVICE void await(WordPair (&pairs)[kPairs], const Source& source, uint32_t epoch,
                        int count = kPairs) {
  const auto is_there = [&](const WordPair& pair) {
    const uint32_t first = epoch_of(pair.first), second = epoch_of(pair.second);
    check((first <= epoch || first == kAlways) && (second <= epoch || second == kAlways),
          "a word was overwritten before it was read");
    return first >= epoch && second >= epoch;
  };
  for (;;) {
    bool all_there = true;
    BIRNN_UNROLL
    for (int i = 0; i < kPairs; ++i)
      if (i < count) all_there = is_there(pairs[i]) && all_there;
    if (vote_ballot(!all_there) == 0) return;
    spin_pause();
    BIRNN_UNROLL
    for (int i = 0; i < kPairs; ++i)
      if (i < count && !is_there(pairs[i])) pairs[i] = load_relaxed_gpu(source(i));
  }
}

// The same for pairs at `stride` pairs from each other.
template <int kPairs>
BIRNN_DEVICE void ask(WordPair (&pairs)[kPairs], const WordPair* source, int stride, int count) {
  ask(pairs, [=](int i) { return source + i * stride; }, count);
}
template <int kPairs>
BIRNN_DEVICE void await(WordPair (&pairs)[kPairs], const WordPair* source, int stride, int count,
                        uint32_t epoch) {
  await(pairs, [=](int i) { return source + i * stride; }, epoch, count);
}

// By all threads of a launch that precedes. epoch_of_word(i), i counting words: kNever, or kAlways
// for a word that nobody publishes.
template <class EpochOfWord>
BIRNN_DEVICE void clear(WordPair* ring, int64_t num_pairs, const EpochOfWord& epoch_of_word) {
  const int64_t stride = int64_t{grid_dim().x} * block_dim();
  for (int64_t i = int64_t{block_idx().x} * block_dim() + thread_idx(); i < num_pairs; i += stride)
    ring[i] = WordPair{make_word(epoch_of_word(2 * i), 0), make_word(epoch_of_word(2 * i + 1), 0)};
}

}  // namespace birnn::cuda::grid_exchange
