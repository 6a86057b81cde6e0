// Barriers, warps, matrices, fences, and the ends of threads.
#include <algorithm>
#include <utility>

#include "addresses.h"
#include "device_emulator.h"

namespace ptx {
namespace {

namespace emulator = birnn::emulator;
using emulator::Collective;
using emulator::Deposit;

// Where lanes that need not be at one instruction meet: the compiler may copy a line, not merge
// two.
Location by_source_line(const State& s, const Instruction& i) {
  Location where = s.where(i);
  const size_t index = static_cast<size_t>(&i - s.program->code.data());
  const int32_t source = s.program->origins[index].source;
  if (source >= 0) where.place = 0x80000000u | static_cast<uint32_t>(source);
  return where;
}

char* shared_address(const State& s, const Instruction& i, Slot slot, size_t bytes) {
  const uint32_t address = s.get<uint32_t>(slot) + static_cast<uint32_t>(i.immediate);
  if (address % bytes != 0) fail(s, i, "misaligned address " + hex(address));
  return own_shared(s, i, address, bytes);
}

// ---------------------------------------------------------------------------------------------
// Barriers.

void block_barrier(State& s, const Instruction& i) {
  const uint32_t id = s.get<uint32_t>(i.slots[0]);
  s.polled = false;
  if (i.num_slots == 1 && id == 0) return emulator::sync_block(by_source_line(s, i));
  const uint32_t threads =
      i.num_slots == 1 ? emulator::running->context.block_size : s.get<uint32_t>(i.slots[1]);
  emulator::named_barrier(static_cast<int>(id), static_cast<int>(threads), i.detail == 0,
                          s.where(i));
}
void warp_barrier(State& s, const Instruction& i) {
  if (s.get<uint32_t>(i.slots[0]) != 0xffffffffu) fail(s, i, "a mask of less than the warp");
  emulator::sync_warp(by_source_line(s, i));
}
void cluster_arrive(State& s, const Instruction& i) {
  s.polled = false;
  emulator::cluster_arrive(i.detail != 0, s.where(i));
}
void cluster_wait(State& s, const Instruction& i) {
  s.polled = false;
  emulator::cluster_wait(s.where(i));
}

void mbarrier_init(State& s, const Instruction& i) {
  auto* const barrier = reinterpret_cast<birnn::device::MBarrier*>(
      shared_address(s, i, i.slots[0], sizeof(birnn::device::MBarrier)));
  emulator::mbarrier_init(barrier, s.get<uint32_t>(i.slots[1]), s.where(i));
}
void mbarrier_arrive(State& s, const Instruction& i) {
  char* const barrier = shared_address(s, i, i.slots[1], 8);
  const uint32_t bytes = i.detail ? s.get<uint32_t>(i.slots[2]) : 0;
  emulator::mbarrier_arrive(barrier, bytes, false, s.where(i));
  s.polled = false;
}
void mbarrier_arrive_remote(State& s, const Instruction& i) {
  const uint32_t address = s.get<uint32_t>(i.slots[1]) + static_cast<uint32_t>(i.immediate);
  emulator::mbarrier_arrive(cluster_shared(s, i, address, 8), 0, true, s.where(i), i.detail == 0);
  s.polled = false;
}
// Gives up now and then, as the hardware may: what does not look at the answer shows.
void mbarrier_try_wait(State& s, const Instruction& i) {
  char* const barrier = shared_address(s, i, i.slots[1], 8);
  const auto order = static_cast<emulator::WaitOrder>(i.detail);
  const bool done =
      emulator::mbarrier_try_wait(barrier, s.get<uint32_t>(i.slots[2]), order, true, s.where(i));
  s.put(i.slots[0], done);
  s.polled = true;
}

// ---------------------------------------------------------------------------------------------
// Warps.

enum Shuffle : uint8_t { kIdx, kUp, kDown, kBfly };

// shfl.sync d|p, a, b, c, mask: c holds the lane to clamp to, and in its bits 8..12 which bits of
// the lane number name its segment.
void shuffle(State& s, const Instruction& i) {
  const Slot* operands = i.slots + i.num_written;
  if (s.get<uint32_t>(operands[3]) != 0xffffffffu) fail(s, i, "a mask of less than the warp");
  const uint32_t value = s.get<uint32_t>(operands[0]);
  const Deposit* deposits = emulator::warp_exchange(Collective::kShuffle, &value, sizeof value,
                                                    nullptr, by_source_line(s, i));
  const int lane = static_cast<int>(emulator::current_thread->lane);
  const int by = static_cast<int>(s.get<uint32_t>(operands[1]) & 31);
  const uint32_t control = s.get<uint32_t>(operands[2]);
  const int segment = static_cast<int>(control >> 8 & 31), clamp = static_cast<int>(control & 31);
  const int last = (lane & segment) | (clamp & ~segment);
  int source = 0;
  bool inside = false;
  switch (i.detail) {
    case kUp:
      source = lane - by;
      inside = source >= last;
      break;
    case kDown:
      source = lane + by;
      inside = source <= last;
      break;
    case kBfly:
      source = lane ^ by;
      inside = source <= last;
      break;
    default:
      source = (lane & segment) | (by & ~segment);
      inside = source <= last;
  }
  uint32_t result;
  std::memcpy(&result, deposits[inside ? source & 31 : lane].bytes, sizeof result);
  s.put(i.slots[0], result);
  if (i.num_written == 2) s.put(i.slots[1], inside);
}

enum Vote : uint8_t { kBallot, kAll, kAny };
void vote(State& s, const Instruction& i) {
  if (s.get<uint32_t>(i.slots[2]) != 0xffffffffu) fail(s, i, "a mask of less than the warp");
  const bool predicate = s.get<uint64_t>(i.slots[1]) != 0;
  const Deposit* deposits =
      emulator::warp_exchange(Collective::kBallot, &predicate, 1, nullptr, by_source_line(s, i));
  uint32_t mask = 0;
  for (int lane = 0; lane < 32; ++lane) {
    mask |= static_cast<uint32_t>(deposits[lane].bytes[0] != 0) << lane;
  }
  if (i.detail == kBallot) s.put(i.slots[0], mask);
  if (i.detail == kAll) s.put(i.slots[0], mask == 0xffffffffu);
  if (i.detail == kAny) s.put(i.slots[0], mask != 0);
}

void reduce_or(State& s, const Instruction& i) {
  if (s.get<uint32_t>(i.slots[2]) != 0xffffffffu) fail(s, i, "a mask of less than the warp");
  const uint32_t value = s.get<uint32_t>(i.slots[1]);
  s.put(i.slots[0], emulator::or_of(emulator::warp_exchange(
                        Collective::kReduce, &value, sizeof value, nullptr, by_source_line(s, i))));
}

// ---------------------------------------------------------------------------------------------
// Matrices: .aligned, so all lanes are at this instruction.

void load_matrix(State& s, const Instruction& i) {
  char* const row = shared_address(s, i, i.slots[4], 16);
  if (s.race) emulator::tsan::read_range(row, 16);
  emulator::LoadMatrixDeposit deposit{};
  std::memcpy(deposit.row, row, sizeof deposit.row);
  const auto combine =
      i.detail ? emulator::combine_load_matrix_transposed : emulator::combine_load_matrix;
  const Deposit* all = emulator::warp_exchange(Collective::kLoadMatrix, &deposit, sizeof deposit,
                                               combine, s.where(i));
  std::memcpy(&deposit, all[emulator::current_thread->lane].bytes, sizeof deposit);
  for (int e = 0; e < 4; ++e) s.put(i.slots[e], deposit.fragment[e]);
}

// Slots: d 4, a 4, b 2, c 4.
template <void (*Combine)(Deposit*)>
void multiply_matrices(State& s, const Instruction& i) {
  emulator::MmaDeposit deposit{};
  for (int e = 0; e < 4; ++e) deposit.sum[e] = s.get<float>(i.slots[10 + e]);
  for (int e = 0; e < 4; ++e) deposit.a[e] = s.get<uint32_t>(i.slots[4 + e]);
  for (int e = 0; e < 2; ++e) deposit.b[e] = s.get<uint32_t>(i.slots[8 + e]);
  const Deposit* all =
      emulator::warp_exchange(Collective::kMma, &deposit, sizeof deposit, Combine, s.where(i));
  std::memcpy(&deposit, all[emulator::current_thread->lane].bytes, sizeof deposit);
  for (int e = 0; e < 4; ++e) s.put(i.slots[e], deposit.sum[e]);
}

// ---------------------------------------------------------------------------------------------
// Fences, groups of copies, and what does nothing.

void fence_gpu(State& s, const Instruction& i) { emulator::fence_acq_rel(s.where(i)); }
void fence_cluster(State& s, const Instruction& i) { emulator::fence_acquire_waits(s.where(i)); }
void nothing(State&, const Instruction&) {}
void commit_copies(State& s, const Instruction& i) { emulator::cp_async_commit(s.where(i)); }
void wait_for_copies(State& s, const Instruction& i) {
  emulator::cp_async_wait(static_cast<int>(s.get<uint32_t>(i.slots[0])), s.where(i));
}

using emulator::WaitOrder;

struct Fixed {
  const char* opcode;
  Handler handler;
  Class kind;
  uint8_t detail;
  int written, read;
};

const Fixed kFixed[] = {
    {"bar.warp.sync", warp_barrier, Class::kWarp, 0, 0, 1},
    {"barrier.cluster.arrive.release.aligned", cluster_arrive, Class::kBarrier, 1, 0, 0},
    {"barrier.cluster.arrive.aligned", cluster_arrive, Class::kBarrier, 1, 0, 0},
    {"barrier.cluster.arrive.relaxed.aligned", cluster_arrive, Class::kBarrier, 0, 0, 0},
    {"barrier.cluster.wait.acquire.aligned", cluster_wait, Class::kBarrier, 0, 0, 0},
    {"barrier.cluster.wait.aligned", cluster_wait, Class::kBarrier, 0, 0, 0},
    {"mbarrier.init.shared::cta.b64", mbarrier_init, Class::kBarrier, 0, 0, 2},
    {"mbarrier.arrive.release.cta.shared::cta.b64", mbarrier_arrive, Class::kBarrier, 0, 1, 1},
    {"mbarrier.arrive.expect_tx.release.cta.shared::cta.b64", mbarrier_arrive, Class::kBarrier, 1,
     1, 2},
    {"mbarrier.arrive.release.cluster.shared::cluster.b64", mbarrier_arrive_remote, Class::kBarrier,
     0, 1, 1},
    // To a peer a release of the block's scope releases nothing.
    {"mbarrier.arrive.release.cta.shared::cluster.b64", mbarrier_arrive_remote, Class::kBarrier, 1,
     1, 1},
    {"mbarrier.try_wait.parity.acquire.cta.shared::cta.b64", mbarrier_try_wait, Class::kBarrier,
     static_cast<uint8_t>(WaitOrder::kBlock), 1, 2},
    {"mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64", mbarrier_try_wait, Class::kBarrier,
     static_cast<uint8_t>(WaitOrder::kCluster), 1, 2},
    {"mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64", mbarrier_try_wait, Class::kBarrier,
     static_cast<uint8_t>(WaitOrder::kRelaxed), 1, 2},
    {"vote.sync.ballot.b32", vote, Class::kWarp, kBallot, 1, 2},
    {"vote.sync.all.pred", vote, Class::kWarp, kAll, 1, 2},
    {"vote.sync.any.pred", vote, Class::kWarp, kAny, 1, 2},
    {"redux.sync.or.b32", reduce_or, Class::kWarp, 0, 1, 2},
    {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", load_matrix, Class::kMatrix, 0, 4, 1},
    {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", load_matrix, Class::kMatrix, 1, 4, 1},
    {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
     multiply_matrices<emulator::combine_mma_half>, Class::kMatrix, 0, 4, 10},
    {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
     multiply_matrices<emulator::combine_mma_bfloat16>, Class::kMatrix, 0, 4, 10},
    {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
     multiply_matrices<emulator::combine_mma_tf32>, Class::kMatrix, 0, 4, 10},
    {"fence.acq_rel.gpu", fence_gpu, Class::kFence, 0, 0, 0},
    {"fence.acquire.sync_restrict::shared::cluster.cluster", fence_cluster, Class::kFence, 0, 0, 0},
    // What it orders, the cluster barrier behind it has to release: see device_emulator.h.
    {"fence.mbarrier_init.release.cluster", nothing, Class::kFence, 0, 0, 0},
    {"cp.async.commit_group", commit_copies, Class::kAsync, 0, 0, 0},
    {"cp.async.wait_group", wait_for_copies, Class::kAsync, 0, 0, 1},
    {"ret", return_from, Class::kControl, 0, 0, 0},
    {"ret.uni", return_from, Class::kControl, 0, 0, 0},
    {"exit", return_from, Class::kControl, 1, 0, 0},
    {"trap", trap, Class::kControl, 0, 0, 0},
    {"nanosleep.u32", nothing, Class::kControl, 0, 0, 1},
};

}  // namespace

bool decode_synchronisation(const Statement& statement, Instruction& instruction) {
  std::string opcode;
  for (const std::string_view part : statement.parts) opcode += std::string(part) + ".";
  opcode.pop_back();
  for (const Fixed& fixed : kFixed) {
    if (opcode != fixed.opcode) continue;
    instruction.run = fixed.handler;
    instruction.kind = fixed.kind;
    instruction.detail = fixed.detail;
    const bool accesses = opcode.starts_with("ldmatrix");
    if (accesses) {
      instruction.space = Space::kShared;
      instruction.bytes = 16;
    }
    set_slots(instruction, statement, fixed.written, fixed.read);
    return true;
  }
  const bool waits = opcode == "bar.sync" || opcode == "barrier.sync.aligned";
  if (waits || opcode == "bar.arrive" || opcode == "barrier.arrive.aligned") {
    instruction.run = block_barrier;
    instruction.kind = Class::kBarrier;
    instruction.detail = waits ? 0 : 1;
    const bool one = statement.operands.size() == 1;
    if (one && !waits) throw std::string("without a number of threads");
    set_slots(instruction, statement, 0, one ? 1 : 2);
    return true;
  }
  if (statement.parts[0] == "shfl" && statement.parts.size() == 4 && statement.parts[1] == "sync" &&
      statement.type() == "b32") {
    static const std::map<std::string_view, uint8_t> modes{
        {"idx", kIdx}, {"up", kUp}, {"down", kDown}, {"bfly", kBfly}};
    const auto mode = modes.find(statement.parts[2]);
    if (mode == modes.end() || statement.operands.empty()) return false;
    Statement operands = statement;
    int written = 1;
    if (operands.operands[0].second != kNoSlot) {
      Operand second;
      second.kind = Operand::kSlot;
      second.slot = std::exchange(operands.operands[0].second, kNoSlot);
      operands.operands.insert(operands.operands.begin() + 1, second);
      written = 2;
    }
    instruction.run = shuffle;
    instruction.kind = Class::kWarp;
    instruction.detail = mode->second;
    set_slots(instruction, operands, written, 4);
    return true;
  }
  return false;
}

}  // namespace ptx
