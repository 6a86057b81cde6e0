// Launches: makes the blocks of a grid, runs their threads in an order of its choice until all have
// ended, and says who waits for what when they cannot.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <utility>

#include "machine.h"

namespace birnn::emulator {

Machine* machine = nullptr;
Thread* running = nullptr;
const ThreadContext* current_thread = nullptr;
Statistics mutable_statistics;
size_t gap_bytes = 0;

namespace {

constexpr int kMaxBlockThreads = 1024;
constexpr uint32_t kMaxCluster = 16;
constexpr size_t kMaxSharedBytes = 227 * 1024;
constexpr int kMaxArrays = 64;       // of a block's shared memory
constexpr int kArrayOverhead = 192;  // red zone and alignment of one
constexpr int kIdleRoundsOfLivelock = 300;
// libtsan ends the process at 8128 fibers; asynchronous operations take some beside the threads.
constexpr size_t kMaxRaceThreads = 3000;
constexpr uint32_t kRaceThreadsInFlight = 512;

std::string failure;

// Thrown in a thread that is unwound after another one has failed.
struct Cancelled {};

// ThreadSanitizer's fibers are slow to make: finished ones serve later launches, which they
// precede anyway.
std::vector<RaceFiber> spare_race_fibers, retired_race_fibers;

uint32_t product(const Dim3& extent) { return extent.x * extent.y * extent.z; }

void check_configuration(const LaunchConfig& config) {
  if (config.threads == 0 || config.threads % 32 != 0 || config.threads > kMaxBlockThreads) {
    throw Error("launch: threads of a block must be a multiple of 32, at most 1024");
  }
  if (product(config.grid) == 0) throw Error("launch: empty grid");
  if (config.grid.y > 65535 || config.grid.z > 65535) {
    throw Error("launch: more than 65535 blocks along y or z");
  }
  if (config.cluster == 0 || config.cluster > kMaxCluster) {
    throw Error("launch: clusters have 1 to 16 blocks");
  }
  if (config.grid.x % config.cluster != 0) {
    throw Error("launch: grid.x is not a multiple of the cluster");
  }
  if (config.shared_bytes > kMaxSharedBytes + gap_bytes) {
    throw Error("launch: more than 227 KiB of shared memory");
  }
}

// ---------------------------------------------------------------------------------------------
// Blocks and their threads.

void add_block(Cluster& cluster, uint32_t rank, const Dim3& index) {
  const LaunchConfig& config = machine->config;
  auto block = std::make_unique<Block>();
  block->cluster = &cluster;
  block->priority = static_cast<uint32_t>(random_number());
  block->live_threads = config.threads;
  block->barriers = std::make_unique<Barrier[]>(16);
  block->warps.reset(new Warp[config.threads / 32]);
  for (uint32_t warp = 0; warp < config.threads / 32; ++warp) {
    block->warps[warp].priority = static_cast<uint32_t>(random_number());
  }
  if (config.shared_bytes > 0) {
    block->arena_bytes = (config.shared_bytes + kMaxArrays * kArrayOverhead + 127) / 128 * 128;
    block->arena = static_cast<char*>(std::aligned_alloc(128, block->arena_bytes));
    raw_fill(block->arena, kRedZone, block->arena_bytes);
    asan::poison(block->arena, block->arena_bytes);
  }
  for (uint32_t i = 0; i < config.threads; ++i) {
    Thread& thread = machine->threads.emplace_back();
    thread.block = block.get();
    thread.warp = &block->warps[i / 32];
    thread.context.thread = i;
    thread.context.lane = i % 32;
    thread.context.warp = i / 32;
    thread.context.block_size = config.threads;
    thread.context.cluster_rank = rank;
    thread.context.cluster_size = config.cluster;
    thread.context.block = index;
    thread.context.grid = config.grid;
  }
  cluster.blocks.push_back(std::move(block));
}

void add_cluster(uint32_t number) {
  const Dim3& grid = machine->config.grid;
  const uint32_t size = machine->config.cluster;
  const uint32_t clusters_along_x = grid.x / size;
  const uint32_t x = number % clusters_along_x * size;
  const uint32_t y = number / clusters_along_x % grid.y;
  const uint32_t z = number / clusters_along_x / grid.y;
  auto cluster = std::make_unique<Cluster>();
  for (uint32_t rank = 0; rank < size; ++rank) add_block(*cluster, rank, Dim3{x + rank, y, z});
  machine->clusters.push_back(std::move(cluster));
}

void remove_clusters() {
  for (Thread& thread : machine->threads) {
    for (Agent* agent : {thread.copy_agent, thread.store_agent}) {
      if (!agent) continue;
      retire_race_fiber(agent->fiber);
      delete agent;
    }
    if (thread.fence) {
      retire_race_fiber(thread.fence->reader);
      retire_race_fiber(thread.fence->releaser);
    }
    if (thread.race_fiber) retire_race_fiber(thread.race_fiber);
    if (thread.fiber) give_back_fiber(thread.fiber);
  }
  machine->threads.clear();
  for (auto& cluster : machine->clusters) {
    for (auto& block : cluster->blocks) {
      if (!block->arena) continue;
      asan::unpoison(block->arena, block->arena_bytes);
      std::free(block->arena);
    }
  }
  machine->clusters.clear();
  spare_race_fibers.insert(spare_race_fibers.end(), retired_race_fibers.begin(),
                           retired_race_fibers.end());
  retired_race_fibers.clear();
}

// A block is over. Whatever its peers did to its memory must have happened before: a race
// otherwise, with a "write" that only knows the end of this block.
void end_block(Block& block) {
  block.exited = true;
  if (!block.arena || machine->cancelled) return;
  asan::poison(block.arena, block.arena_bytes);
  if (tsan::active() && machine->config.cluster > 1) {
    const RaceFiber undertaker = new_race_fiber();
    tsan::set_name(undertaker, ("the end of a block of " + describe(*running)).c_str());
    {
      tsan::As as(undertaker);
      tsan::acquire(&block.end);
      tsan::write_range(block.arena, block.arena_bytes);
      tsan::release(&machine->landed);
    }
    retire_race_fiber(undertaker);
  }
  check_red_zones(block);
}

// ---------------------------------------------------------------------------------------------
// Running threads.

void resume(Thread& thread) {
  if (!thread.fiber) {
    thread.fiber = take_fiber();
    if (tsan::active()) {
      thread.race_fiber = new_race_fiber();
      tsan::set_name(thread.race_fiber, describe(thread).c_str());
    }
  }
  ++mutable_statistics.switches;
  running = &thread;
  current_thread = &thread.context;
  tsan::switch_to(thread.race_fiber);
  resume_fiber(thread.fiber);
  if (thread.finished) {
    if (--thread.block->live_threads == 0) end_block(*thread.block);
    // A thread that never waited leaves its warm stack to the next one: grids of independent
    // threads run on a single stack. Not under ThreadSanitizer, to which the locals of two threads
    // at one address would be a race.
    if (!tsan::active()) give_back_fiber(std::exchange(thread.fiber, nullptr));
  }
  running = nullptr;
  current_thread = nullptr;
}

std::string describe_waiting_threads(const char* what) {
  std::map<std::string, std::pair<int, std::string>> groups;  // count and first thread
  for (const Thread& thread : machine->threads) {
    if (thread.finished) continue;
    auto& group = groups[thread.waits_for + (" at " + describe(thread.where))];
    if (group.first++ == 0) group.second = describe(thread);
  }
  std::string report = what;
  for (auto& [place, group] : groups) {
    report +=
        "\n  " + std::to_string(group.first) + " thread(s) in " + place + ", first " + group.second;
  }
  return report;
}

void choose_next() {
  ThreadQueue& queue = machine->runnable;
  if (machine->options.order == Order::kShuffle) {
    std::swap(queue.at(0), queue.at(random_number() % queue.size()));
  } else if (machine->options.order == Order::kSkew) {
    // One warp runs until none of its threads can. They stand next to each other as a rule.
    for (size_t i = 0; machine->favourite && i < queue.size(); ++i) {
      const size_t position = (machine->favourite_position + i) % queue.size();
      if (queue.at(position)->warp != machine->favourite) continue;
      machine->favourite_position = position;
      std::swap(queue.at(0), queue.at(position));
      return;
    }
    if (random_number() % 16 == 0) {
      Thread* thread = queue.at(random_number() % queue.size());
      thread->block->priority = static_cast<uint32_t>(random_number());
      thread->warp->priority = static_cast<uint32_t>(random_number());
    }
    const auto priority = [](const Thread* thread) {
      return uint64_t{thread->block->priority} << 32 | thread->warp->priority;
    };
    size_t best = 0;
    for (size_t i = 1; i < queue.size(); ++i) {
      if (priority(queue.at(i)) > priority(queue.at(best))) best = i;
    }
    machine->favourite = queue.at(best)->warp;
    machine->favourite_position = best;
    std::swap(queue.at(0), queue.at(best));
  }
}

// Whether something asynchronous happens now: when nobody can run, and by chance.
bool lands_now() {
  if (machine->runnable.empty()) return true;
  return machine->options.landing == Landing::kRandom && random_number() % 8 == 0;
}

void run_threads() {
  ThreadQueue& runnable = machine->runnable;
  ThreadQueue& spinning = machine->spinning;
  size_t unfinished = machine->threads.size();
  machine->favourite = nullptr;
  runnable.reset(unfinished);
  spinning.reset(unfinished);
  for (size_t i = 0; i < unfinished; ++i) {
    const bool reverse = machine->options.order == Order::kReverse;
    runnable.push(&machine->threads[reverse ? unfinished - 1 - i : i]);
  }
  uint64_t progress_seen = 0;
  int idle_rounds = 0;
  while (unfinished > 0) {
    if (!machine->copies.empty() && lands_now()) {
      land_copy(random_number() % machine->copies.size());
      continue;
    }
    if (!machine->stores.empty() && lands_now()) land_store_of_highest_priority();
    if (runnable.empty()) {
      if (spinning.empty()) throw Error(describe_waiting_threads("deadlock"));
      if (std::exchange(progress_seen, machine->progress) != machine->progress) idle_rounds = 0;
      if (++idle_rounds > kIdleRoundsOfLivelock) {
        throw Error(describe_waiting_threads("livelock"));
      }
      runnable.swap(spinning);
      continue;
    }
    choose_next();
    Thread* thread = runnable.pop();
    resume(*thread);
    if (machine->error[0] != '\0') throw Error(machine->error);
    if (thread->finished) --unfinished;
  }
  while (!machine->copies.empty()) land_copy(0);
  while (!machine->stores.empty()) land_store(0);
}

// After a failure: every thread that has begun unwinds its stack.
void cancel_threads() {
  machine->cancelled = true;
  for (Thread& thread : machine->threads) {
    if (thread.fiber && !thread.finished) resume(thread);
  }
  machine->copies.clear();
  machine->stores.clear();
}

// The host goes on when all blocks have ended.
void join_blocks() {
  for (auto& cluster : machine->clusters) {
    for (auto& block : cluster->blocks) tsan::acquire(&block->end);
  }
  tsan::acquire(&machine->landed);
}

void run_wave(uint32_t first_cluster, uint32_t num_clusters) {
  const size_t num_threads =
      size_t{num_clusters} * machine->config.cluster * machine->config.threads;
  if (tsan::active() && num_threads > kMaxRaceThreads) {
    throw Error("launch: more threads at once than ThreadSanitizer can follow");
  }
  machine->threads.reserve(num_threads);  // threads are pointed to
  for (uint32_t i = 0; i < num_clusters; ++i) add_cluster(first_cluster + i);
  try {
    run_threads();
  } catch (...) {
    running = nullptr;
    cancel_threads();
    join_blocks();
    remove_clusters();
    throw;
  }
  join_blocks();
  remove_clusters();
}

void run_waves() {
  const LaunchConfig& config = machine->config;
  const uint32_t num_clusters = product(config.grid) / config.cluster;
  const uint32_t cluster_threads = config.threads * config.cluster;
  uint32_t threads_in_flight = machine->options.threads_in_flight;
  // The cost of a synchronisation under ThreadSanitizer grows with the fibers there are.
  if (tsan::active()) threads_in_flight = std::min(threads_in_flight, kRaceThreadsInFlight);
  uint32_t wave = std::max(1u, threads_in_flight / cluster_threads);
  if (config.cooperative) wave = num_clusters;
  for (uint32_t first = 0; first < num_clusters; first += wave) {
    run_wave(first, std::min(wave, num_clusters - first));
  }
}

Options options_from_environment() {
  Options result;
  const auto variable = [](const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return std::string(value && *value ? value : otherwise);
  };
  const std::string order = variable("EMULATOR_ORDER", "shuffle");
  const std::string landing = variable("EMULATOR_LANDING", "random");
  if (!set_schedule(result, order, landing)) {
    std::fprintf(stderr, "unknown EMULATOR_ORDER=%s or EMULATOR_LANDING=%s\n", order.c_str(),
                 landing.c_str());
    std::exit(2);
  }
  result.seed = std::strtoull(variable("EMULATOR_SEED", "1").c_str(), nullptr, 10);
  result.approximate = variable("EMULATOR_APPROXIMATE", "0") == "1";
  return result;
}

}  // namespace

// ---------------------------------------------------------------------------------------------

void run_current_thread() {
  Thread& thread = *running;
  try {
    machine->thread_body(machine->argument);
    if (thread.copies_in_flight > 0) {
      throw Error("thread ends with cp.async in flight: " + describe(thread));
    }
    if (thread.arrived_at_cluster) {
      throw Error("thread ends between cluster_arrive and cluster_wait: " + describe(thread));
    }
  } catch (const Cancelled&) {
  } catch (const std::exception& error) {
    // Byte by byte: the message belongs to this thread, and its memory goes with it.
    const bool first = machine->error[0] == '\0';
    const char* message = error.what();
    for (size_t i = 0; first && i + 1 < sizeof machine->error && message[i] != '\0'; ++i) {
      machine->error[i] = message[i];
    }
  }
  release(thread.block->end);
  thread.finished = true;
  ++machine->progress;
  tsan::switch_to(machine->host);  // back to the scheduler
}

void suspend_running() {
  Thread* thread = running;
  tsan::switch_to(machine->host);
  suspend_fiber(thread->fiber);
  if (machine->cancelled) throw Cancelled{};
}

void spin_pause(Location where) {
  running->waits_for = "a spin loop";
  running->where = where;
  machine->spinning.push(running);
  suspend_running();
}

void (*launch_observer)(const LaunchConfig& config, bool begins) = nullptr;
void (*kernel_observer)(const void* kernel, const LaunchConfig& config, bool launched) = nullptr;

int resident_clusters(const void* kernel, const LaunchConfig& config) {
  if (kernel_observer) kernel_observer(kernel, config, false);
  const auto& known = options().resident_clusters;
  const auto found = known.find(config.cluster);
  if (found == known.end()) return options().resident_blocks / static_cast<int>(config.cluster);
  if (found->second < 0)
    failure = "clusters of " + std::to_string(config.cluster) + " are beyond this driver";
  return found->second;
}

int run_grid(const LaunchConfig& config, void (*thread_body)(void*), void* argument) {
  if (launch_observer) launch_observer(config, true);
  Machine this_machine;
  this_machine.options = options();
  this_machine.config = config;
  this_machine.thread_body = thread_body;
  this_machine.argument = argument;
  this_machine.random_state = this_machine.options.seed * 0x9e3779b97f4a7c15ull | 1;
  this_machine.host = tsan::current();
  machine = &this_machine;
  ++mutable_statistics.launches;
  mutable_statistics.threads += uint64_t{product(config.grid)} * config.threads;
  int status = 0;
  try {
    check_configuration(config);
    run_waves();
  } catch (const Error& error) {
    failure = error.what();
    status = 1;
  }
  machine = nullptr;
  if (launch_observer) launch_observer(config, false);
  return status;
}

const std::string& last_error() { return failure; }
void set_last_error(const std::string& message) { failure = message; }

bool set_schedule(Options& options, const std::string& order, const std::string& landing) {
  static const std::map<std::string, Order> orders{{"shuffle", Order::kShuffle},
                                                   {"fifo", Order::kFifo},
                                                   {"reverse", Order::kReverse},
                                                   {"skew", Order::kSkew}};
  static const std::map<std::string, Landing> landings{
      {"random", Landing::kRandom}, {"late", Landing::kLate}, {"eager", Landing::kEager}};
  const auto found_order = orders.find(order);
  const auto found_landing = landings.find(landing);
  if (found_order == orders.end() || found_landing == landings.end()) return false;
  options.order = found_order->second;
  options.landing = found_landing->second;
  return true;
}

Options& options() {
  static Options value = options_from_environment();
  return value;
}

const Statistics& statistics() { return mutable_statistics; }

// ---------------------------------------------------------------------------------------------

void WaitList::add(Thread* thread) {
  thread->next_waiting = nullptr;
  (first_ ? last_->next_waiting : first_) = thread;
  last_ = thread;
}

void WaitList::wake() {
  for (Thread* thread = first_; thread != nullptr; thread = thread->next_waiting) {
    machine->runnable.push(thread);
  }
  first_ = last_ = nullptr;
}

void ThreadQueue::reset(size_t capacity) {
  ring_.assign(capacity, nullptr);
  head_ = size_ = 0;
}

Thread* ThreadQueue::pop() {
  Thread* thread = ring_[head_];
  head_ = (head_ + 1) % ring_.size();
  --size_;
  return thread;
}

void ThreadQueue::swap(ThreadQueue& other) {
  ring_.swap(other.ring_);
  std::swap(head_, other.head_);
  std::swap(size_, other.size_);
}

uint64_t random_number() {  // xorshift64, Marsaglia 2003
  uint64_t& state = machine->random_state;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

float approximate(float value, float relative_error) {
  if (!machine || !machine->options.approximate) return value;
  const double error = static_cast<double>(random_number() & 0xffff) / 0x8000 - 1.0;
  return static_cast<float>(value * (1.0 + relative_error * error));
}

std::string describe(const Location& where) {
  const std::string file = where.file_name();
  const std::string line = file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
  return *where.origin() ? where.origin() + (" (" + line + ")") : line;
}

std::string describe(const Thread& thread) {
  char text[96];
  std::snprintf(text, sizeof text, "block (%u,%u,%u) thread %u", thread.context.block.x,
                thread.context.block.y, thread.context.block.z, thread.context.thread);
  return text;
}

void fail(const std::string& message, Location where) {
  std::string text = message + " at " + describe(where);
  if (running) text += " by " + describe(*running);
  throw Error(text);
}

RaceFiber new_race_fiber() {
  if (!tsan::active()) return nullptr;
  tsan::As host(machine->host);
  if (spare_race_fibers.empty()) return __tsan_create_fiber(0);
  const RaceFiber fiber = spare_race_fibers.back();
  spare_race_fibers.pop_back();
  tsan::switch_to_and_order(fiber);
  tsan::switch_to(machine->host);
  return fiber;
}

void retire_race_fiber(RaceFiber fiber) {
  if (fiber) retired_race_fibers.push_back(fiber);
}

void release(SyncToken& token) { tsan::release(&token); }

void acquire(SyncToken& token) {
  if (running) ++running->acquires;
  tsan::acquire(&token);
}

// The compiler must not turn these loops back into calls (see build.py's flags).
void raw_copy(void* destination, const void* source, size_t bytes) {
  auto* to = static_cast<unsigned char*>(destination);
  auto* from = static_cast<const unsigned char*>(source);
  for (size_t i = 0; i < bytes; ++i) to[i] = from[i];
}

void raw_fill(void* destination, unsigned char value, size_t bytes) {
  auto* to = static_cast<unsigned char*>(destination);
  for (size_t i = 0; i < bytes; ++i) to[i] = value;
}

}  // namespace birnn::emulator
