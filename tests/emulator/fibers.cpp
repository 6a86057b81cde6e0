#include "fibers.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime.h"
#include "sanitizers.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace birnn::emulator {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 4096;
// Stacks begin at different offsets into a page, or the few lines in use of all of them would share
// a few sets of the first cache, and each switch would miss it.
constexpr size_t kLineBytes = 64;
constexpr size_t kOffsets = 64;
constexpr size_t kLinesInUse = 5;  // odd, so that all offsets occur

}  // namespace

struct Fiber {
  char* stack = nullptr;  // its lowest address
  void* asan_fake_stack = nullptr;
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t registers;
#endif
};

namespace {

std::vector<Fiber*> spare_fibers;

// The scheduler, while a fiber runs.
struct SchedulerStack {
  void* asan_fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t registers;
#endif
} scheduler;

Fiber* resumed_fiber = nullptr;

void fiber_main() {
  Fiber* self = resumed_fiber;
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
  }
  for (;;) {
    run_current_thread();
    suspend_fiber(self);
  }
}

}  // namespace

#if defined(__x86_64__)
extern "C" void birnn_emulator_switch_stack(void** save, void* load);
// The callee-saved registers of the System V ABI; the compiler saved the others.
asm(R"(
.text
.globl birnn_emulator_switch_stack
.hidden birnn_emulator_switch_stack
.type birnn_emulator_switch_stack, @function
birnn_emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size birnn_emulator_switch_stack, . - birnn_emulator_switch_stack
)");
#endif

Fiber* take_fiber() {
  if (!spare_fibers.empty()) {
    Fiber* fiber = spare_fibers.back();
    spare_fibers.pop_back();
    return fiber;
  }
  constexpr size_t bytes = kGuardBytes + kStackBytes + kOffsets * kLineBytes;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw Error("no memory for the stack of a thread");
  mprotect(memory, kGuardBytes, PROT_NONE);  // stacks grow downwards
  static size_t num_fibers = 0;
  const size_t offset = num_fibers++ * kLinesInUse % kOffsets * kLineBytes;
  Fiber* fiber = new Fiber;
  fiber->stack = static_cast<char*>(memory) + kGuardBytes + offset;
#if defined(__x86_64__)
  // What the switch pops: six registers, then the address it returns to. One word above, so that
  // the stack is aligned as after a call.
  void** top = reinterpret_cast<void**>(fiber->stack + kStackBytes) - 1;
  *top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber->stack_pointer = top;
#else
  getcontext(&fiber->registers);
  fiber->registers.uc_stack.ss_sp = fiber->stack;
  fiber->registers.uc_stack.ss_size = kStackBytes;
  fiber->registers.uc_link = nullptr;
  makecontext(&fiber->registers, fiber_main, 0);
#endif
  return fiber;
}

void give_back_fiber(Fiber* fiber) { spare_fibers.push_back(fiber); }

void resume_fiber(Fiber* fiber) {
  resumed_fiber = fiber;
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(&scheduler.asan_fake_stack, fiber->stack, kStackBytes);
  }
#if defined(__x86_64__)
  birnn_emulator_switch_stack(&scheduler.stack_pointer, fiber->stack_pointer);
#else
  swapcontext(&scheduler.registers, &fiber->registers);
#endif
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(scheduler.asan_fake_stack, nullptr, nullptr);
  }
}

void suspend_fiber(Fiber* fiber) {
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(&fiber->asan_fake_stack, scheduler.bottom, scheduler.size);
  }
#if defined(__x86_64__)
  birnn_emulator_switch_stack(&fiber->stack_pointer, scheduler.stack_pointer);
#else
  swapcontext(&fiber->registers, &scheduler.registers);
#endif
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(fiber->asan_fake_stack, &scheduler.bottom, &scheduler.size);
  }
}

}  // namespace birnn::emulator
