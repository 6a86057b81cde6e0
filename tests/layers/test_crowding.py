"""When threads that share a layer's units stop to meet, because others have their cores."""

import os
import subprocess
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
PROGRAM = """
#include <cstdio>
#include <cstdlib>

#include "cpu/step_barrier.h"

using birnn::cpu::Crowding;
using std::chrono::microseconds;
using std::chrono::milliseconds;

void expect(bool holds, int line) {
  if (holds) return;
  std::fprintf(stderr, "line %d\\n", line);
  std::exit(1);
}
#define EXPECT(condition) expect(condition, __LINE__)

// A pass of so many milliseconds from `begun` on, the last of which are lost to a wait.
void pass(Crowding::Clock::time_point begun, Crowding::Clock::duration takes,
          Crowding::Clock::duration lost) {
  Crowding::begin_pass();
  Crowding::note_wait(begun + takes - lost, begun + takes);
  Crowding::end_pass(begun, begun + takes);
}

int main() {
  const Crowding::Clock::time_point start = Crowding::Clock::now();
  EXPECT(!Crowding::is_crowded(start));
  // The first pass wakes the threads: its waits say nothing.
  pass(start, milliseconds(10), milliseconds(5));
  EXPECT(!Crowding::is_crowded(start + milliseconds(10)));
  // Short waits are no slices, and who loses less than a third gains by meeting.
  pass(start + milliseconds(20), microseconds(200), microseconds(99));
  EXPECT(!Crowding::is_crowded(start + milliseconds(21)));
  pass(start + milliseconds(30), milliseconds(10), microseconds(3332));
  EXPECT(!Crowding::is_crowded(start + milliseconds(40)));
  // Eight times as long as was lost, however many waited for it.
  Crowding::begin_pass();
  for (int waiter = 0; waiter < 3; ++waiter)
    Crowding::note_wait(start + milliseconds(51), start + milliseconds(52));
  Crowding::note_wait(start + milliseconds(54), start + milliseconds(55));
  Crowding::end_pass(start + milliseconds(50), start + milliseconds(55));
  const auto first = start + milliseconds(55);
  EXPECT(Crowding::is_crowded(first + microseconds(15999)));
  EXPECT(!Crowding::is_crowded(first + milliseconds(16)));
  // The first pass after it, again; then twice as long.
  pass(first + milliseconds(17), milliseconds(4), milliseconds(2));
  EXPECT(!Crowding::is_crowded(first + milliseconds(21)));
  pass(first + milliseconds(22), milliseconds(4), milliseconds(2));
  const auto second = first + milliseconds(26);
  EXPECT(Crowding::is_crowded(second + microseconds(31999)));
  EXPECT(!Crowding::is_crowded(second + milliseconds(32)));
  // Many passes and some time later it is as if it were the first, and never more than a fifth of a
  // second.
  const auto third = second + milliseconds(100);
  for (int idle = 0; idle < 3; ++idle) pass(third, milliseconds(1), milliseconds(0));
  pass(third, milliseconds(2), milliseconds(1));
  EXPECT(Crowding::is_crowded(third + microseconds(9999)));
  EXPECT(!Crowding::is_crowded(third + milliseconds(10)));
  const auto fourth = third + milliseconds(100);
  for (int idle = 0; idle < 3; ++idle) pass(fourth, milliseconds(1), milliseconds(0));
  pass(fourth, milliseconds(400), milliseconds(300));
  EXPECT(Crowding::is_crowded(fourth + milliseconds(599)));
  EXPECT(!Crowding::is_crowded(fourth + milliseconds(600)));
}
"""


def test_how_long_nobody_meets(tmp_path):
    source, program = tmp_path / "crowding.cpp", tmp_path / "crowding"
    source.write_text(PROGRAM)
    compiler = os.environ.get("CXX", "c++").split()
    subprocess.run([*compiler, "-std=c++20", f"-I{CSRC}", source, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
