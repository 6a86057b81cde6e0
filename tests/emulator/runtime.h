// The emulator's runtime, as device_emulator.h sees it.
//
// The intrinsics of device_emulator.h are compiled with the kernel and so instrumented by the
// sanitizers; the runtime never is. It tells them what the modelled machine does instead: which
// thread runs, which shared memory exists, and exactly the happens-before edges of PTX.
//
// Every CUDA thread is a fiber on one OS thread, so a run is a function of its seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#if !defined(__CUDACC__)
#include <source_location>
#endif
#include <map>
#include <stdexcept>
#include <string>

#include "cuda/device/device_types.h"

namespace birnn::emulator {

using device::Dim3;
using device::LaunchConfig;

// Where an operation stands: a line of a C++ source, or of the compiler's output and the lines of
// the source it was made from.
class Location {
 public:
  constexpr Location() = default;
#if !defined(__CUDACC__)  // which compiles C++17
  constexpr Location(const std::source_location& here)
      : place(here.line()), file_(here.file_name()), line_(here.line()) {}
#endif
  constexpr Location(const char* file, uint32_t line, const char* origin)
      : place(line), file_(file), line_(line), origin_(origin) {}

  const char* file_name() const { return file_; }
  uint32_t line() const { return line_; }
  const char* origin() const { return origin_; }

  uint32_t place = 0;  // threads that must be in one place to meet are where this is the same

 private:
  const char* file_ = "";
  uint32_t line_ = 0;
  const char* origin_ = "";
};

// The one thing a check of the emulator throws. launch() turns it into a status and a message.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order {
  kShuffle,  // any runnable thread
  kFifo,     // in turn
  kReverse,  // in turn, last thread first
  kSkew,     // random priorities that change now and then: some blocks and warps starve
};
enum class Landing { kRandom, kLate, kEager };  // when asynchronous copies and stores take effect

struct Options {
  Order order = Order::kShuffle;
  Landing landing = Landing::kRandom;
  uint64_t seed = 1;
  bool approximate = false;           // tanh_fast and exp_fast err as much as the GPU's may
  uint32_t threads_in_flight = 2048;  // resident at once unless cooperative
  int resident_blocks = 132;          // the answer of max_resident_blocks
  int blocks_of_multiprocessor = 1;   // the answer of blocks_of_multiprocessor
  int code_capability = 90;           // the answer of code_capability
  // By their size: how many clusters are resident, where not as many as resident_blocks are; below
  // 0 the driver has an error in place of an answer.
  std::map<uint32_t, int> resident_clusters;
};
// From EMULATOR_ORDER, EMULATOR_LANDING, EMULATOR_SEED and EMULATOR_APPROXIMATE at first use.
Options& options();
// By their names, as in the environment. False if there is no such order or landing.
bool set_schedule(Options&, const std::string& order, const std::string& landing);

struct Statistics {
  uint64_t launches = 0, threads = 0, switches = 0, collectives = 0, async_operations = 0;
};
const Statistics& statistics();

// Runs the grid to its end. Returns 0, or 1 with the diagnosis in last_error().
int run_grid(const LaunchConfig& config, void (*thread_body)(void*), void* argument);
const std::string& last_error();
// For what fails before there is a grid.
void set_last_error(const std::string& message);
// Told of each launch as it begins and as it ends, if there is one.
extern void (*launch_observer)(const LaunchConfig& config, bool begins);
// Told of each kernel that is launched, or that the driver is asked of, if there is one.
extern void (*kernel_observer)(const void* kernel, const LaunchConfig& config, bool launched);
// The driver's answers of a kernel. The clusters, blocks of a cluster of 1; or -1, and
// last_error().
int resident_clusters(const void* kernel, const LaunchConfig& config);

// ---------------------------------------------------------------------------------------------
// Called by kernel threads.

struct ThreadContext {
  uint32_t thread = 0, lane = 0, warp = 0;
  uint32_t block_size = 0, cluster_rank = 0, cluster_size = 1;
  Dim3 block, grid;
};
extern const ThreadContext* current_thread;

// Where the next array starts: in the emulated arena, which has red zones, and on the device.
struct SharedCursor {
  uint32_t arena = 0, device = 0;
};
void* allocate_shared(SharedCursor& cursor, uint32_t bytes, uint32_t alignment, Location);
void check_own_shared(const void* address, size_t bytes, const char* what, Location);
void check_cluster_shared(const void* address, size_t bytes, const char* what, Location);
char* map_to_rank(const void* own_shared, uint32_t rank, Location);

void sync_block(Location);
void named_barrier(int id, int num_threads, bool wait, Location);
void sync_warp(Location);
void cluster_arrive(bool release, Location);
void cluster_wait(Location);

// What the 32 lanes of a warp hand each other.
struct alignas(16) Deposit {
  unsigned char bytes[48];
};
enum class Collective { kWarpId, kShuffle, kBallot, kReduce, kLoadMatrix, kMma };
// Waits for all lanes; the last one to come applies `combine`, if any, to the deposits. Returns
// the 32 deposits. Orders no memory.
const Deposit* warp_exchange(Collective, const void* mine, size_t bytes, void (*combine)(Deposit*),
                             Location);
// Of the words that the lanes have deposited.
inline uint32_t or_of(const Deposit* deposits) {
  uint32_t result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t word;
    std::memcpy(&word, deposits[lane].bytes, sizeof word);
    result |= word;
  }
  return result;
}

void st_async(void* destination, const void* value, size_t bytes, void* barrier, Location);
void cp_async(void* destination, const void* source, size_t bytes, size_t source_bytes, Location);
void cp_async_commit(Location);
void cp_async_wait(int pending, Location);

void mbarrier_init(device::MBarrier*, uint32_t arrivals, Location);
void mbarrier_arrive(void* barrier, uint32_t bytes, bool remote, Location, bool releases = true);
void mbarrier_wait(device::MBarrier*, uint32_t parity, bool cluster_scope, Location);
// What the wait for an mbarrier acquires: nothing until fence_acquire_waits(), or the releases of
// the own block, or those of the cluster too.
enum class WaitOrder { kRelaxed, kBlock, kCluster };
// Waits until the phase of this parity has ended, and says so; or gives up now and then, as
// mbarrier.try_wait may.
bool mbarrier_try_wait(void* barrier, uint32_t parity, WaitOrder, bool may_give_up, Location);
void fence_acquire_waits(Location);

// Relaxed stores wait in a store buffer and land late and out of order (in order at one address),
// until a release or fence that they happen before. 4 or 8 bytes.
void store_relaxed(void* destination, const void* value, size_t bytes, Location);
void load_relaxed(const void* source, void* value, size_t bytes, Location);
uint32_t load_acquire(const uint32_t* source, Location);
void store_release(uint32_t* destination, uint32_t value, Location);
void red_add_release(uint32_t* destination, uint32_t value, Location);
void fence_acq_rel(Location);
void spin_pause(Location);

// value * (1 + e) with |e| up to `relative_error`, if the options ask for it.
float approximate(float value, float relative_error);
[[noreturn]] void fail(const std::string& message, Location);

}  // namespace birnn::emulator
