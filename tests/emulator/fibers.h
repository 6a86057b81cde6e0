// Stacks to run kernel threads on, and the switch between them and the scheduler.
#pragma once

namespace birnn::emulator {

// One stack. It runs one kernel thread after another, and is suspended inside one that waits.
struct Fiber;

// A fiber that waits for its next thread; made if there is none to spare.
Fiber* take_fiber();
// Back to the spare ones. Its thread has finished.
void give_back_fiber(Fiber*);

// Called by the scheduler: runs the fiber until it suspends itself. A fresh fiber calls
// run_current_thread(), again each time it is resumed after that has returned.
void resume_fiber(Fiber*);
// Called on the fiber: back to the scheduler.
void suspend_fiber(Fiber*);

// Defined by the scheduler.
void run_current_thread();

}  // namespace birnn::emulator
